"""Attention of query pixels: each query sees the elements before its window, and itself.

B  rows    Q  query pixels a row    L  elements of a row    H  query heads    G  key heads    d  head size
"""

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx

from .dispatch.choose import dispatch
from .dispatch.kernel import SMALL_ARRAY, Kernel, bucket, normal, trial_count, whole
from .exponentials import softmax
from .span_attention import SOURCES, attend, suits
from .span_build import narrow, widest

LONG, MANY = 512, 256  # elements and queries of a trial: more than a threadgroup takes at a time


def conditional_attention(
    q: mx.array, own_k: mx.array, own_v: mx.array, k: mx.array, v: mx.array, spans: mx.array
) -> mx.array:
    """Softmax attention over a span of a shared sequence and the query's own key: queries never see each other.

        y_i = softmax(d^-0.5 [q_i . k_j for first_i <= j < end_i, q_i . own_k_i]) [v_j, own_v_i]

    Args:
        q: ``[B, Q, H, d]``, rotated.
        own_k, own_v: the queries' own keys, rotated, and values ``[B, Q, G, d]``.
        k, v: the sequence's keys, rotated, and values ``[B, L, G, d]``.
        spans: int32 ``[B, Q, 2]``, ``first`` and ``end`` of the elements that a query sees besides itself.

    Returns:
        ``[B, Q, H, d]`` in the type of ``q``; the softmax is float32.

    Source: docs/model.md, "Dense objective" (a conditional form of arXiv 2605.14028).
    """
    function = partial(dispatch, CONDITIONAL_ATTENTION) if suits(q, k) else reference
    return function(q, own_k, own_v, k, v, spans)


def reference(q: mx.array, own_k: mx.array, own_v: mx.array, k: mx.array, v: mx.array, spans: mx.array) -> mx.array:
    """The same in MLX's own operations."""
    q, own_k, own_v, k, v = (x.swapaxes(1, 2) for x in (q, own_k, own_v, k, v))  # [B, n, Q or L, d]
    rows, heads, queries, size = q.shape
    groups, places = k.shape[1], mx.arange(k.shape[2])
    visible = (places >= spans[..., :1]) & (places < spans[..., 1:])  # [B, Q, L]
    grouped = (q * size**-0.5).reshape(rows, groups, heads // groups, queries, size)  # [B, G, H / G, Q, d]
    before = (grouped @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32)  # [B, G, H / G, Q, L]
    before = before + mx.where(visible, 0.0, -mx.inf)[:, None, None]
    own = mx.sum((grouped * own_k[:, :, None]).astype(mx.float32), axis=-1, keepdims=True)  # [B, G, H / G, Q, 1]
    shares = softmax(mx.concatenate([before, own], axis=-1)).astype(q.dtype)
    y = shares[..., :-1] @ v[:, :, None] + shares[..., -1:] * own_v[:, :, None]
    return y.reshape(q.shape).swapaxes(1, 2)


def fused(q: mx.array, own_k: mx.array, own_v: mx.array, k: mx.array, v: mx.array, spans: mx.array) -> mx.array:
    """The same with MLX's own fused attention, to be measured against: own keys are further keys, seen by one query."""
    q, own_k, own_v, k, v = (x.swapaxes(1, 2) for x in (q, own_k, own_v, k, v))  # [B, n, Q or L, d]
    places, queries = mx.arange(k.shape[2]), mx.arange(q.shape[2])
    visible = (places >= spans[..., :1]) & (places < spans[..., 1:])  # [B, Q, L]
    own = mx.broadcast_to(queries[:, None] == queries, (q.shape[0], q.shape[2], q.shape[2]))
    mask = mx.concatenate([visible, own], axis=-1)[:, None]  # [B, 1, Q, L + Q]
    keys, values = mx.concatenate([k, own_k], axis=2), mx.concatenate([v, own_v], axis=2)
    y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=q.shape[-1] ** -0.5, mask=mask)
    return y.swapaxes(1, 2)


def launch(q: mx.array, own_k: mx.array, own_v: mx.array, k: mx.array, v: mx.array, spans: mx.array) -> mx.array:
    """The same by ``metal/attention.metal``."""
    return attend(spans)(q, k, v, own_k, own_v)


def example(*args: mx.array) -> tuple[Any, ...]:
    """Random arguments for a trial: fewer rows, and fewer queries, elements and heads where there are very many."""
    q, _, _, k, _, _ = args
    (rows, queries, length, groups), size = _counts(q, k), q.shape[3]
    own, shared = (rows, queries, groups, size), (rows, length, groups, size)
    shapes = (rows, queries, groups * (q.shape[2] // k.shape[2]), size), own, own, shared, shared
    return *(normal(shape, q.dtype, seed) for seed, shape in enumerate(shapes)), _ends((rows, queries), length)


def _ends(shape: Any, length: int) -> mx.array:
    """Spans from 0 to random ends, in rising order as windows have them."""
    ends = mx.sort(whole(shape[:2], length + 1), axis=1)
    return mx.stack([mx.zeros_like(ends), ends], axis=-1)


def shape_class(*args: mx.array) -> Hashable:
    """The heads decide; of the numbers of queries and elements only the power of two."""
    q, k = args[0], args[3]
    rows, queries, length, groups = _counts(q, k)
    counts = bucket(rows), bucket(queries), bucket(length), min(rows * queries, SMALL_ARRAY)
    return widest(), q.dtype, q.shape[2] // k.shape[2], groups, q.shape[3], counts


def _counts(q: mx.array, k: mx.array) -> tuple[int, int, int, int]:
    """Rows, queries, elements and key heads of a trial; more queries and elements than a block has make no other build.

    Of 16 bits, it peaks at 48 bytes a score and 72 a number of q.
    """
    heads, repeat, length = q.shape[2], q.shape[2] // k.shape[2], min(k.shape[1], LONG)
    each = 48 * length + 72 * q.shape[3]  # of a query's head
    queries = trial_count(q.shape[1], heads * each, MANY, q.shape[1])
    rows = trial_count(q.shape[0], heads * queries * each)
    return rows, queries, length, trial_count(k.shape[2], repeat * queries * each, 1, k.shape[2])


def standard() -> Mapping[str, tuple[Any, ...]]:
    """Language blocks of the presets: of `upw-120m` with 4 query pixels a window at 224 px, and of `tiny`."""
    return {
        "upw-120m bfloat16": _case(1, 196 * 4, 199, 12, 6, 64, mx.bfloat16),
        "upw-120m float32": _case(1, 196 * 4, 199, 12, 6, 64, mx.float32),
        "tiny float32": _case(16, 63, 32, 4, 2, 16, mx.float32),
    }


def small() -> Mapping[str, tuple[Any, ...]]:
    return {"N 196, M 3, d 64, H/G 2": _case(1, 196 * 3, 199, 2, 1, 64, mx.float32)}


def _case(rows: int, queries: int, length: int, heads: int, groups: int, size: int, dtype: mx.Dtype) -> tuple[Any, ...]:
    own, shared = (rows, queries, groups, size), (rows, length, groups, size)
    shapes = ((rows, queries, heads, size), own, own, shared, shared)
    arrays = [normal(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    return *arrays, _ends((rows, queries), length)


CONDITIONAL_ATTENTION = Kernel(
    "conditional_attention",
    reference=reference,
    metal=launch,
    example=example,
    trained=True,
    shape_class=shape_class,
    standard=standard,
    small=small,
    rival=fused,
    sources=SOURCES,
    narrow=narrow,
)
