"""One row of each sequence through all layers of a block: on a GPU in one launch, where a layer takes fifteen.

B  rows             A  layers        D  hidden size    F  feed-forward width    J  keys that a token sees, at most
H  query heads      G  key heads     d  head size      E  numbers of all heads, (H + 2 G) d
"""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch.choose import dispatch
from .dispatch.kernel import Kernel, bucket, normal
from .dispatch.load import build_kernel

SIMDGROUPS = 8  # of the threadgroup that takes a row
MOST_FLOATS = 7_000  # of threadgroup memory, for the state and the widest product
LARGEST_HEAD = 128  # a lane keeps a sum for each of its numbers


class Shape(NamedTuple):
    """What the arrays' shapes do not say."""

    heads: int
    qk_norm: bool
    eps: float


def decode_step(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, angles: mx.array, bias: mx.array | None, count: int, shape: Shape,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """Pre-norm Llama layers, one after the other, for the next place of each sequence; `Layer` of model/layers.py.

    Args:
        state: ``[B, D]``.
        qkv, out, gate_up, down: ``[A, D, E]``, ``[A, H d, D]``, ``[A, D, 2 F]``, ``[A, F, D]``, the matrices of all
            layers, with the weights of norms folded in.
        keys, values: ``[A, B, G, J, d]``, turned; the first ``count`` places are seen, and the row's own.
        angles: float32 ``[B, d / 2, 2]``, cosine and sine of each pair at the row's place.
        bias: float32 ``[B, J]``, added to scores, or None.
        shape: heads, whether queries and keys are normed, and the norms' epsilon.

    Returns:
        the state after the last layer ``[B, D]``, and the row's keys and values ``[A, B, G, d]``.
    """
    return dispatch(DECODE_STEP, state, qkv, out, gate_up, down, keys, values, angles, bias, count, shape)


def reference(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, angles: mx.array, bias: mx.array | None, count: int, shape: Shape,
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
        seen = [mx.concatenate([cache[a, :, :, :count], own[:, :, None]], axis=2)
                for cache, own in ((keys, k), (values, v))]  # fmt: skip
        mask = None if bias is None else mx.pad(bias[:, None, None, :count], [(0, 0)] * 3 + [(0, 1)])
        y = mx.fast.scaled_dot_product_attention(
            q, *seen, scale=size**-0.5, mask=mask if mask is None else mask.astype(q.dtype)
        )
        state = state + y.reshape(rows, -1) @ out[a]
        gate, up = mx.split(mx.fast.rms_norm(state, None, shape.eps) @ gate_up[a], 2, axis=-1)
        state = state + (gate * mx.sigmoid(gate) * up) @ down[a]
    return state, mx.stack(own_keys), mx.stack(own_values)


def _turn(x: mx.array, angles: mx.array) -> mx.array:
    """RoPE of ``[B, n, d]`` by ``[B, d / 2, 2]``."""
    pairs, (cos, sin) = x.reshape(*x.shape[:2], -1, 2), (angles[:, None, :, 0], angles[:, None, :, 1])
    even, odd = pairs[..., 0], pairs[..., 1]
    return mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def launch(
    state: mx.array, qkv: mx.array, out: mx.array, gate_up: mx.array, down: mx.array, keys: mx.array,
    values: mx.array, angles: mx.array, bias: mx.array | None, count: int, shape: Shape,
) -> tuple[mx.array, mx.array, mx.array]:  # fmt: skip
    """The same by ``metal/decode_step.metal``."""
    layers, rows, groups, _, size = keys.shape
    inputs = {"state": state, "qkv": qkv, "out": out, "gate_up": gate_up, "down": down, "keys": keys, "values": values}
    inputs |= {"angles": angles, "eps": mx.array([shape.eps]), "count": mx.array([count])}
    inputs |= {} if bias is None else {"bias": bias}
    kernel = build_kernel(
        "decode_step", tuple(inputs), ("next", "new_keys", "new_values"), () if bias is None else ("BIAS",)
    )
    own = (layers, rows, groups, size)
    sizes = {"D": state.shape[1], "H": shape.heads, "G": groups, "S": size, "F": down.shape[1]}
    y, own_keys, own_values = kernel(
        inputs=list(inputs.values()),
        template=[
            ("T", state.dtype), *sizes.items(), ("SIMDGROUPS", SIMDGROUPS), ("QK_NORM", shape.qk_norm)
        ],
        grid=(32 * SIMDGROUPS * rows, 1, 1),
        threadgroup=(32 * SIMDGROUPS, 1, 1),
        output_shapes=[state.shape, own, own],
        output_dtypes=[state.dtype, keys.dtype, values.dtype],
    )  # fmt: skip
    return y, own_keys, own_values


def suits(hidden: int, heads: int, groups: int, size: int, wide: int) -> bool:
    """Whether the kernel can take layers of these widths: they have to fit into threadgroup memory."""
    floats = hidden + max((heads + 2 * groups) * size, 2 * wide) + 33 * SIMDGROUPS
    return floats <= MOST_FLOATS and size % 2 == 0 and size <= LARGEST_HEAD


def example(*args: Any) -> tuple[Any, ...]:
    """Random numbers of the same shapes, of the sizes that trained layers have."""
    *arrays, bias, count, shape = args
    scales = (1.0, *(array.shape[1] ** -0.5 for array in arrays[1:5]), 1.0, 1.0, 1.0)
    drawn = [
        (normal(array.shape, mx.float32, seed) * scale).astype(array.dtype)
        for seed, (array, scale) in enumerate(zip(arrays, scales, strict=True))
    ]
    return *drawn, None if bias is None else normal(bias.shape, mx.float32, 9), count, shape


def shape_class(*args: Any) -> Hashable:
    """The layers decide; of the numbers of rows and seen places only the power of two."""
    state, qkv, _, gate_up, _, keys, _, _, bias, count, shape = args
    widths = (qkv.shape, gate_up.shape, keys.shape[2], keys.shape[4], shape)
    return state.dtype, widths, bucket(len(state)), bucket(count + 1), bias is None


def standard() -> Mapping[str, tuple[Any, ...]]:
    """The language blocks of `tiny`, whose weights fit into a core's caches, and of `upw-120m`, whose do not."""
    return {
        "tiny, 1 row": _case(3, 1, 64, 4, 2, 16, 128, 258),
        "tiny, 16 rows": _case(3, 16, 64, 4, 2, 16, 128, 258),
        "upw-120m, 1 row": _case(12, 1, 768, 12, 6, 64, 2304, 199, mx.bfloat16),
    }


def small() -> Mapping[str, tuple[Any, ...]]:
    return {"tiny's language block": _case(3, 1, 64, 4, 2, 16, 128, 100)}


def _case(
    layers: int, rows: int, hidden: int, heads: int, groups: int, size: int, wide: int, places: int,
    dtype: mx.Dtype = mx.float32,
) -> tuple[Any, ...]:  # fmt: skip
    inputs, outputs = (hidden, heads * size, hidden, wide), ((heads + 2 * groups) * size, hidden, 2 * wide, hidden)
    shapes = [(rows, hidden), *((layers, i, o) for i, o in zip(inputs, outputs, strict=True))]
    shapes += [(layers, rows, groups, places, size)] * 2
    arrays = [mx.zeros(shape, dtype) for shape in shapes] + [mx.zeros((rows, size // 2, 2))]
    return example(*arrays, None, places - 1, Shape(heads, True, 1e-5))


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
