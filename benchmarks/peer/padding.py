"""Square padding, as the paper describes it: every image of a batch becomes a square of the batch's longest side.

B  rows, a document each    N  windows of an image, a square    P  pixels a window    M  query pixels a window
L  elements of a row    Q  query pixels a row    V  words, K  pix tokens

``b`` and ``a`` are numbers of words before and after the image.

All windows are laid out, the repeated and the wholly padded ones too. A padded window is an element like any other; its
first pixel is no target, and nothing is drawn from it. NumPy alone; the arrays are int64, as PyTorch has indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import choose_offsets
from mlx_pixword.model.document import EOS, PAD, WINDOW, Document, ImageTokens
from mlx_pixword.pixels.windows import from_windows, to_windows

IGNORE = -100  # target of what is not predicted, PyTorch's own


@dataclass(frozen=True)
class LossWeights:
    """Weights of words, of windows' first pixels and of query pixels in the loss."""

    word: float = 1.0
    boundary: float = 1.0
    dense: float = 1.0


@dataclass(frozen=True, eq=False)
class SquareBatch:
    """A batch of documents with one square image each.

    Attributes:
        before, windows, after: ids ``[B, b]``, pix tokens ``[B, N, P]``, ids ``[B, a]`` padded with ``<pad>``.
        targets: ``[B, L + Q]``, the unified id an element or a query pixel predicts, or ``IGNORE``.
        weights: float32 ``[B, L + Q]``, of each target in the loss.
        positions: ``[B, L + Q]``, or ``[1, L + Q]`` where all rows have the same.
        picks: ``[B, Q]``, the pixels among ``N P`` whose state predicts the next pixel; None without query pixels.
        mask: boolean ``[B or 1, 1, L + Q, L + Q]``, what an element or a query pixel sees; None for all before.
        num_targets: the batch's share of the normaliser Z.
    """

    before: np.ndarray
    windows: np.ndarray
    after: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    picks: np.ndarray | None
    mask: np.ndarray | None
    num_targets: int


def square_batch(
    documents: Sequence[Document], args: ModelArgs, queries: int = 0, keys: Sequence[Sequence[int]] = (),
    weights: LossWeights = LossWeights(),
) -> SquareBatch:  # fmt: skip
    """Lay documents out with square images.

    Args:
        documents: each with one image, behind the same number of words.
        args: for V, K and the window size.
        queries: ``M``; 0 is the paper's objective.
        keys: seed of each document's draws, as `collate` has them.
        weights: of the parts of the loss.
    """
    before, after = _words(documents)
    images = [document.images[0] for document in documents]
    side = square_side(images, args.window_size)
    windows = np.stack([square_windows(image, side, args.window_size, args.num_pix) for image in images])
    targets = _element_targets(documents, before, windows, after, args)
    weight = np.where(targets < args.vocab_size, weights.word, weights.boundary).astype(np.float32)
    places = picks = mask = None
    positions = np.arange(targets.shape[1])[None]
    if queries:
        picks, drawn, factor = draw_pixels(windows, args.num_pix, queries, keys)
        places = before.shape[1] + picks // windows.shape[2]  # [B, Q]
        targets = np.append(targets, np.where(factor > 0, args.vocab_size + drawn, IGNORE), axis=1)
        weight = np.append(weight, weights.dense * factor, axis=1).astype(np.float32)
        places = places[:1] if (places == places[:1]).all() else places
        positions = np.append(np.repeat(positions, len(places), 0), places, axis=1)
        mask = query_mask(places, positions.shape[1] - places.shape[1])
    weight[targets == IGNORE] = 0
    pixels = sum(image.height * image.width - len(image.lengths) for image in images) if queries else 0
    first = int((targets[:, : before.shape[1] + windows.shape[1] + after.shape[1]] != IGNORE).sum())
    return SquareBatch(before, windows, after, targets, weight, positions, picks, mask, first + pixels)


