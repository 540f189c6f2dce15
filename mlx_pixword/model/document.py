"""Documents: words and folded images in reading order, joined and split.

L  elements of a row    N  windows of an image or document    P  pixels a window    V  words
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from ..common.errors import PixWordError

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

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows of the whole image, even where only its first windows are here."""
        size = isqrt(self.windows.shape[1])
        return -(-self.height // size), -(-self.width // size)

    @property
    def widths(self) -> np.ndarray:
        """Valid columns of pixels of each window, int32 ``[N]``."""
        size = isqrt(self.windows.shape[1])
        column = np.arange(len(self.lengths), dtype=np.int32) % self.grid[1]
        return np.minimum(size, self.width - column * size).astype(np.int32)

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
        masked: elements at the start whose next ones do not count in the loss, nor pixels inside their windows.
        name: what a message calls it.
    """

    elements: np.ndarray
    images: tuple[ImageTokens, ...] = ()
    closed: bool = False
    name: str = ""
    masked: int = 0

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def num_pixels(self) -> int:
        """Valid pixels of all images."""
        return sum(image.height * image.width for image in self.images)

    def positions(self, grid: bool) -> tuple[np.ndarray, int]:
        """Rotary positions of the elements, and that of a word behind them.

        Returns:
            int32 ``[L]``, counted from 0; or with a grid ``[L, 2]``, row and column: a word at ``p`` has ``(p, p)``,
            window ``(r, c)`` of an image of ``R x C`` windows that begins at ``p`` has ``(p + r, p + c)``, and the
            element after the image counts on from ``p + max(R, C)``.
        """
        if not grid:
            return np.arange(len(self), dtype=np.int32), len(self)
        inside = np.zeros((len(self), 2), np.int32)
        is_window = self.elements == WINDOW
        advance, places, start = (~is_window).astype(np.int32), np.flatnonzero(is_window), 0
        for image in self.images:
            own = places[start : start + len(image.lengths)]
            inside[own] = np.stack(np.divmod(np.arange(len(own)), image.grid[1]), axis=1)
            advance[own[-1:]] = max(image.grid)
            start += len(own)
        return (np.cumsum(advance) - advance)[:, None].astype(np.int32) + inside, int(advance.sum())

    def pixels_inside(self) -> int:
        """Valid pixels behind the first of their window, of windows that count in the loss."""
        if not self.images:
            return 0
        lengths = np.concatenate([image.lengths for image in self.images])
        counts = np.flatnonzero(self.elements == WINDOW) >= self.masked
        return int((lengths - 1)[counts].sum())

    def targets(self, num_words: int) -> np.ndarray:
        """Unified id that each element predicts, int32 ``[L]``; a window's stand-in is its first pixel, ``V + t``."""
        ids = self.elements.copy()
        if self.images:
            ids[ids == WINDOW] = num_words + np.concatenate([image.windows[:, 0] for image in self.images])
        targets = np.append(ids[1:], np.int32(EOS if self.closed else NO_TARGET)).astype(np.int32)
        targets[: self.masked] = NO_TARGET
        return targets


def make_document(parts: Sequence[Sequence[int] | ImageTokens], *, closed: bool = False) -> Document:
    """Join word ids and images into one document, exactly as given: no mark is put in."""
    elements = [
        np.full(len(p.lengths), WINDOW, np.int32) if isinstance(p, ImageTokens) else np.asarray(p, np.int32)
        for p in parts
    ]
    images = tuple(p for p in parts if isinstance(p, ImageTokens))
    return Document(np.concatenate([*elements, np.empty(0, np.int32)]), images, closed)


def mask_prompt(document: Document) -> Document:
    """A document whose last text or image alone counts in the loss; one that has a single part counts as a whole."""
    marks, ends = np.flatnonzero(document.elements == IMAGE), np.flatnonzero(document.elements == END_IMAGE)
    if not len(ends):
        return document
    last_is_image = ends[-1] == len(document) - 1 and len(marks) > 0
    return replace(document, masked=int(marks[-1] if last_is_image else ends[-1]))


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
