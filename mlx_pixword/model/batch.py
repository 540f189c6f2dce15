"""Documents and batches: the arrays that pass between the data, the model and the losses.

B  rows                  L  elements of a row      U  distinct windows of a batch    N  windows of an image or document
P  pixels a window       M  query pixels a window  Q  query pixels a row             V  words    K  pix tokens
c  elements of a row that count in the loss, where not all do
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import mlx.core as mx
import numpy as np

from .args import ModelArgs
from .document import NO_TARGET, PAD, WINDOW, Document, ImageTokens


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of documents, ready for the model.

    Attributes:
        elements: int32 ``[B, L]``; below V a word id, from V on ``V + u`` for distinct window ``u``.
        targets: int32 ``[B, L]``, the unified id an element predicts, or ``NO_TARGET``.
        positions: int32 ``[B, L]``, or with a grid ``[B, L, 2]``, for RoPE alone; see `Document.positions`.
        starts: int32 ``[B, L]``, the place in its row where an element's document starts.
        windows: int32 ``[U, P]``, distinct windows, padded with K.
        lengths: int32 ``[U]``, valid pixels a window, at least 1.
        reads: int32 ``[U, 1 + M]``, pixel offsets whose state is needed: the last valid one, then query pixels.
        widths: int32 ``[U]``, valid columns of each window, or None where all are full or the model does not ask.
        segments: int32 ``[B, L]``, the document of an element within its row, or None when a row is one document.
        scored: int32 ``[B, c]``, places in their row of the elements that count in the loss; None: all with a target.
        scored_targets: int32 ``[B, c]``, what these predict, or ``NO_TARGET`` for padding.
        query_places: int32 ``[B, Q]``, the element whose window a query pixel belongs to; None without query pixels.
        query_states: int32 ``[B, Q]``, where its state lies among the ``U (1 + M)`` reads.
        query_targets: int32 ``[B, Q]``, the unified id of the next pixel.
        query_weights: float32 ``[B, Q]``, ``(P_n - 1) / m_n``, or 0 for padding.
        documents: the documents row by row, for reading results back.
    """

    elements: mx.array
    targets: mx.array
    positions: mx.array
    starts: mx.array
    windows: mx.array
    lengths: mx.array
    reads: mx.array
    widths: mx.array | None = None
    segments: mx.array | None = None
    scored: mx.array | None = None
    scored_targets: mx.array | None = None
    query_places: mx.array | None = None
    query_states: mx.array | None = None
    query_targets: mx.array | None = None
    query_weights: mx.array | None = None
    documents: tuple[tuple[Document, ...], ...] = ()

    def arrays(self) -> dict[str, mx.array]:
        """The arrays alone, as a compiled function takes them."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if isinstance(value, mx.array)}

    @property
    def num_targets(self) -> int:
        """The batch's share of Z: words and boundary pixels, and every other pixel where there are query pixels."""
        targets = sum(len(d) - (not d.closed) - d.masked for row in self.documents for d in row)
        dense = sum(d.pixels_inside() for row in self.documents for d in row)
        return targets + (dense if self.query_places is not None else 0)

    @property
    def counted(self) -> "Batch":
        """This batch with the targets of what `PixWordModel.scored` returns."""
        return self if self.scored_targets is None else replace(self, targets=self.scored_targets)

    @property
    def num_tokens(self) -> int:
        """Words and valid pixels, repeated windows counted every time."""
        return sum(int((d.elements != WINDOW).sum()) + d.num_pixels for row in self.documents for d in row)

    def __repr__(self) -> str:
        rows, length = self.elements.shape
        windows, size = self.windows.shape
        return f"Batch({rows} rows x {length} elements, {windows} distinct windows of {size} pixels)"


