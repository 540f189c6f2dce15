"""One row of each sequence through all layers of a block: on a GPU in one launch, where a layer takes fifteen.

B  rows             A  layers        D  hidden size    F  feed-forward width    J  keys that a token sees, at most
H  query heads      G  key heads     d  head size      E  numbers of all heads, (H + 2 G) d
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch.choose import dispatch
from .dispatch.kernel import Kernel, bucket, normal, trial_count
from .dispatch.load import build_kernel
from .span_build import MOST_REGISTERS

SIMDGROUPS = 8  # of the threadgroup that takes a row
MOST_FLOATS = 7_000  # of threadgroup memory, for the state and the widest product
LARGEST_HEAD = MOST_REGISTERS  # a lane keeps a sum for each of its numbers


class Shape(NamedTuple):
    """What the arrays' shapes do not say."""

    heads: int
    qk_norm: bool
    eps: float


def decode_step(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, recent_keys: mx.array, recent_values: mx.array, angles: mx.array, bias: mx.array | None,
    count: int, recent: int, shape: Shape,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """Pre-norm Llama layers, one after the other, for the next place of each sequence; `Layer` of model/layers.py.

    Args:
        state: ``[B, D]``.
        qkv, out, gate_up, down: ``[A, D, E]``, ``[A, H d, D]``, ``[A, D, 2 F]``, ``[A, F, D]``, the matrices of all
            layers, with the weights of norms folded in.
        keys, values: ``[A, B, G, J, d]``, turned; the first ``count`` places are seen, and the row's own.
        recent_keys, recent_values: ``[A, B, G, recents, d]``, of the places from ``count`` on; the first ``recent`` are
            seen. New ones go into copies of these, so that the large arrays are not copied at every step.
        angles: float32 ``[B, d / 2, 2]``, cosine and sine of each pair at the row's place.
        bias: float32 ``[B, J]``, added to scores, or None.
        count, recent: places seen.
        shape: heads, whether queries and keys are normed, and the norms' epsilon.

    Returns:
        the state after the last layer ``[B, D]``, and recent keys and values ``[A, B, G, recents, d]``, with the row's
        own at place ``recent`` and zeros behind.
    """
    return dispatch(
        DECODE_STEP, state, qkv, out, gate_up, down, keys, values, recent_keys, recent_values, angles, bias, count,
        recent, shape,
    )  # fmt: skip


def reference(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, recent_keys: mx.array, recent_values: mx.array, angles: mx.array, bias: mx.array | None,
    count: int, recent: int, shape: Shape,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """The same in MLX's own operations."""
    rows, groups, size, heads = len(state), keys.shape[2], keys.shape[4], shape.heads
    own_keys, own_values = [], []
    for a in range(len(qkv)):
        z = (mx.fast.rms_norm(state, None, shape.eps) @ qkv[a]).reshape(rows, -1, size)  # [B, H + 2 G, d]
        qk, v = z[:, : heads + groups], z[:, heads + groups :]
        qk = _turn(mx.fast.rms_norm(qk, None, shape.eps) if shape.qk_norm else qk, angles)
        q, k = qk[:, :heads, None], qk[:, heads:]  # [B, H, 1, d], [B, G, d]
        own_keys.append(k)
        own_values.append(v)
        seen = [mx.concatenate([cache[a, :, :, :count], new[a, :, :, :recent], own[:, :, None]], axis=2)
                for cache, new, own in ((keys, recent_keys, k), (values, recent_values, v))]  # fmt: skip
        mask = None if bias is None else mx.pad(bias[:, None, None, : count + recent], [(0, 0)] * 3 + [(0, 1)])
        y = mx.fast.scaled_dot_product_attention(
            q, *seen, scale=size**-0.5, mask=mask if mask is None else mask.astype(q.dtype)
        )
        state = state + y.reshape(rows, -1) @ out[a]
        gate, up = mx.split(mx.fast.rms_norm(state, None, shape.eps) @ gate_up[a], 2, axis=-1)
        state = state + (gate * mx.sigmoid(gate) * up) @ down[a]
    return state, _put(recent_keys, mx.stack(own_keys), recent), _put(recent_values, mx.stack(own_values), recent)


def _put(cache: mx.array, own: mx.array, place: int) -> mx.array:
    """``cache [A, B, G, recents, d]`` up to a place, where the row's own ``[A, B, G, d]`` are put, and then zeros."""
    behind = mx.zeros((*cache.shape[:3], cache.shape[3] - place - 1, cache.shape[4]), cache.dtype)
    return mx.concatenate([cache[:, :, :, :place], own[:, :, :, None].astype(cache.dtype), behind], axis=3)


def _turn(x: mx.array, angles: mx.array) -> mx.array:
    """RoPE of ``[B, n, d]`` by ``[B, d / 2, 2]``."""
    pairs, (cos, sin) = x.reshape(*x.shape[:2], -1, 2), (angles[:, None, :, 0], angles[:, None, :, 1])
    even, odd = pairs[..., 0], pairs[..., 1]
    return mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def launch(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, recent_keys: mx.array, recent_values: mx.array, angles: mx.array, bias: mx.array | None,
    count: int, recent: int, shape: Shape,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """The same by ``metal/decode_step.metal``."""
    rows, groups, size = keys.shape[1], keys.shape[2], keys.shape[4]
    inputs = {"state": state, "qkv": qkv, "out": out, "gate_up": gate_up, "down": down, "keys": keys, "values": values}
    inputs |= {"recent_keys": recent_keys, "recent_values": recent_values, "angles": angles}
    inputs |= {"eps": mx.array([shape.eps]), "count": mx.array([count, recent])}
    inputs |= {} if bias is None else {"bias": bias}
    kernel = build_kernel(
        "decode_step", tuple(inputs), ("next", "new_keys", "new_values"), () if bias is None else ("BIAS",)
    )
    sizes = {"D": state.shape[1], "H": shape.heads, "G": groups, "S": size, "F": down.shape[1]}
    y, new_keys, new_values = kernel(
        inputs=list(inputs.values()),
        template=[
            ("T", state.dtype), *sizes.items(), ("SIMDGROUPS", SIMDGROUPS), ("QK_NORM", shape.qk_norm)
        ],
        grid=(32 * SIMDGROUPS * rows, 1, 1),
        threadgroup=(32 * SIMDGROUPS, 1, 1),
        output_shapes=[state.shape, recent_keys.shape, recent_values.shape],
        output_dtypes=[state.dtype, keys.dtype, values.dtype],
    )  # fmt: skip
    return y, new_keys, new_values


def suits(hidden: int, heads: int, groups: int, size: int, wide: int) -> bool:
    """Whether the kernel can take layers of these widths: they have to fit into threadgroup memory."""
    floats = hidden + max((heads + 2 * groups) * size, 2 * wide) + 33 * SIMDGROUPS
    return floats <= MOST_FLOATS and size % 2 == 0 and 8 <= size <= LARGEST_HEAD


def example(*args: Any) -> tuple[Any, ...]:
    """Random numbers of the sizes that trained layers have, of fewer rows and layers where there are many."""
    *arrays, bias, count, recent, shape = args
    layers, rows = _counts(arrays)
    drawn = _random(arrays, layers, rows)
    return *drawn, None if bias is None else normal((rows, *bias.shape[1:]), mx.float32, 10), count, recent, shape


def _random(arrays: Sequence[mx.array], layers: int | None = None, rows: int | None = None) -> list[mx.array]:
    """Arrays like these, of some of their layers and rows or all."""
    layers, rows = len(arrays[5]) if layers is None else layers, len(arrays[0]) if rows is None else rows
    scales = (1.0, *(array.shape[1] ** -0.5 for array in arrays[1:5]), *[1.0] * 5)
    cuts = [(rows,), *[(layers,)] * 4, *[(layers, rows)] * 4, (rows,)]
    return [
        (normal((*cut, *array.shape[len(cut) :]), mx.float32, seed) * scale).astype(array.dtype)
        for seed, (array, scale, cut) in enumerate(zip(arrays, scales, cuts, strict=True))
    ]


def shape_class(*args: Any) -> Hashable:
    """The widths decide; of the numbers of rows and seen places only the power of two. Layers are all alike."""
    *arrays, bias, count, recent, shape = args
    (layers, rows), (state, qkv, _, gate_up, _, keys, *_) = _counts(arrays), arrays
    widths = (qkv.shape[1:], gate_up.shape[1:], keys.shape[2], keys.shape[4], arrays[7].shape[3], shape)
    return state.dtype, widths, layers, bucket(rows), bucket(count + recent + 1), bias is None


def _counts(arrays: Sequence[mx.array]) -> tuple[int, int]:
    """Layers and rows of a trial: arrays as they are, in float32, and what random numbers take on their way."""
    keys, width = arrays[5], arrays[0].dtype.size + 12
    cached = 2 * width * keys.size // (len(keys) * keys.shape[1])
    rows = trial_count(len(arrays[0]), cached)
    weights = width * sum(matrix.size // len(matrix) for matrix in arrays[1:5])
    return trial_count(len(keys), weights + rows * cached), rows


def standard() -> Mapping[str, tuple[Any, ...]]:
    """Blocks of `tiny`, whose weights fit into a core's caches, and of `upw-120m`, whose do not."""
    return {
        "tiny, 1 row": _case(3, 1, 64, 4, 2, 16, 128, 258),
        "tiny, 16 rows": _case(3, 16, 64, 4, 2, 16, 128, 258),
        "tiny, image block": _case(2, 1, 64, 4, 2, 16, 128, 16, recents=16),
        "upw-120m, 1 row": _case(12, 1, 768, 12, 6, 64, 2304, 199, mx.bfloat16),
    }


def small() -> Mapping[str, tuple[Any, ...]]:
    return {"tiny's language block": _case(3, 1, 64, 4, 2, 16, 128, 100)}


def _case(
    layers: int, rows: int, hidden: int, heads: int, groups: int, size: int, wide: int, places: int,
    dtype: mx.Dtype = mx.float32, recents: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    inputs, outputs = (hidden, heads * size, hidden, wide), ((heads + 2 * groups) * size, hidden, 2 * wide, hidden)
    shapes = [(rows, hidden), *((layers, i, o) for i, o in zip(inputs, outputs, strict=True))]
    shapes += [(layers, rows, groups, places, size)] * 2 + [(layers, rows, groups, recents, size)] * 2
    arrays = [mx.zeros(shape, dtype) for shape in shapes] + [mx.zeros((rows, size // 2, 2))]
    seen = places - 1 if recents == 1 else 0
    return *(_random(arrays)), None, seen, recents - 1, Shape(heads, True, 1e-5)


DECODE_STEP = Kernel(
    "decode_step",
    reference=reference,
    metal=launch,
    example=example,
    trained=False,
    shape_class=shape_class,
    standard=standard,
    small=small,
)
