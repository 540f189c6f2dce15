"""Leaving out unlikely words or pixels before one is drawn; the filters are mlx-lm's."""

import mlx.core as mx

from .settings import SampleArgs


def filtered(scores: mx.array, args: SampleArgs) -> mx.array:
    """Scores ``[.., classes]`` of the words or pix tokens that top_p, min_p and top_k leave; -inf of others."""
    if args.top_p == 1 and args.min_p == 0 and not 0 < args.top_k < scores.shape[-1]:
        return scores
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p  # takes over a second to import

    scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
    scores = apply_top_p(scores, args.top_p) if args.top_p < 1 else scores
    scores = apply_min_p(scores, args.min_p) if args.min_p > 0 else scores
    return apply_top_k(scores, args.top_k) if 0 < args.top_k < scores.shape[-1] else scores
