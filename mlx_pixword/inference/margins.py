"""Margins: an image with other widths of paper around it, over whose probabilities a reading takes the mean.

V  words    N  windows of an image    P  pixels a window

Windows cut an image where they fall, and a crop may cut its text. With a pixel or two of paper at its edges the same
text falls into other windows, so a model sees it anew, and mistakes that come from where it fell do not agree.
"""

from dataclasses import replace

import numpy as np

from ..model.args import ModelArgs
from ..model.batch import Batch, collate
from ..model.document import WINDOW, Document, ImageTokens
from ..pixels.colors import fold_colors, unfold_colors
from ..pixels.windows import from_windows, num_windows, to_windows

Margin = tuple[int, int, int, int]  # pixels of paper above, below, left and right
MARGINS: tuple[Margin, ...] = (
    (0, 0, 0, 0), (1, 1, 1, 1), (2, 1, 2, 2), (1, 2, 3, 1), (0, 1, 1, 0), (1, 0, 2, 1), (2, 2, 0, 3), (3, 1, 3, 0),
)  # fmt: skip


def with_margins(batch: Batch, args: ModelArgs, margins: int, most_words: int) -> tuple[Batch, int]:
    """Each row as so many rows, with other margins each, and how many these are.

    A batch stays as it is, one row each, unless each row is a document of one whole image. Where a margin does not fit
    into the sequence together with ``most_words``, the document itself stands in its place; where none does, it stays.
    """
    documents = [document for row in batch.documents for document in row]
    alone = len(documents) == len(batch.documents)
    if margins == 1 or not alone or not all(_has_one_image(document, args) for document in documents):
        return batch, 1
    room = args.max_seq_len + 1 - most_words
    rows = [[_one(document, margin, args, room)] for document in documents for margin in MARGINS[:margins]]
    if all(row[0] is documents[n // margins] for n, row in enumerate(rows)):
        return batch, 1
    return collate(rows, args, exact=True), margins


def _has_one_image(document: Document, args: ModelArgs) -> bool:
    images = document.images
    return len(images) == 1 and len(images[0].lengths) == num_windows(
        images[0].height, images[0].width, args.window_size
    )


def _one(document: Document, margin: Margin, args: ModelArgs, room: int) -> Document:
    if not any(margin):
        return document
    image = with_paper(document.images[0], margin, args)
    first, count = int(np.argmax(document.elements == WINDOW)), len(document.images[0].lengths)
    before, after = document.elements[:first], document.elements[first + count :]
    elements = np.concatenate([before, np.full(len(image.lengths), WINDOW, np.int32), after])
    return replace(document, elements=elements, images=(image,)) if len(elements) <= room else document


def with_paper(image: ImageTokens, margin: Margin, args: ModelArgs) -> ImageTokens:
    """An image with pixels around it, of the median colour of its border."""
    tokens = from_windows(image.windows, image.height, image.width, args.window_size)
    border = np.concatenate([tokens[0], tokens[-1], tokens[:, 0], tokens[:, -1]])
    paper = np.median(unfold_colors(border, args.fold_factor), axis=0).astype(np.uint8)
    above, below, left, right = margin
    sides = (above, below), (left, right)
    wider = np.pad(tokens, sides, constant_values=int(fold_colors(paper, args.fold_factor)))
    return ImageTokens(*to_windows(wider, args.window_size, args.num_pix), *wider.shape)
