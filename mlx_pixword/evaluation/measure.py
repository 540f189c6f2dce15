"""What `evaluate` says of a model: losses, bits, and scores of its readings on documents of any number."""

import math
from collections.abc import Iterator, Sequence

from ..common.errors import PixWordError
from ..data.base import Source
from ..data.decoders import Decoders
from ..data.loader import Encoder, Loader
from ..data.skips import ENOUGH, SkipLog
from ..inference.likelihood import score_document
from ..inference.read import Reading
from ..inputs.processor import Processor
from ..model.document import Document
from ..model.network import PixWordModel
from .meter import LossMeter
from .readings import rate_documents, readable
from .scores import Scores, calibration_error, reading_scores

GROUP = 256  # documents in memory at a time
JUDGED = 50  # documents between two looks at the share of bad images


def measure(
    model: PixWordModel, processor: Processor, sources: Sequence[Source], limit: int = 0, batch_tokens: int = 4096,
    max_bad: float = 0.05,
) -> Scores:  # fmt: skip
    """Measure a model on documents.

    Args:
        model, processor: from `pw.load`.
        sources: of the documents.
        limit: documents that are used, 0 for all.
        batch_tokens: words and windows a batch.
        max_bad: largest fraction of bad images.

    Returns:
        What `mlx_pixword.evaluate.evaluate` returns.

    Raises:
        PixWordError: too many bad images, or nothing that can be used.
    """
    nats, pixels = 0.0, 0
    skips, meter, count, pairs = SkipLog(), LossMeter(model, batch_tokens), 0, list[tuple[Reading, str]]()
    for source in sources:
        skips.unreadable(source)
    with Decoders() as decoders:  # no file can end or stall what is done with the others
        encoder = Encoder(processor.args, processor.tokenizer, skips, decoders=decoders)
        for documents in groups(sources, encoder, limit, max_bad):
            count += len(documents)
            meter.add(documents)
            if model.pixel_queries:
                scores = [score_document(model, document)[1] for document in documents]
                nats -= sum(float(score.sum(dtype=float)) for score in scores)
                pixels += sum(map(len, scores))
            if processor.tokenizer is not None:
                pairs += rate_documents(model, processor, readable(documents), batch_tokens)
    skips.check(max_bad)
    if not count:
        raise PixWordError(f"--data {', '.join(source.name for source in sources)}: no document could be used")
    losses = meter.means()
    if model.words_only:
        losses.pop("boundary_loss", None)  # of pixels that it never learnt to predict
    result: Scores = {"documents": count, "skipped": skips.count, **losses}
    if "word_loss" in losses:
        result["word_perplexity"] = math.exp(min(losses["word_loss"], 700.0))
    if pixels:
        bits = nats / (3 * math.log(2) * pixels)
        bound = bits + math.log2(processor.args.fold_factor)
        result |= {"pixels": pixels, "bits_per_dimension": bits, "bits_per_dimension_8bit_bound": bound}
    if pairs:
        right = [reading.text == written for reading, written in pairs]
        confidences = [reading.confidence for reading, _ in pairs]
        result |= reading_scores([(reading.text, written) for reading, written in pairs])
        result["expected_calibration_error"] = calibration_error(confidences, right)
    return result


def groups(
    sources: Sequence[Source], encoder: Encoder, limit: int, max_bad: float = 1.0
) -> Iterator[list[Document]]:  # fmt: skip
    """Encoded documents, a few at a time, so that memory does not grow with the data.

    Raises:
        PixWordError: more than ``max_bad`` of the images are bad, as soon as there are enough to judge by.
    """
    loader, group = Loader(sources, encoder), list[Document]()
    for index in range(min(len(loader), limit or len(loader))):
        group += loader.read(index)  # a malformed document costs itself, as in training
        if encoder.skips.tries >= ENOUGH and index % JUDGED == 0:
            encoder.skips.check(max_bad)
        if len(group) >= GROUP:
            yield group
            group = []
    if group:
        yield group
