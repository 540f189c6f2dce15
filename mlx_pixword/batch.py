"""Documents and batches: the arrays that pass between the data, the model and the losses.

B  rows    L  elements a row (words and windows)    U  distinct windows of a batch    N  windows of a document
P  pixels a window    V  words    K  pix tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .errors import PixWordError

UNK, BOS, EOS, PAD, IMAGE, END_IMAGE = range(6)
SPECIAL_WORDS = ("<unk>", "<s>", "</s>", "<pad>", "<|image|>", "<|/image|>")
WINDOW = -1  # stands in a document's elements for its next window
NO_TARGET = -1


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """An image, folded: ``windows`` int32 ``[N, P]`` padded with K, ``lengths`` ``[N]``, size in pixels."""

    windows: np.ndarray
    lengths: np.ndarray
    height: int
    width: int

    def __repr__(self) -> str:
        count, size = self.windows.shape
        return f"ImageTokens({self.width}x{self.height} pixels, {count} windows of {size} at most)"


@dataclass(frozen=True, eq=False)
class Document:
    """A sequence of words and windows.

    Attributes:
        elements: int32 ``[L]``, a word id, or ``WINDOW`` for the next window.
        images: the images in reading order; their windows fill the ``WINDOW`` places.
        closed: True if ``</s>`` follows the last element; it is a target and never fed.
    """

    elements: np.ndarray
    images: tuple[ImageTokens, ...] = ()
    closed: bool = False

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def num_pixels(self) -> int:
        """Valid pixels of all images."""
        return sum(image.height * image.width for image in self.images)

    def targets(self, num_words: int) -> np.ndarray:
        """Unified id that each element predicts, int32 ``[L]``; a window's stand-in is its first pixel, ``V + t``."""
        ids = self.elements.copy()
        if self.images:
            ids[ids == WINDOW] = num_words + np.concatenate([image.windows[:, 0] for image in self.images])
        return np.append(ids[1:], np.int32(EOS if self.closed else NO_TARGET)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of documents, ready for the model.

    Attributes:
        elements: int32 ``[B, L]``; below V a word id, from V on ``V + u`` for distinct window ``u``.
        targets: int32 ``[B, L]``, the unified id an element predicts, or ``NO_TARGET``.
        positions: int32 ``[B, L]``, counted from 0 in each document.
        windows: int32 ``[U, P]``, distinct windows, padded with K.
        lengths: int32 ``[U]``, valid pixels a window, at least 1.
        segments: int32 ``[B, L]``, the document of an element within its row, or None when a row is one document.
        documents: the documents row by row, for reading results back.
    """

    elements: mx.array
    targets: mx.array
    positions: mx.array
    windows: mx.array
    lengths: mx.array
    segments: mx.array | None = None
    documents: tuple[tuple[Document, ...], ...] = ()

    def arrays(self) -> dict[str, mx.array]:
        """The arrays alone, as a compiled function takes them."""
        names = ("elements", "targets", "positions", "windows", "lengths", "segments")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def num_targets(self) -> int:
        """Supervised elements: the batch's share of Z."""
        return sum(len(d) - (not d.closed) for row in self.documents for d in row)

    @property
    def num_tokens(self) -> int:
        """Words and valid pixels, repeated windows counted every time."""
        return sum(int((d.elements != WINDOW).sum()) + d.num_pixels for row in self.documents for d in row)

    def __repr__(self) -> str:
        rows, length = self.elements.shape
        windows, size = self.windows.shape
        return f"Batch({rows} rows x {length} elements, {windows} distinct windows of {size} pixels)"


def make_document(parts: Sequence[Sequence[int] | ImageTokens], *, closed: bool = False) -> Document:
    """Join word ids and images into one document, exactly as given: no mark is put in."""
    elements = [
        np.full(len(p.lengths), WINDOW, np.int32) if isinstance(p, ImageTokens) else np.asarray(p, np.int32)
        for p in parts
    ]
    images = tuple(p for p in parts if isinstance(p, ImageTokens))
    return Document(np.concatenate([*elements, np.empty(0, np.int32)]), images, closed)


def split_document(document: Document, max_length: int) -> list[Document]:
    """Cut a document into pieces of at most ``max_length`` elements, never inside ``<|image|> .. <|/image|>``.

    Each piece starts with ``<s>``; only the last one keeps ``closed``. An image that fits no piece raises
    `PixWordError`.
    """
    if len(document) <= max_length:
        return [document]
    pieces: list[list[np.ndarray]] = [[]]
    room = max_length
    for unit in _units(document.elements):
        if len(unit) > max_length - 1:
            raise PixWordError(
                f"an image has {len(unit)} elements, max_seq_len {max_length} holds {max_length - 1} and `<s>`"
            )
        if len(unit) > room:
            pieces.append([np.array([BOS], np.int32)])
            room = max_length - 1
        pieces[-1].append(unit)
        room -= len(unit)
    return _with_images([np.concatenate(piece) for piece in pieces], document)


def _units(elements: np.ndarray) -> list[np.ndarray]:
    """What must stay together: single words, and images from mark to mark."""
    inside = np.cumsum(elements == IMAGE) - np.cumsum(elements == END_IMAGE)  # 1 from <|image|> to the last window
    starts = np.flatnonzero((inside == 0) | (elements == IMAGE))
    starts = starts[(elements[starts] != END_IMAGE) | (starts == 0)]
    return np.split(elements, starts[starts > 0])


def _with_images(pieces: list[np.ndarray], document: Document) -> list[Document]:
    """Give each piece the images whose windows it holds."""
    images = iter(document.images)
    documents = []
    for n, elements in enumerate(pieces):
        count = int((elements == WINDOW).sum())
        own: list[ImageTokens] = []
        while sum(len(image.lengths) for image in own) < count:
            own.append(next(images))
        documents.append(Document(elements, tuple(own), document.closed and n == len(pieces) - 1))
    return documents


def bucket(size: int, minimum: int = 8) -> int:
    """The next of a few sizes: eight to a doubling, so padding stays under 1/8 and compiled steps seldom retrace."""
    step = max(minimum, 1 << max(0, (size - 1).bit_length() - 4))
    return max(minimum, -(-size // step) * step)


def collate(
    rows: Sequence[Sequence[Document]], num_words: int, num_pix: int, window_size: int, *, exact: bool = False
) -> Batch:
    """Lay rows of documents out as arrays; distinct windows are kept once (DESIGN: exact saving 3).

    Args:
        rows: ``B`` rows of one or more documents; several are packed, and never see each other.
        num_words, num_pix: ``V`` and ``K``.
        window_size: ``w``.
        exact: keep the sizes as they are, instead of padding L and U to a bucket.
    """
    round_up = (lambda n: max(1, n)) if exact else bucket
    length = round_up(max(sum(map(len, row)) for row in rows))
    shape = (len(rows), length)
    elements, targets = np.full(shape, PAD, np.int32), np.full(shape, NO_TARGET, np.int32)
    positions, segments = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    windows, lengths, which = _distinct_windows(
        [i for row in rows for d in row for i in d.images], num_pix, window_size, round_up
    )
    used = 0
    for b, row in enumerate(rows):
        start = 0
        for n, document in enumerate(row):
            place = slice(start, start := start + len(document))
            ids = document.elements.copy()
            holes = ids == WINDOW
            ids[holes] = num_words + which[used : (used := used + int(holes.sum()))]
            elements[b, place], targets[b, place] = ids, document.targets(num_words)
            positions[b, place], segments[b, place] = np.arange(len(document)), n
    packed = any(len(row) > 1 for row in rows)
    return Batch(
        mx.array(elements),
        mx.array(targets),
        mx.array(positions),
        mx.array(windows),
        mx.array(lengths),
        mx.array(segments) if packed else None,
        tuple(tuple(row) for row in rows),
    )


def _distinct_windows(images, num_pix, window_size, round_up):  # type: ignore[no-untyped-def]
    """``windows [U, P]``, ``lengths [U]`` and, for each window in reading order, its ``u``."""
    if not images:
        return np.full((1, window_size**2), num_pix, np.int32), np.ones(1, np.int32), np.empty(0, np.int32)
    every = np.concatenate([image.windows for image in images])  # [sum N, P]; padding tells the lengths apart
    keys = np.ascontiguousarray(every).view(np.dtype((np.void, every.dtype.itemsize * every.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    size = round_up(len(first))
    windows, lengths = np.full((size, window_size**2), num_pix, np.int32), np.ones(size, np.int32)
    windows[: len(first)] = every[first]
    lengths[: len(first)] = np.concatenate([image.lengths for image in images])[first]
    return windows, lengths, which.astype(np.int32)
