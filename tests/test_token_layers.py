"""Layers for token steps: the function of `Layer`, whatever the shape, the type and the operations."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inference.token_layers import TokenLayers, lay_out
from mlx_pixword.inference.token_layers_numpy import NumpyTokenLayers
from mlx_pixword.model.layers import Layer, plain_weight
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.rotary import rotary_table

Build = Callable[..., PixWordModel]
SHAPES: list[dict[str, Any]] = [
    {},
    {"qk_norm": True},
    {"qk_norm": True, "num_kv_heads": 4},
    {"num_kv_heads": 1, "rms_norm_eps": 0.1},
    {"qk_norm": True, "num_heads": 2, "num_kv_heads": 1, "rms_norm_eps": 0.1},
    {"attention_bias": True, "head_dim": 12},
    {"attention_bias": True, "output_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1},
    {"qk_norm": True, "qk_norm_weights": True, "head_dim": 16},
    {"qk_norm": True, "qk_norm_weights": True, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1},
]


def uneven(layer: Layer) -> Layer:
    """A layer whose norms have weights, and whose biases are large."""
    for _, module in layer.named_modules():
        if isinstance(module, nn.RMSNorm):
            module.weight = mx.random.uniform(0.5, 2, module.weight.shape)
        if "bias" in module:
            module.bias = mx.random.normal(module.bias.shape)
    return layer


def one_by_one(rows: TokenLayers, layer: Layer, x: mx.array) -> mx.array:
    """The layer on ``x [N, L, D]``, a place after the other."""
    count, length, _ = x.shape
    matrices, cache, found = rows.laid_out(layer), rows.new_cache(count, length + 3), []
    for place in range(length):
        states, turn = rows.keep(x[:, place]), rows.turns(np.array([place]))
        y = rows.combine(matrices, states, rows.heads(states, matrices), turn, cache, place)
        found.append(mx.array(y))
    return mx.stack(found, axis=1)


@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
@pytest.mark.parametrize("changes", SHAPES)
def test_rows_one_by_one_are_the_layer_on_a_sequence(
    small_model: Build, changes: dict[str, Any], kind: type[TokenLayers]
) -> None:
    model = small_model(**changes)
    layer, x = uneven(model.layers[1]), 3 * mx.random.normal((3, 7, 32))
    rotary = mx.array(rotary_table(7, model.args.head_size, model.args.rope_theta))
    expected = layer(x, rotary, "causal")
    assert np.abs(np.array(one_by_one(kind(model.args), layer, x) - expected)).max() < 1e-5
    assert np.abs(np.array(expected - x)).max() > 0.3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("changes", SHAPES[:2])
def test_half_types_stay_near_float32(small_model: Build, changes: dict[str, Any], dtype: str) -> None:
    model = small_model(**changes, dtype=dtype)
    layer, x = uneven(model.layers[0]), mx.random.normal((2, 5, 32))
    rotary = mx.array(rotary_table(5, model.args.head_size, model.args.rope_theta))
    half = x.astype(model.args.compute_dtype)
    found, expected = one_by_one(TokenLayers(model.args), layer, half), layer(x, rotary, "causal")
    assert found.dtype == model.args.compute_dtype
    assert np.abs(np.array((found - expected).astype(mx.float32))).max() < 0.06
    plain = layer(half, rotary, "causal")  # as far from float32 as the layer itself
    assert np.abs(np.array((found - plain).astype(mx.float32))).max() < 0.06


@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
def test_a_bias_hides_places_of_single_rows(small_model: Build, kind: type[TokenLayers]) -> None:
    """The second row sees nothing of its first two places; so it is the layer on what follows them."""
    model = small_model(qk_norm=True)
    args, layer = model.args, uneven(model.layers[0])
    rows, x = kind(args), mx.random.normal((2, 5, 32))
    matrices, cache = rows.laid_out(layer), rows.new_cache(2, 5)
    bias = rows.keep(mx.array([[0.0] * 5, [-np.inf] * 2 + [0.0] * 3])[:, None, None])
    positions = np.arange(5)[:, None] - np.array([0, 2])  # [5, 2]
    for place in range(5):
        states, turn = rows.keep(x[:, place]), rows.turns(positions[place].clip(0))
        hidden = bias if place > 1 else None
        y = rows.combine(matrices, states, rows.heads(states, matrices), turn, cache, place, hidden)
    for row, start in ((0, 0), (1, 2)):
        rotary = mx.array(rotary_table(5 - start, args.head_size, args.rope_theta))
        expected = layer(x[row : row + 1, start:], rotary, "causal")[0, -1]
        assert np.abs(np.array(y[row]) - np.array(expected)).max() < 1e-5


def test_tiny_states_are_normed_alike(small_model: Build) -> None:
    """Where eps decides, one factor for two norms is still both."""
    model = small_model(qk_norm=True, rms_norm_eps=0.1)
    layer, x = uneven(model.layers[0]), 0.1 * mx.random.normal((2, 4, 32))
    found = [np.array(kind(model.args).keep(x[:, 0])) for kind in (TokenLayers, NumpyTokenLayers)]
    for n, kind in enumerate((TokenLayers, NumpyTokenLayers)):
        rows = kind(model.args)
        found[n] = np.array(rows.heads(rows.keep(x[:, 0]), rows.laid_out(layer)))
    assert np.abs(found[0] - found[1]).max() < 1e-5
    assert (found[0][:, :6] ** 2).mean() < 0.7  # of queries and keys; without eps it would be 1


def test_large_gates_overflow_to_nothing(small_model: Build) -> None:
    rows = NumpyTokenLayers(small_model().args)
    with np.errstate(over="ignore"):
        found = rows._swiglu(np.array([[-1000.0, 1000.0, 0.5, 2.0, 3.0, 4.0]], np.float32))
    expected = [0, 3000, 0.5 / (1 + np.exp(-0.5)) * 4]
    assert found[0].tolist() == pytest.approx(expected)


def test_a_quantised_layer_is_laid_out_dequantised(small_model: Build) -> None:
    model = small_model(hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128)
    expected = lay_out(model.layers[0], mx.float32)
    nn.quantize(model, group_size=32, bits=8)
    for found, wanted in zip(lay_out(model.layers[0], mx.float32)[:4], expected[:4], strict=True):
        step = 2 * float(mx.abs(wanted).max()) / 255  # of a group, at most
        assert 0 < float(mx.abs(found - wanted).max()) < step


def test_a_lora_layer_is_laid_out_as_its_sum(small_model: Build) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = small_model()
    linear_to_lora_layers(model, 1, {"rank": 4, "scale": 3.0, "dropout": 0.0})
    adapted = model.layers[-1].attention.o_proj
    adapted.lora_b = mx.random.normal(adapted.lora_b.shape)
    x = mx.random.normal((5, adapted.lora_a.shape[0]))
    assert mx.allclose(adapted(x), x @ lay_out(model.layers[-1], mx.float32).out, atol=1e-5)


def test_a_layer_without_a_single_matrix_is_refused() -> None:
    with pytest.raises(PixWordError, match="Embedding cannot be used one token at a time"):
        plain_weight(nn.Embedding(3, 4))


@pytest.mark.parametrize("bits", [0, 8])
def test_adapters_on_a_layer_with_biases_leave_these(small_model: Build, bits: int) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = small_model(attention_bias=True, qk_norm=True, qk_norm_weights=True, intermediate_size=64)
    layer, x = uneven(model.layers[-1]), mx.random.normal((2, 5, 32))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    linear_to_lora_layers(model, 1, {"rank": 4, "scale": 3.0, "dropout": 0.0})
    plain = layer(x, rotary := mx.array(rotary_table(5, 8, model.args.rope_theta)), "causal")
    for _, module in layer.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    expected = np.array(layer(x, rotary, "causal"))
    assert np.abs(expected - np.array(plain)).max() > 0.1
    for kind in (TokenLayers, NumpyTokenLayers):
        assert np.abs(np.array(one_by_one(kind(model.args), layer, x)) - expected).max() < 1e-4
