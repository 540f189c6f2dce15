"""Reading with confidence: what an image says, and how sure the model is.

B  rows    V  words

A reading's probability is the product of its words' and of the end mark's: that exactly this text stands there. Of
several margins around the image (`with_margins`) it is their geometric mean. The confidence is that probability,
corrected by what held-out readings showed (`Calibration`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..inputs.processor import Part, Processor, tokens_of
from ..model.batch import Batch
from ..model.calibration import Calibration
from ..model.document import EOS
from ..model.network import PixWordModel
from ..pixels.images import Box, crop, fit_rgb
from .settings import SampleArgs
from .words import generate_words, text_so_far


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read; shows its picture and its text in a notebook, and the text alone as `str`.

    Attributes:
        text: the words.
        log_probability: natural log of the probability of exactly this text; of a text that was cut at ``max_tokens``,
            that the text begins so.
        confidence: 0..1, how often readings of that probability are right, as far as the model was calibrated.
        characters: each character with the probability of the words that it comes from; they are not calibrated.
        finished: whether the model ended the text by itself.
        image: what was looked at, as the model sees it; None where none was kept.
    """

    text: str
    log_probability: float
    confidence: float
    characters: tuple[tuple[str, float], ...]
    finished: bool = True
    image: Image.Image | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Reading({self.text!r}, confidence {self.confidence:.3f})"

    def text_from(self, confidence: float) -> str:
        """The text where the reading is at least so confident, else an empty one."""
        return self.text if self.confidence >= confidence else ""

    def to_json(self) -> dict[str, Any]:
        """What `generate --jsonl` prints of a reading."""
        found = {"text": self.text, "log_probability": self.log_probability, "confidence": self.confidence}
        return found | {"finished": self.finished}

    def _repr_html_(self) -> str:
        from .views import reading_html

        summary = f"confidence {self.confidence:.1%}, log-probability {self.log_probability:.3f}"
        return reading_html(self.image, self.characters, summary)


def read(
    model: PixWordModel, processor: Processor, image: "Image.Image | np.ndarray | mx.array", box: Box | None = None,
    *, prompt: Sequence[Part] = (), **sample_args: Any,
) -> Reading:  # fmt: skip
    """Read an image, or a part of it.

    Args:
        model, processor: from `pw.load`.
        image: PIL, or uint8 ``[h, w, 3]``. A whole image that is larger than the model's image size is scaled down.
        box: ``(x, y, width, height)`` in pixels: the part to read, at its own size.
        prompt: texts, images and word ids between the image and what is read.
        sample_args: fields of `SampleArgs`, as `generate_text` takes them.

    Raises:
        PixWordError: an empty box or one that leaves the image, or more windows than the sequence holds.

    Example:
        >>> reading = pw.read(model, processor, Image.open("receipt.png"), box=(120, 340, 80, 9))
        >>> reading.text, round(reading.confidence, 2)
        ('12.50', 0.97)
    """
    if box is None:
        tokens = processor.image(image)
    else:
        whole = fit_rgb(image, max(image.size)) if isinstance(image, Image.Image) else np.array(image)
        tokens = tokens_of(crop(whole, box), processor.args)
    (reading,) = read_batch(model, processor, processor([tokens, *prompt]), **sample_args)
    return Reading(**{**vars(reading), "image": processor.picture(tokens)})


def read_batch(
    model: PixWordModel, processor: Processor, batch: Batch, limits: Sequence[int] | None = None, **sample_args: Any
) -> list[Reading]:
    """Readings of the words that follow each row of a batch, generated together; they keep no image.

    ``limits`` are the most words of each row, in place of ``max_tokens`` for all.
    """
    args = SampleArgs(**sample_args)
    most = [args.max_tokens] * len(batch.documents) if limits is None else list(limits)
    words: list[list[int]] = [[] for _ in batch.documents]
    scores: list[list[float]] = [[] for _ in batch.documents]
    for step in generate_words(model, batch, replace(args, max_tokens=max(most))):
        rows = zip(words, scores, most, step.words, step.log_probabilities, strict=True)
        for row, score, limit, word, log_probability in rows:
            if row[-1:] != [EOS] and len(row) < limit:
                row.append(word)
                score.append(log_probability)
        if all(row[-1] == EOS or len(row) == limit for row, limit in zip(words, most, strict=True)):
            break
    own = model.calibration.margins
    alike = ((args.margins or own) > 1) == (own > 1)  # means over several are low where these disagree
    calibration = model.calibration if alike else Calibration()
    return [reading_of(processor, row, score, calibration) for row, score in zip(words, scores, strict=True)]


def reading_of(
    processor: Processor, words: Sequence[int], log_probabilities: Sequence[float], calibration: Calibration
) -> Reading:
    """A reading from its word ids, ``</s>`` at the end where it was reached, and their natural-log probabilities."""
    finished = list(words[-1:]) == [EOS]
    own = list(words[:-1] if finished else words)
    total = math.fsum(log_probabilities)
    characters = _characters(processor, own, log_probabilities)
    return Reading(processor.decode(own), total, calibration(total), characters, finished)


def _characters(
    processor: Processor, words: list[int], log_probabilities: Sequence[float]
) -> tuple[tuple[str, float], ...]:
    """Characters with the probability of the word, or of the bytes together, that they come from."""
    shown, pending = list[tuple[str, float]](), 0.0
    text = processor.decode(words)
    for n in range(len(words)):
        pending += log_probabilities[n]
        new = text_so_far(processor, words[: n + 1], n + 1 == len(words))[len(shown) :]
        if new:
            shown += [(character, math.exp(pending)) for character in new]
            pending = 0.0
    if "".join(character for character, _ in shown) == text:
        return tuple(shown)
    whole = math.exp(math.fsum(log_probabilities[: len(words)]))  # a tokenizer that rewrites what came before
    return tuple((character, whole) for character in text)