def bucket(size: int, minimum: int = 8) -> int:
    """The next of a few sizes: eight to a doubling, so padding stays under 1/8 and compiled steps seldom retrace."""
    step = max(minimum, 1 << max(0, (size - 1).bit_length() - 4))
    return max(minimum, -(-size // step) * step)


def bucket_rows(count: int) -> int:
    """The next of a few numbers of rows, four to a doubling: 1 to 8, 10, 12, 14, 16, 20, .."""
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def collate(
    rows: Sequence[Sequence[Document]],
    args: ModelArgs,
    *,
    exact: bool = False,
    boundary: bool = True,
    pixel_queries: int = 0,
    seed: Sequence[int] = (0,),
) -> Batch:
    """Lay rows of documents out as arrays; distinct windows are kept once (docs/model.md, "Exact savings", 3).

    Args:
        rows: ``B`` rows of one or more documents; several are packed, and never see each other.
        args: the model that they are for.
        exact: keep the sizes as they are, instead of padding B, L, U and Q to a bucket.
        boundary: whether windows' first pixels count in the loss, as they do where they have a weight.
        pixel_queries: ``M``, query pixels a window besides its first one (dense objective).
        seed: of the draws, with the document's number in the batch.
    """
    round_up = (lambda n: max(1, n)) if exact else bucket
    shape = (len(rows) if exact else bucket_rows(len(rows)), round_up(max(sum(map(len, row)) for row in rows)))
    elements, targets = np.full(shape, PAD, np.int32), np.full(shape, NO_TARGET, np.int32)
    positions, starts = np.zeros((*shape, 2) if args.grid else shape, np.int32), np.zeros(shape, np.int32)
    segments, ignored = np.full(shape, -1, np.int32), np.zeros(shape, bool)
    images = [image for row in rows for d in row for image in d.images]
    offsets = _choose_all(rows, min(pixel_queries, args.window_size**2 - 1), seed)
    arrays, which = _distinct_windows(images, offsets, args, round_up)
    used = 0
    for b, row in enumerate(rows):
        start = 0
        for n, document in enumerate(row):
            place = slice(start, start + len(document))
            ids = document.elements.copy()
            holes = ids == WINDOW
            ids[holes] = args.vocab_size + which[used : (used := used + int(holes.sum()))]
            elements[b, place], targets[b, place] = ids, document.targets(args.vocab_size)
            positions[b, place], segments[b, place] = document.positions(args.grid)[0], n
            starts[b, place], start = start, place.stop
            ignored[b, place.start : place.start + document.masked] = True
    arrays |= {"elements": elements, "targets": targets, "positions": positions, "starts": starts}
    if not boundary:
        arrays |= _scored_words(targets, args.vocab_size, round_up)
    if any(len(row) > 1 for row in rows):
        arrays["segments"] = segments
    if offsets.shape[1] and len(offsets):
        arrays |= _queries(elements, args.vocab_size, images, offsets, which, round_up, ignored)
    return Batch(**{k: mx.array(a) for k, a in arrays.items()}, documents=tuple(tuple(row) for row in rows))


def _scored_words(targets: np.ndarray, num_words: int, round_up: Callable[[int], int]) -> dict[str, np.ndarray]:
    """Places and targets ``[B, c]`` of the elements that predict a word; padding is at place 0 and has no target."""
    counts = (targets != NO_TARGET) & (targets < num_words)
    size = min(round_up(int(counts.sum(axis=1).max())), targets.shape[1])
    places = np.argsort(~counts, axis=1, kind="stable")[:, :size]
    used = np.take_along_axis(counts, places, axis=1)
    found = np.where(used, np.take_along_axis(targets, places, axis=1), NO_TARGET)
    return {"scored": np.where(used, places, 0).astype(np.int32), "scored_targets": found.astype(np.int32)}


def choose_offsets(lengths: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pixel offsets to predict from, ``min(M, P_n - 1)`` distinct ones a window, uniformly without replacement.

    Args:
        lengths: ``[N]``, valid pixels a window.
        count: ``M``.
        rng: of the draws.

    Returns:
        int32 ``[N, M]``, ascending, -1 after the last one; offset ``j`` predicts pixel ``j + 1``.
    """
    most = max(int(lengths.max(initial=1)) - 1, count)
    order = rng.random((len(lengths), most))
    order[np.arange(most) >= lengths[:, None] - 1] = 2  # no pixel follows these
    chosen = np.argsort(order, axis=1)[:, :count]
    chosen[np.take_along_axis(order, chosen, axis=1) == 2] = most  # sorts behind all others
    chosen.sort(axis=1)
    return np.where(chosen < most, chosen, -1).astype(np.int32)


def _choose_all(rows: Sequence[Sequence[Document]], count: int, seed: Sequence[int]) -> np.ndarray:
    """Offsets of all windows in reading order, ``[sum N, M]``; each document draws with a key of its own."""
    offsets = [np.empty((0, count), np.int32)]
    for number, document in enumerate(d for row in rows for d in row):
        if document.images:
            rng = np.random.default_rng((*seed, number)) if count else np.random.default_rng(0)
            offsets.append(choose_offsets(np.concatenate([image.lengths for image in document.images]), count, rng))
    return np.concatenate(offsets)


def _distinct_windows(
    images: Sequence[ImageTokens], offsets: np.ndarray, args: ModelArgs, round_up: Callable[[int], int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``windows [U, P]``, ``lengths [U]``, ``reads [U, 1 + M]``, perhaps ``widths [U]``; and each window's ``u``."""
    pixels, none = args.window_size**2, np.empty(0, np.int32)
    every = np.concatenate([np.empty((0, pixels), np.int32), *(image.windows for image in images)])
    counts = np.concatenate([none, *(image.lengths for image in images)])
    widths = np.concatenate([none, *(image.widths for image in images if args.uses_places)])
    keys = [every, offsets, widths[:, None]] if args.uses_places else [every, offsets]  # padding tells lengths apart
    first, which = _distinct(np.ascontiguousarray(np.concatenate(keys, axis=1)))
    size = round_up(len(first))
    arrays = {"windows": np.full((size, pixels), args.num_pix, np.int32), "lengths": np.ones(size, np.int32)}
    arrays["windows"][: len(first)], arrays["lengths"][: len(first)] = every[first], counts[first]
    queries = np.zeros((size, offsets.shape[1]), np.int32)
    queries[: len(first)] = np.maximum(offsets[first], 0)
    arrays["reads"] = np.concatenate([arrays["lengths"][:, None] - 1, queries], axis=1)
    if (widths < args.window_size).any():
        arrays["widths"] = np.full(size, args.window_size, np.int32)
        arrays["widths"][: len(first)] = widths[first]
    return arrays, which.astype(np.int32)


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For the distinct lines of ``keys``, where each comes first, and for every line the number of its own."""
    whole = keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).ravel()
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    return first, which


def _queries(
    elements: np.ndarray,
    num_words: int,
    images: Sequence[ImageTokens],
    offsets: np.ndarray,
    which: np.ndarray,
    round_up: Callable[[int], int],
    ignored: np.ndarray,
) -> dict[str, np.ndarray]:
    """The arrays of the query pixels, ``[B, Q]``: windows in reading order, ``M`` places each, padded with weight 0.

    Windows of elements that are ``ignored [B, L]`` have weight 0 too.
    """
    count = offsets.shape[1]
    row, place = np.nonzero(elements >= num_words)  # every window, in reading order
    slot = np.arange(len(row)) - np.searchsorted(row, row)  # number of the window in its row
    shape = (len(elements), round_up(int(slot.max()) + 1) * count)
    next_pixel = np.take_along_axis(np.concatenate([image.windows for image in images]), offsets.clip(0) + 1, axis=1)
    lengths = np.concatenate([image.lengths for image in images])
    weights = (offsets >= 0) * ((lengths - 1) / np.maximum(1, (offsets >= 0).sum(1)))[:, None]
    weights *= ~ignored[row, place][:, None]
    values = {
        "query_places": np.repeat(place[:, None], count, axis=1),
        "query_states": which[:, None] * (1 + count) + 1 + np.arange(count),
        "query_targets": np.where(offsets >= 0, num_words + next_pixel, NO_TARGET),
        "query_weights": weights,
    }
    arrays = {}
    for name, value in values.items():
        arrays[name] = np.zeros(shape, np.float32 if name == "query_weights" else np.int32)
        arrays[name][row[:, None], slot[:, None] * count + np.arange(count)] = value
    arrays["query_targets"][arrays["query_weights"] == 0] = NO_TARGET
    return arrays
