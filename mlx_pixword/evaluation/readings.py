"""What a model reads in documents of one image followed by words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..inference.read import Reading, read_batch
from ..inference.views import data_url, png
from ..inputs.processor import Processor
from ..model.batch import collate
from ..model.document import Document
from ..model.network import PixWordModel

READING_WORDS = 48  # most words of a reading


def heldout_documents(loader: Loader, indices: Sequence[int] | np.ndarray) -> list[Document]:
    """Encode held-out documents; those that must be skipped are left out."""
    return [piece for index in indices for piece in loader.read(int(index))]


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
    return [(reading.text, written) for reading, written in rate_documents(model, processor, documents, batch_rows)]


def rate_documents(
    model: PixWordModel, processor: Processor, documents: Sequence[Document], batch_rows: int = 64
) -> list[tuple[Reading, str]]:
    """The same with the confidence of each reading."""
    pairs: list[tuple[Reading, str]] = []
    for start in range(0, len(documents), batch_rows):
        some = documents[start : start + batch_rows]
        prompts = [[Document(d.elements[: _prompt_length(d)], d.images)] for d in some]
        batch = collate(prompts, model.args, exact=True)
        read = read_batch(model, processor, batch, max_tokens=READING_WORDS)
        pairs += [
            (r, processor.decode(d.elements[_prompt_length(d) :].tolist())) for r, d in zip(read, some, strict=True)
        ]
    return pairs


def describe_readings(
    processor: Processor, documents: Sequence[Document], rated: Sequence[tuple[Reading, str]], shown: int
) -> list[dict[str, Any]]:
    """Readings as plain values: what was read and written, how confidently, and the picture as a PNG in a data URL.

    Pictures are kept of the first ``shown`` documents and of the first ``shown`` that were read wrongly: a record of
    hundreds stays small.
    """
    lines, wrong = list[dict[str, Any]](), 0
    for n, (document, (reading, written)) in enumerate(zip(documents, rated, strict=True)):
        line: dict[str, Any] = {"read": reading.text, "written": written, "confidence": reading.confidence}
        wrong += reading.text != written
        if n < shown or (reading.text != written and wrong <= shown):
            line["picture"] = data_url(png(processor.picture(document.images[0])))
        lines.append(line)
    return lines
