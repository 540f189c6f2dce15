"""The objective: which sums a batch contributes, and how they are weighed.

B  rows    L  elements a row    V  words    K  pix tokens    Z  the normaliser, counted over the optimiser batch
"""

from typing import NamedTuple

import mlx.core as mx

from .batch import NO_TARGET


class LossSums(NamedTuple):
    """Negative log-likelihoods in nats, summed, with the number of targets; scalars."""

    word_nats: mx.array
    words: mx.array
    pixel_nats: mx.array
    pixels: mx.array


def boundary_sums(logits: mx.array, targets: mx.array, num_words: int) -> LossSums:
    """Sums of the boundary objective: each element predicts the next, a window standing in by its first pixel.

    Args:
        logits: float32 ``[B, L, V + K]``.
        targets: int32 ``[B, L]``, unified ids or ``NO_TARGET``.
        num_words: ``V``; a target from V on is a pixel.

    Source: arXiv 2605.14028; DESIGN of this project, "boundary" objective.
    """
    nats = (
        mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    )
    word, pixel = (targets != NO_TARGET) & (targets < num_words), targets >= num_words
    return LossSums(mx.sum(nats * word), mx.sum(word), mx.sum(nats * pixel), mx.sum(pixel))


def weighted_loss(sums: LossSums, normalizer: mx.array, word_weight: float, boundary_weight: float) -> mx.array:
    """``[a * sum over words + b * sum over boundary pixels] / Z``, a scalar in nats."""
    return (word_weight * sums.word_nats + boundary_weight * sums.pixel_nats) / normalizer
