"""The objective: which sums a batch contributes, and how they are weighed.

B  rows    L  elements of a row    V  words    K  pix tokens    Z  normaliser, counted over the optimiser batch
"""

from typing import NamedTuple

import mlx.core as mx

from ..ops.exponentials import logsumexp
from .batch import Batch
from .document import NO_TARGET


class LossSums(NamedTuple):
    """Negative log-likelihoods in nats, summed, with the number of targets behind each; scalars.

    The dense part is the estimate from the query pixels: each stands for ``(P_n - 1) / m_n`` pixels of its window.
    """

    word_nats: mx.array
    words: mx.array
    boundary_nats: mx.array
    boundary_pixels: mx.array
    dense_nats: mx.array
    dense_pixels: mx.array


def loss_sums(logits: mx.array, query_logits: mx.array | None, batch: Batch, num_words: int) -> LossSums:
    """Sums of a batch: words, boundary pixels, and query pixels where there are any.

    Args:
        logits: float32 ``[B, L, V + K]``, of all elements that the batch has targets for.
        query_logits: float32 ``[B, Q, V + K]``, or None.
        batch: with its targets; `Batch.counted` for the logits of `PixWordModel.scored`.
        num_words: ``V``.

    Source: docs/model.md, "Boundary objective" and "Dense objective".
    """
    sums = boundary_sums(logits, batch.targets, num_words)
    if query_logits is None or batch.query_targets is None or batch.query_weights is None:
        return sums
    nats, pixels = query_sums(query_logits, batch.query_targets, batch.query_weights)
    return sums._replace(dense_nats=nats, dense_pixels=pixels)


def query_sums(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """Nats and number of the pixels that query pixels stand for, from ``[B, Q, V + K]`` and ``[B, Q]``."""
    return mx.sum(_nats(logits, targets) * weights), mx.sum(weights)


def boundary_sums(logits: mx.array, targets: mx.array, num_words: int) -> LossSums:
    """Sums of the boundary objective: each element predicts the next, a window standing in by its first pixel.

    Args:
        logits: float32 ``[..., V + K]``.
        targets: int32 ``[...]``, unified ids or ``NO_TARGET``.
        num_words: ``V``; a target from V on is a pixel.

    Source: arXiv 2605.14028; docs/model.md, "Boundary objective".
    """
    nats, none = _nats(logits, targets), mx.array(0.0)
    word, pixel = (targets != NO_TARGET) & (targets < num_words), targets >= num_words
    return LossSums(mx.sum(nats * word), mx.sum(word), mx.sum(nats * pixel), mx.sum(pixel), none, none)


def _nats(logits: mx.array, targets: mx.array) -> mx.array:
    """``-log softmax(logits)[target]``; any finite number where there is no target."""
    chosen = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return logsumexp(logits) - chosen


def weighted_loss(
    sums: LossSums, normalizer: mx.array, word_weight: float, boundary_weight: float, dense_weight: float = 1.0
) -> mx.array:
    """``[a * words + b * boundary pixels + c * dense pixels] / Z``, a scalar in nats."""
    boundary, dense = boundary_weight * sums.boundary_nats, dense_weight * sums.dense_nats
    return (word_weight * sums.word_nats + boundary + dense) / normalizer
