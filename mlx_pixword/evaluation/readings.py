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

SPARE_WORDS = 8  # that a reading may have more than a quarter of what is written


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
    model: PixWordModel, processor: Processor, documents: Sequence[Document], batch_tokens: int
) -> list[tuple[str, str]]:
    """What the model reads and what is written there, for documents of one image followed by words."""
    return [(reading.text, written) for reading, written in rate_documents(model, processor, documents, batch_tokens)]


def rate_documents(
    model: PixWordModel, processor: Processor, documents: Sequence[Document], batch_tokens: int, margins: int = 0
) -> list[tuple[Reading, str]]:
    """The same with the confidence of each reading.

    A reading may be a quarter longer than what is written, and a few words; which documents are read together changes
    nothing.

    Args:
        model, processor: of the model.
        documents: see `readable`.
        batch_tokens: most elements of a batch, words that are generated included; at least one document is read.
        margins: in which each image is read; 0 for the model's own number.
    """
    found: dict[int, Reading] = {}
    for some in _batches(documents, batch_tokens // (margins or model.calibration.margins), model.args.max_seq_len):
        prompts = [[Document(documents[n].elements[: _prompt_length(documents[n])], documents[n].images)] for n in some]
        batch = collate(prompts, model.args, exact=True)
        limits = [_most_words(documents[n], model.args.max_seq_len) for n in some]
        found |= zip(some, read_batch(model, processor, batch, limits, margins=margins), strict=True)
    written = [processor.decode(d.elements[_prompt_length(d) :].tolist()) for d in documents]
    return [(found[n], text) for n, text in enumerate(written)]


def _most_words(document: Document, max_seq_len: int) -> int:
    prompt = _prompt_length(document)
    written = len(document) - prompt
    return min(written + written // 4 + SPARE_WORDS, max_seq_len - prompt + 1)


def _batches(documents: Sequence[Document], batch_tokens: int, max_seq_len: int) -> list[list[int]]:
    """Numbers of documents that are read together, of similar length."""
    batches: list[list[int]] = []
    prompt = words = 0  # the longest of the batch
    for n in sorted(range(len(documents)), key=lambda n: len(documents[n]), reverse=True):
        both = max(prompt, _prompt_length(documents[n])), max(words, _most_words(documents[n], max_seq_len))
        rows = len(batches[-1]) + 1 if batches else 0
        if not batches or rows * sum(both) > batch_tokens or sum(both) > max_seq_len + 1:
            batches.append([])
            both = _prompt_length(documents[n]), _most_words(documents[n], max_seq_len)
        prompt, words = both
        batches[-1].append(n)
    return batches


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