def square_side(images: Sequence[ImageTokens], window_size: int) -> int:
    """The longest side of all images, rounded up to whole windows."""
    longest = max(max(image.height, image.width) for image in images)
    return -(-longest // window_size) * window_size


def square_windows(image: ImageTokens, side: int, window_size: int, padding: int) -> np.ndarray:
    """Windows ``[N, P]`` of an image in the top left of a square; padding pixels keep their place in a window."""
    square = np.full((side, side), padding, np.int64)
    square[: image.height, : image.width] = from_windows(image.windows, image.height, image.width, window_size)
    return to_windows(square, window_size, padding)[0].astype(np.int64)


def draw_pixels(
    windows: np.ndarray, padding: int, queries: int, keys: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query pixels of squares ``[B, N, P]``: places among ``N P``, next pixels and factors ``(P_n - 1) / m_n``.

    All three are ``[B, Q]``, a factor is 0 where a row has fewer. Only windows with a pixel to predict count. Where a
    window is full, the draws are those of `collate` with the same key.
    """
    follows = windows[:, :, 1:] != padding  # [B, N, P - 1]: a valid pixel comes next
    rows = []
    for one, key in zip(follows, keys, strict=True):
        counts = one.sum(1)  # [N]
        chosen = choose_offsets(
            counts + 1, min(queries, one.shape[1]), np.random.default_rng(key)
        )  # among those that do
        n, m = np.nonzero(chosen >= 0)
        offsets = np.argsort(~one, axis=1, kind="stable")[n, chosen[n, m]]
        rows.append((n * windows.shape[2] + offsets, counts[n] / (chosen >= 0).sum(1)[n]))
    picks = np.zeros((len(rows), max(len(places) for places, _ in rows)), np.int64)
    factor = np.zeros(picks.shape, np.float32)
    for row, (places, factors) in enumerate(rows):
        picks[row, : len(places)], factor[row, : len(places)] = places, factors
    flat = windows.reshape(len(windows), -1)
    return picks, np.take_along_axis(flat, picks + 1, axis=1), factor


def query_mask(places: np.ndarray, length: int) -> np.ndarray:
    """Mask of ``L`` elements and, behind them, query pixels at ``places [B, Q]``: boolean ``[B, 1, L + Q, L + Q]``.

    An element sees itself and all before it; a query pixel sees the elements before its window, and itself.
    """
    rows, queries = places.shape
    mask = np.zeros((rows, length + queries, length + queries), bool)
    mask[:, :length, :length] = np.tri(length, dtype=bool)
    mask[:, length:, :length] = np.arange(length) < places[:, :, None]
    mask[:, length:, length:] = np.eye(queries, dtype=bool)
    return mask[:, None]


def _words(documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Words before the images ``[B, b]`` and after them ``[B, a]``, padded."""
    starts = {int(np.argmax(document.elements == WINDOW)) for document in documents}
    if len(starts) > 1 or any(len(document.images) != 1 for document in documents):
        raise PixWordError("documents of a square batch have one image each, behind the same number of words")
    (start,) = starts
    ends = [document.elements[start + len(document.images[0].lengths) :] for document in documents]
    after = np.full((len(ends), max(map(len, ends))), PAD, np.int64)
    for row, end in zip(after, ends, strict=True):
        row[: len(end)] = end
    return np.stack([document.elements[:start] for document in documents]).astype(np.int64), after


def _element_targets(
    documents: Sequence[Document], before: np.ndarray, windows: np.ndarray, after: np.ndarray, args: ModelArgs
) -> np.ndarray:
    """What each element predicts, ``[B, L]``: the next one, a window standing in by its first pixel."""
    first = np.where(windows[:, :, 0] == args.num_pix, IGNORE, args.vocab_size + windows[:, :, 0])
    words = np.append(np.where(after == PAD, IGNORE, after), np.full((len(after), 1), IGNORE), axis=1)
    for row, document in zip(words, documents, strict=True):
        if document.closed:
            row[len(document) - before.shape[1] - len(document.images[0].lengths)] = EOS
    return np.concatenate([before[:, 1:], first, words], axis=1)
