"""Attention of drawn pixels: each query sees the elements before its window, and itself.

B  rows    Q  queries a row    L  elements a row    H  query heads    G  key heads    d  head size
"""

import mlx.core as mx

from ..elementary import softmax


def conditional_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    prefix_k: mx.array,
    prefix_v: mx.array,
    visible: mx.array,
    scale: float,
) -> mx.array:
    """Softmax attention over a shared prefix and the query's own key: queries never see each other.

        y_i = softmax([scale q_i K_visible^T, scale q_i k_i]) [V_visible; v_i]

    Args:
        q: ``[B, H, Q, d]``, rotated.
        k, v: the queries' own keys, rotated, and values ``[B, G, Q, d]``.
        prefix_k, prefix_v: the sequence's keys, rotated, and values ``[B, G, L, d]``.
        visible: boolean ``[B, Q, L]``, the elements a query sees besides itself.
        scale: factor of the scores, ``d^-0.5``.

    Returns:
        ``[B, H, Q, d]`` in the type of ``q``; the softmax is float32.

    Source: DESIGN of this project, "dense" objective (a conditional form of arXiv 2605.14028).
    """
    rows, heads, queries, size = q.shape
    groups = k.shape[1]
    grouped = (q * scale).reshape(rows, groups, heads // groups, queries, size)  # [B, G, H / G, Q, d]
    before = (grouped @ prefix_k[:, :, None].swapaxes(-1, -2)).astype(mx.float32)  # [B, G, H / G, Q, L]
    before = before + mx.where(visible, 0.0, -mx.inf)[:, None, None]
    own = mx.sum((grouped * k[:, :, None]).astype(mx.float32), axis=-1, keepdims=True)  # [B, G, H / G, Q, 1]
    shares = softmax(mx.concatenate([before, own], axis=-1)).astype(q.dtype)
    y = shares[..., :-1] @ prefix_v[:, :, None] + shares[..., -1:] * v[:, :, None]
    return y.reshape(q.shape)
