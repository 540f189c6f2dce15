"""Causal attention inside windows, with RoPE: no pixel sees another window.

U  distinct windows    P  pixels a window    R  pixels that are read out of a window
H  query heads    G  key heads    d  head size
"""

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from .attention import attention
from .dispatch.choose import dispatch
from .dispatch.kernel import SMALL_ARRAY, TRIAL_WINDOWS, Kernel, bucket, normal, trial_count, whole
from .rotary import rotary_table, rotate
from .span_attention import SOURCES, Rotary, attend, suits
from .span_build import narrow, widest


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
        rotary: float32 ``[2, P, d / 2]``, cosine and sine by place in a full window, instead of those by ``theta``: by
            places in a row, or by rows and columns, as `span_attention.Rotary` asks for.
        places: int32 ``[U, P]``, the place of each pixel in the full window; None: a pixel's number.

    Returns:
        ``[U, R, H, d]`` in the type of ``q``.

    Example:
        >>> q, k = mx.random.normal((3, 16, 4, 32)), mx.random.normal((3, 16, 2, 32))
        >>> window_attention(q, k, k, None, 5e5).shape
        (3, 16, 4, 32)

    Source: the image block of arXiv 2605.14028; RoPE, arXiv 2104.09864; the kernel, FlashAttention, arXiv 2205.14135.
    """
    # recomputed layers ask for the gradient of everything
    reads, rotary, places = (None if x is None else mx.stop_gradient(x) for x in (reads, rotary, places))
    fits = suits(q, k, k.shape[1] if rotary is None else rotary.shape[1])
    return (partial(dispatch, WINDOW_ATTENTION) if fits else reference)(q, k, v, reads, theta, rotary, places)


def reference(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The same in MLX's own operations."""
    return _plain(attention, q, k, v, reads, theta, rotary, places)


