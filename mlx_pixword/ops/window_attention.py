"""Causal attention inside windows, with RoPE: no pixel sees another window.

U  distinct windows    P  pixels a window    R  pixels that are read out of a window
H  query heads    G  key heads    d  head size
"""

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import mlx.core as mx

from .attention import attention
from .dispatch.choose import dispatch
from .dispatch.kernel import Kernel, bucket, normal, whole
from .rotary import rotary_table, rotate, turns
from .span_attention import SOURCES, attend, suits


def window_attention(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """Softmax attention of pixels to the pixels up to themselves, in each window.

        y_i = softmax(d^-0.5 [R_i q_i . R_j k_j for j <= i]) [v_j]        R_j turns pairs by j theta^(-2n/d)

    Args:
        q: ``[U, R, H, d]``, not rotated: of all pixels, or of those at ``reads``.
        k, v: ``[U, P, G, d]``, not rotated.
        reads: int32 ``[U, R]``, the number of each query's pixel in its window; None: R is P, all pixels.
        theta: base of the rotary frequencies, see `rotary.inverse_frequencies`.
        rotary: float32 ``[2, P, d / 2]``, cosine and sine by place in a full window, instead of those by ``theta``.
        places: int32 ``[U, P]``, the place of each pixel in the full window; None: a pixel's number.

    Returns:
        ``[U, R, H, d]`` in the type of ``q``.

    Example:
        >>> q, k = mx.random.normal((3, 16, 4, 32)), mx.random.normal((3, 16, 2, 32))
        >>> window_attention(q, k, k, None, 5e5).shape
        (3, 16, 4, 32)

    Source: the image block of arXiv 2605.14028; RoPE, arXiv 2104.09864; the kernel, FlashAttention, arXiv 2205.14135.
    """
    reads = None if reads is None else mx.stop_gradient(reads)  # recomputed layers ask for the gradient of everything
    if rotary is not None:
        return reference(q, k, v, reads, theta, mx.stop_gradient(rotary), places)
    return dispatch(WINDOW_ATTENTION, q, k, v, reads, theta) if suits(q, k) else reference(q, k, v, reads, theta)


def reference(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The same in MLX's own operations."""
    return _plain(attention, q, k, v, reads, theta, rotary, places)


def fused(q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float) -> mx.array:
    """The same with MLX's own fused attention, to be measured against."""

    def attend_fused(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return _plain(attend_fused, q, k, v, reads, theta)


def _plain(
    attend: Any, q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    pixels, size = k.shape[1], k.shape[-1]
    rotary = mx.array(rotary_table(pixels, size, theta)) if rotary is None else rotary  # [2, P, d / 2]
    if places is not None:
        keys = rotary[:, places][:, :, None]  # [2, U, 1, P, d / 2]
        own = keys if reads is None else rotary[:, mx.take_along_axis(places, reads, axis=1)][:, :, None]
    else:
        keys, own = rotary, rotary if reads is None else rotary[:, reads][:, :, None]  # [2, U, 1, R, d / 2]
    mask = "causal" if reads is None else (mx.arange(pixels) <= reads[..., None])[:, None]  # [U, 1, R, P]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [U, n, P, d]
    return attend(rotate(q, own), rotate(k, keys), v, size**-0.5, mask).swapaxes(1, 2)


def launch(q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float) -> mx.array:
    """The same by ``metal/attention.metal``: a pixel sees the span from 0 to itself."""
    ends = mx.broadcast_to(mx.arange(1, k.shape[1] + 1), k.shape[:2]) if reads is None else reads + 1  # [U, R]
    spans = mx.stack([mx.zeros_like(ends), ends], axis=-1).astype(mx.int32)
    return attend(spans, _frequencies(k.shape[-1], theta))(q, k, v)


@lru_cache(maxsize=8)
def _frequencies(head_size: int, theta: float) -> mx.array:
    return mx.array(turns(head_size, theta))


def example(q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float) -> tuple[Any, ...]:
    places = None if reads is None else whole(reads.shape, k.shape[1])
    return *(normal(x.shape, x.dtype, seed) for seed, x in enumerate((q, k, v))), places, theta


def shape_class(q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float) -> Hashable:
    """The heads and the window decide; of the number of windows and reads only the power of two."""
    return q.dtype, q.shape[2:], k.shape[1:], bucket(k.shape[0]), None if reads is None else bucket(reads.shape[1])


def standard() -> Mapping[str, tuple[Any, ...]]:
    """Image blocks of the presets: of `upw-120m` at 224 px, whole and read out, and of `tiny`."""
    return {
        "upw-120m bfloat16": _case(196, 256, 12, 6, 64, mx.bfloat16),
        "upw-120m float32": _case(196, 256, 12, 6, 64, mx.float32),
        "upw-120m read out": _case(196, 256, 12, 6, 64, mx.bfloat16, reads=4),
        "tiny float32": _case(512, 16, 4, 2, 16, mx.float32),
    }


def small() -> Mapping[str, tuple[Any, ...]]:
    return {
        "P 256, d 64, H/G 2": _case(1, 256, 2, 1, 64, mx.float32),
        "the same, 4 read out": _case(1, 256, 2, 1, 64, mx.float32, reads=4),
    }


def _case(
    windows: int, pixels: int, heads: int, groups: int, size: int, dtype: mx.Dtype, reads: int = 0
) -> tuple[Any, ...]:
    kv = normal((windows, pixels, groups, size), dtype, 1)
    q = normal((windows, reads or pixels, heads, size), dtype, 0)
    return q, kv, normal(kv.shape, dtype, 2), whole((windows, reads), pixels) if reads else None, 5e5


WINDOW_ATTENTION = Kernel(
    "window_attention",
    reference=reference,
    metal=launch,
    example=example,
    trained=True,
    shape_class=shape_class,
    standard=standard,
    small=small,
    rival=fused,
    sources=SOURCES,
)
