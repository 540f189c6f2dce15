"""Pictures to look at: readings, completed and drawn images."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inference.draw import draw, generate_image
from ..inputs.processor import Processor
from ..model.document import SPECIAL_WORDS, Document
from ..model.network import PixWordModel


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