def fused(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The same with MLX's own fused attention, to be measured against."""

    def attend_fused(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    return _plain(attend_fused, q, k, v, reads, theta, rotary, places)


def _plain(
    attend: Any, q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None, places: mx.array | None,
) -> mx.array:  # fmt: skip
    pixels, size = k.shape[1], k.shape[-1]
    rotary = mx.array(rotary_table(pixels, size, theta)) if rotary is None else rotary  # [2, P, d / 2]
    if places is not None:
        keys = rotary[:, places][:, :, None]  # [2, U, 1, P, d / 2]
        own = keys if reads is None else rotary[:, mx.take_along_axis(places, reads, axis=1)][:, :, None]
    else:
        keys, own = rotary[:, :pixels], rotary[:, :pixels] if reads is None else rotary[:, reads][:, :, None]
    mask = "causal" if reads is None else (mx.arange(pixels) <= reads[..., None])[:, None]  # [U, 1, R, P]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [U, n, P, d]
    return attend(rotate(q, own), rotate(k, keys), v, size**-0.5, mask).swapaxes(1, 2)


def launch(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> mx.array:  # fmt: skip
    """The same by ``metal/attention.metal``: a pixel sees the span from 0 to itself."""
    ends = mx.broadcast_to(mx.arange(1, k.shape[1] + 1), k.shape[:2]) if reads is None else reads + 1  # [U, R]
    spans = mx.stack([mx.zeros_like(ends), ends], axis=-1).astype(mx.int32)
    table = mx.array(rotary_table(k.shape[1], k.shape[-1], theta)) if rotary is None else rotary
    return attend(spans, Rotary(table, places))(q, k, v)


def example(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Random arguments for a trial: the same windows, fewer of them, and fewer heads of very large ones."""
    windows, groups = _counts(q, k)
    heads = groups * (q.shape[2] // k.shape[2])
    shapes = (windows, q.shape[1], heads, q.shape[3]), (windows, k.shape[1], groups, k.shape[3])
    arrays = (normal(shapes[x is not q], q.dtype, seed) for seed, x in enumerate((q, k, v)))
    chosen = None if reads is None else whole((windows, reads.shape[1]), k.shape[1])
    table = None if rotary is None else mx.array(rotary_table(rotary.shape[1], k.shape[-1], theta))
    scattered = None if places is None or rotary is None else whole((windows, k.shape[1]), rotary.shape[1])
    return *arrays, chosen, theta, table, scattered


def shape_class(
    q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, theta: float,
    rotary: mx.array | None = None, places: mx.array | None = None,
) -> Hashable:  # fmt: skip
    """The heads and the window decide; of the number of windows and reads only the power of two."""
    windows, groups = _counts(q, k)
    counts = bucket(windows), None if reads is None else bucket(reads.shape[1]), min(windows * q.shape[1], SMALL_ARRAY)
    table = None if rotary is None else (rotary.shape[1], places is None)
    return widest(), q.dtype, q.shape[2] // k.shape[2], groups, k.shape[1], k.shape[3], counts, table


def _counts(q: mx.array, k: mx.array) -> tuple[int, int]:
    """Windows and key heads of a trial: of 16 bits, it peaks at 24 bytes a score and 50 a number of q, k and v.

    Reads are no `SMALL_ARRAY`, where those of the arguments are none.
    """
    (_, pixels, groups, size), reads = k.shape, q.shape[1]
    repeat = q.shape[2] // groups
    each = 24 * repeat * reads * pixels + 50 * size * (repeat * reads + 2 * pixels)
    windows = trial_count(k.shape[0], groups * each, least=-(-SMALL_ARRAY // reads))
    return windows, trial_count(groups, windows * each, most=groups)


def standard() -> Mapping[str, tuple[Any, ...]]:
    """Image blocks of the presets: of `upw-120m`, whole and read out, and of `tiny`.

    32 windows, as the reference and its gradients keep 24 MB a window; training has 8 at a time.
    """
    return {
        "upw-120m bfloat16": _case(TRIAL_WINDOWS, 256, 12, 6, 64, mx.bfloat16),
        "upw-120m float32": _case(TRIAL_WINDOWS, 256, 12, 6, 64, mx.float32),
        "upw-120m read out": _case(TRIAL_WINDOWS, 256, 12, 6, 64, mx.bfloat16, reads=4),
        "tiny float32": _case(512, 16, 4, 2, 16, mx.float32),
    }


def small() -> Mapping[str, tuple[Any, ...]]:
    return {
        "P 256, d 64, H/G 2": _case(1, 256, 2, 1, 64, mx.float32),
        "the same, 4 read out": _case(1, 256, 2, 1, 64, mx.float32, reads=4),
        "P 16, rows and columns": (*_case(4, 16, 2, 1, 16, mx.float32)[:5], *_grid(4, 4, 16)),
    }


def _case(
    windows: int, pixels: int, heads: int, groups: int, size: int, dtype: mx.Dtype, reads: int = 0
) -> tuple[Any, ...]:
    kv = normal((windows, pixels, groups, size), dtype, 1)
    q = normal((windows, reads or pixels, heads, size), dtype, 0)
    return q, kv, normal(kv.shape, dtype, 2), whole((windows, reads), pixels) if reads else None, 5e5, None, None


def _grid(windows: int, side: int, size: int) -> tuple[mx.array, mx.array]:
    """A table by rows and columns, and windows that are cut off at the right."""
    row, column = np.divmod(np.arange(side**2)[:, None], side)
    table = rotary_table(side, size, 100.0)
    axes = np.where(np.arange(size // 2) % 2, table[:, row[:, 0]], table[:, column[:, 0]])
    order = np.argsort(column[:, 0] == side - 1, kind="stable")  # the last column is not there: any place will do
    return mx.array(axes), mx.array(np.broadcast_to(order, (windows, side**2)).astype(np.int32))


WINDOW_ATTENTION = Kernel(
    "window_attention",
    reference=reference,
    metal=launch,
    example=example,
    trained=True,
    constants=(5,),
    shape_class=shape_class,
    standard=standard,
    small=small,
    rival=fused,
    sources=SOURCES,
    narrow=narrow,
)
