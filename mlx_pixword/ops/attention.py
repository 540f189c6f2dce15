"""Attention with a mask: MLX's own operation, or its parts where MLX's softmax is slow (see `elementary`).

B  rows    L  elements of a row, Lq as queries and Lk as keys    H  query heads    G  key heads    d  head size
"""

import mlx.core as mx

from .exponentials import polynomials_pay, softmax


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    """Grouped-query attention, ``softmax(scale q k^T) v`` per head.

    Args:
        q: ``[B, H, Lq, d]``.
        k, v: ``[B, G, Lk, d]``.
        scale: factor of the scores, ``d^-0.5``.
        mask: None, ``"causal"``, or boolean ``[B or 1, 1, Lq, Lk]``, True where a query sees a key.

    Returns:
        ``[B, H, Lq, d]``.
    """
    if not polynomials_pay(q.size // q.shape[-1] * k.shape[2]) or q.dtype != mx.float32:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    rows, _, queries, size = q.shape
    groups, keys = k.shape[1:3]
    grouped = (q * scale).reshape(rows, groups, -1, size)  # [B, G, H / G Lq, d]
    scores = (grouped @ k.swapaxes(-1, -2)).reshape(rows, groups, -1, queries, keys)
    if mask is not None:
        scores = scores + _bias(mask, queries, keys)
    return (softmax(scores).reshape(rows, groups, -1, keys) @ v).reshape(q.shape)


def _bias(mask: mx.array | str, queries: int, keys: int) -> mx.array:
    """0 where a query sees a key and -inf elsewhere, ``[Lq, Lk]`` or ``[B or 1, 1, 1, Lq, Lk]``."""
    causal = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)
    return mx.where(causal if isinstance(mask, str) else mask[:, :, None], 0.0, -mx.inf)
