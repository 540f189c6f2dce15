"""Held-out documents during training: losses, and what the model reads, as a page to look at."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..data.pack import bucket_batches
from ..inference.draw import draw, generate_image
from ..inference.words import generate_batch
from ..inputs.processor import Processor
from ..model.batch import SPECIAL_WORDS, Document, collate
from ..model.losses import LossSums, loss_sums
from ..model.network import PixWordModel

READING_WORDS = 48  # most words of a reading


def heldout_documents(loader: Loader, indices: Sequence[int] | np.ndarray) -> list[Document]:
    """Encode held-out documents; those that must be skipped are left out."""
    return [piece for index in indices for piece in loader.read(int(index))]


class LossMeter:
    """Mean losses over any number of documents, unweighted: nats a word, a boundary pixel and a drawn pixel."""

    def __init__(self, model: PixWordModel, batch_tokens: int, pixel_queries: int = 0) -> None:
        self._model, self._batch_tokens, self._pixel_queries = model, batch_tokens, pixel_queries
        self._totals = np.zeros(6)

    def add(self, documents: Sequence[Document]) -> None:
        args = self._model.args
        for rows in bucket_batches([[document] for document in documents], self._batch_tokens):
            batch = collate(rows, args.vocab_size, args.num_pix, args.window_size, pixel_queries=self._pixel_queries)
            sums = loss_sums(*self._model.forward(batch), batch, args.vocab_size)
            self._totals += np.array([value.item() for value in sums])

    def means(self) -> dict[str, float]:
        """``word_loss``, ``boundary_loss`` and ``dense_loss``; a part without targets is left out."""
        return mean_losses(self._totals)

    def loss(self, word_weight: float, boundary_weight: float, dense_weight: float) -> float:
        """The objective of training over all documents: weighted nats by all targets; not a number without any."""
        nats = np.dot(self._totals[::2], [word_weight, boundary_weight, dense_weight])
        return float(nats / self._totals[1::2].sum()) if self._totals[1::2].sum() else float("nan")


def mean_losses(sums: Sequence[float] | LossSums | np.ndarray) -> dict[str, float]:
    """``word_loss``, ``boundary_loss`` and ``dense_loss`` from sums; a part without targets is left out."""
    values = [float(value) for value in sums]
    parts = zip(("word_loss", "boundary_loss", "dense_loss"), values[::2], values[1::2], strict=True)
    return {name: nats / count for name, nats, count in parts if count}


def readable(documents: Sequence[Document]) -> list[Document]:
    """Documents of one image followed by words: those that a model can be asked to read."""
    return [d for d in documents if len(d.images) == 1 and d.closed and len(d) > _prompt_length(d)]


def _prompt_length(document: Document) -> int:
    """Elements up to the image's closing mark."""
    return int(np.flatnonzero(document.elements < 0)[-1]) + 2


def read_documents(
    model: PixWordModel, processor: Processor, documents: Sequence[Document], batch_rows: int = 64
) -> list[tuple[str, str]]:
    """What the model reads and what is written there, for documents of one image followed by words."""
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(documents), batch_rows):
        some = documents[start : start + batch_rows]
        prompts = [[Document(d.elements[: _prompt_length(d)], d.images)] for d in some]
        batch = collate(prompts, model.args.vocab_size, model.args.num_pix, model.args.window_size, exact=True)
        read = generate_batch(model, processor, batch, max_tokens=READING_WORDS)
        pairs += [
            (r, processor.decode(d.elements[_prompt_length(d) :].tolist())) for r, d in zip(read, some, strict=True)
        ]
    return pairs


def draw_images_page(
    path: Path, model: PixWordModel, processor: Processor, documents: Sequence[Document], prompted: bool
) -> None:
    """Write a picture with a row a document: its first image, the image completed from its top half, and a drawing.

    With ``prompted``, which needs captions that came first in training, the document's words are the drawing's prompt.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tallest = max(d.images[0].height / d.images[0].width for d in documents)
    figure = Figure(figsize=(7.2, (2.3 * min(tallest, 1.5) + 0.5) * len(documents)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(documents), 3, squeeze=False)
    for seed, (row, document) in enumerate(zip(axes, documents, strict=True)):
        image = document.images[0]
        size, words = (image.height, image.width), [int(i) for i in document.elements if i >= len(SPECIAL_WORDS)]
        words = words if prompted else []
        kept = draw(model, processor, "", size, keep=image, keep_rows=image.height // 2, seed=seed)
        drawn = generate_image(model, processor, [words] if words else "", size, seed=seed)
        titles = ("held out", "top half kept", f"drawn: {_shorten(processor.decode(words))}" if words else "drawn")
        pictures = (processor.picture(image), deque(kept, maxlen=1).pop().pictures(processor)[0], drawn)
        for axis, title, picture in zip(row, titles, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9, parse_math=False)
            axis.axis("off")
    figure.savefig(path, dpi=120)


def draw_page(
    path: Path, processor: Processor, documents: Sequence[Document], pairs: Sequence[tuple[str, str]]
) -> None:
    """Write a picture of images as the model sees them, each with what it reads; wrong readings are red."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(documents))
    rows = -(-len(documents) // columns)
    tallest = max(d.images[0].height / d.images[0].width for d in documents)
    figure = Figure(figsize=(2.4 * columns, (2.3 * min(tallest, 1.5) + 0.5) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, document, (read, written) in zip(axes, documents, pairs, strict=False):
        axis.imshow(processor.picture(document.images[0]), interpolation="nearest")
        text = _shorten(read) if read == written else f"{_shorten(read)}\n(is {_shorten(written)})"
        axis.set_title(text, fontsize=9, color="black" if read == written else "crimson", parse_math=False)
    figure.savefig(path, dpi=120)


def _shorten(text: str, length: int = 28) -> str:
    text = " ".join(text.split()) or "(nothing)"
    printable = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return printable if len(printable) <= length else printable[: length - 1] + "\u2026"
