"""Layers for rows: the function of `Layer`, whatever the shape, the type and the operations."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.model import Layer, PixWordModel
from mlx_pixword.rotary import rotary_table
from mlx_pixword.rows import Cache, Rows, lay_out, turns

Build = Callable[..., PixWordModel]
SHAPES: list[dict[str, Any]] = [
    {},
    {"qk_norm": True},
    {"qk_norm": True, "num_kv_heads": 4},
    {"num_kv_heads": 1, "rms_norm_eps": 0.1},
    {"qk_norm": True, "num_heads": 2, "num_kv_heads": 1, "rms_norm_eps": 0.1},
]


def uneven(layer: Layer) -> Layer:
    """A layer whose norms have weights."""
    for norm in (layer.attention_norm, layer.ffn_norm):
        norm.weight = mx.random.uniform(0.5, 2, norm.weight.shape)
    return layer


def one_by_one(model: PixWordModel, layer: Layer, x: mx.array, fast: bool | None) -> mx.array:
    """The layer on ``x [N, L, D]``, a place after the other."""
    args, (count, length, _) = model.args, x.shape
    rows, matrices = Rows(args, fast), lay_out(layer, args.compute_dtype)
    cache = Cache((count, args.num_kv_heads, length + 3, args.head_size), args.compute_dtype)
    turn, found = turns(args, np.arange(length)), []
    for place in range(length):
        heads = rows.heads(x[:, place], matrices.qkv)
        found.append(rows.combine(matrices, x[:, place], heads, turn[place], cache, place))
    return mx.stack(found, axis=1)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("changes", SHAPES)
def test_rows_one_by_one_are_the_layer_on_a_sequence(small_model: Build, changes: dict[str, Any], fast: bool) -> None:
    model = small_model(**changes)
    layer, x = uneven(model.layers[1]), 3 * mx.random.normal((3, 7, 32))
    rotary = mx.array(rotary_table(7, model.args.head_size, model.args.rope_theta))
    expected = layer(x, rotary, "causal")
    assert np.abs(np.array(one_by_one(model, layer, x, fast) - expected)).max() < 1e-5
    assert np.abs(np.array(expected - x)).max() > 0.3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("changes", SHAPES[:2])
def test_half_types_stay_near_float32(small_model: Build, changes: dict[str, Any], dtype: str) -> None:
    model = small_model(**changes, dtype=dtype)
    layer, x = uneven(model.layers[0]), mx.random.normal((2, 5, 32))
    rotary = mx.array(rotary_table(5, model.args.head_size, model.args.rope_theta))
    half = x.astype(model.args.compute_dtype)
    found, expected = one_by_one(model, layer, half, None), layer(x, rotary, "causal")
    assert found.dtype == model.args.compute_dtype
    assert np.abs(np.array((found - expected).astype(mx.float32))).max() < 0.06
    plain = layer(half, rotary, "causal")  # as far from float32 as the layer itself
    assert np.abs(np.array((found - plain).astype(mx.float32))).max() < 0.06


@pytest.mark.parametrize("fast", [False, True])
def test_a_bias_hides_places_of_single_rows(small_model: Build, fast: bool) -> None:
    """The second row sees nothing of its first two places; so it is the layer on what follows them."""
    model = small_model(qk_norm=True)
    args, layer = model.args, uneven(model.layers[0])
    rows, matrices, x = Rows(args, fast), lay_out(layer, mx.float32), mx.random.normal((2, 5, 32))
    cache = Cache((2, args.num_kv_heads, 5, args.head_size), mx.float32)
    bias = mx.array([[0.0] * 5, [-np.inf] * 2 + [0.0] * 3])[:, None, None]
    positions = np.arange(5)[:, None] - np.array([0, 2])  # [5, 2]
    for place in range(5):
        hidden = bias if place > 1 else None
        heads = rows.heads(x[:, place], matrices.qkv)
        turn = turns(args, positions[place].clip(0))
        y = rows.combine(matrices, x[:, place], heads, turn, cache, place, hidden)
    for row, start in ((0, 0), (1, 2)):
        rotary = mx.array(rotary_table(5 - start, args.head_size, args.rope_theta))
        expected = layer(x[row : row + 1, start:], rotary, "causal")[0, -1]
        assert np.abs(np.array(y[row] - expected)).max() < 1e-5


def test_tiny_states_are_normed_alike(small_model: Build) -> None:
    """Where eps decides, one factor for two norms is still both."""
    model = small_model(qk_norm=True)
    layer, x = uneven(model.layers[0]), 1e-3 * mx.random.normal((2, 4, 32))
    rotary = mx.array(rotary_table(4, model.args.head_size, model.args.rope_theta))
    expected = layer(x, rotary, "causal") - x
    assert np.abs(np.array(one_by_one(model, layer, x, False) - x - expected)).max() < 1e-5
    matrices = lay_out(layer, mx.float32)
    plain, fast = (Rows(model.args, f).heads(x[:, 0], matrices.qkv) for f in (False, True))
    assert np.abs(np.array(plain - fast)).max() < 1e-5
