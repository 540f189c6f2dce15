"""Exact likelihood: the log-probability of every word and every pixel, given the sizes of the images.

M  query pixels a window, here all but the first    V  words    K  pix tokens

What comes next is known to be a word or a pixel, so a word's softmax
covers the V words and a pixel's the K pix tokens. The chain rule then makes all images of one size sum to 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError
from ..model.batch import Batch, collate
from ..model.document import END_IMAGE, NO_TARGET, WINDOW, Document, ImageTokens
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only
from ..pixels.windows import window_order

QUERIES = 4096  # pixels that pass the language block at a time


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """Natural-log probabilities, one document after the other.

    Attributes:
        words: float32 ``[words]``; a document's first element and the closing marks of images have none.
        pixels: float32 ``[pixels]``, in window order.
        images: the images that the pixels are of, one after the other.
    """

    words: np.ndarray
    pixels: np.ndarray
    images: tuple[ImageTokens, ...] = ()

    def bits_per_dimension(self) -> float:
        """Bits a channel of a folded pixel, ``-sum(pixels) / (3 ln 2 pixels)``."""
        return float(-self.pixels.sum(dtype=np.float64) / (3 * np.log(2) * len(self.pixels)))

    def heat_maps(self) -> list[np.ndarray]:
        """How surprising each pixel was, in nats: float32 ``[h, w]`` for every image."""
        maps, start = list[np.ndarray](), 0
        for image in self.images:
            nats, end = np.empty(image.height * image.width, np.float32), start + image.height * image.width
            nats[window_order(image.height, image.width, math.isqrt(image.windows.shape[1]))[0]] = -self.pixels[
                start:end
            ]
            maps.append(nats.reshape(image.height, image.width))
            start = end
        return maps

    def __repr__(self) -> str:
        return f"LogLikelihood({len(self.words)} words, {len(self.pixels)} pixels)"

    def _repr_html_(self) -> str:
        from .views import heat_html

        bits = f", {self.bits_per_dimension():.3f} bits per dimension" if len(self.pixels) else ""
        return heat_html(self.heat_maps(), f"{len(self.words)} words, {len(self.pixels)} pixels{bits}")


def log_likelihood(model: PixWordModel, batch: Batch) -> LogLikelihood:
    """Score every word and every pixel of a batch.

    Args:
        model: trained with query pixels (``pixel_queries`` above 0), or pixels inside windows score as noise.
        batch: from a `Processor`; its documents are scored one at a time, so memory does not grow with their number.

    Raises:
        PixWordError: an image at the very beginning of a document, whose first pixel has no probability.

    Source: docs/model.md, "Likelihood".

    Example:
        >>> scores = pw.log_likelihood(model, processor([image]))
        >>> scores.bits_per_dimension()
    """
    documents = [document for row in batch.documents for document in row]
    scored = [score_document(model, document) for document in documents]
    words, pixels = ([np.empty(0, np.float32), *parts] for parts in zip(*scored, strict=True))
    images = tuple(image for document in documents for image in document.images)
    return LogLikelihood(np.concatenate(words), np.concatenate(pixels), images)


@forward_only()
def score_document(model: PixWordModel, document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of one document's words and pixels; see `LogLikelihood`."""
    args = model.args
    if document.elements[:1].tolist() == [WINDOW]:
        raise PixWordError("an image at the very beginning has no probability; put `<s>` or a word before it")
    every = args.window_size**2 - 1  # all pixels of a window but the first
    batch = collate([[document]], args, exact=True, pixel_queries=every)
    states = model.states_in_chunks(batch)
    flat, x = states.reshape(-1, states.shape[-1]), model.embed(batch, states[:, 0])
    targets = np.array(batch.targets)[0]
    logits = np.array(model.logits(model.language(x, batch.positions, "causal")))[0]
    words, first = _choose(logits, targets, args.vocab_size)
    scored = (targets != NO_TARGET) & (targets < args.vocab_size)
    scored &= ~((document.elements == WINDOW) & (targets == END_IMAGE))  # forced, as the size is given
    others = [np.empty(0, np.float32), *_score_queries(model, batch, x, flat)]
    return words[scored], _interleave(document, first[targets >= args.vocab_size], np.concatenate(others))


def _score_queries(model: PixWordModel, batch: Batch, x: mx.array, flat: mx.array) -> Iterator[np.ndarray]:
    """Log-probabilities of all pixels but the windows' first, in window order, ``QUERIES`` at a time."""
    if batch.query_places is None or batch.query_states is None or batch.query_targets is None:
        return
    valid = np.flatnonzero(np.array(batch.query_targets)[0] != NO_TARGET)
    for start in range(0, len(valid), QUERIES):
        some = mx.array(valid[start : start + QUERIES])
        z = flat[batch.query_states[:, some]].astype(mx.float32)
        _, z = model.condition(x, z, batch.query_places[:, some], batch)
        yield _choose(np.array(model.logits(z))[0], np.array(batch.query_targets[0, some]), model.args.vocab_size)[1]


def _choose(logits: np.ndarray, targets: np.ndarray, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the targets among the words and among the pix tokens, float32 ``[L]`` each."""
    chosen = np.take_along_axis(logits, np.maximum(targets, 0)[:, None], axis=1)[:, 0]
    words, pixels = mx.logsumexp(mx.array(logits[:, :num_words]), -1), mx.logsumexp(mx.array(logits[:, num_words:]), -1)
    return chosen - np.array(words), chosen - np.array(pixels)


def _interleave(document: Document, first: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Put each window's first pixel before its other ones: window order."""
    lengths = np.concatenate([np.empty(0, np.int32), *(image.lengths for image in document.images)])
    starts = np.cumsum(lengths) - lengths
    pixels = np.empty(int(lengths.sum()), np.float32)
    is_first = np.zeros(len(pixels), bool)
    is_first[starts.astype(int)] = True
    pixels[is_first], pixels[~is_first] = first, others
    return pixels
