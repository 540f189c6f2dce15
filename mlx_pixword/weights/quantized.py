"""Weights in few bits: how `config.json` says so, in mlx-lm's words, and how a model is prepared for such weights.

Projections are quantised, groups of a row sharing a scale and a bias; tables and norms are not. mlx-lm's key is
``"quantization": {"group_size": 64, "bits": 8, "mode": "affine"}``; a layer with other groups has an entry of its own.
"""

from collections.abc import Collection, Mapping
from typing import Any

import mlx.nn as nn

from ..common.errors import PixWordError
from ..common.settings import shown
from ..model.layers import GROUPS, Linear
from ..model.network import PixWordModel

BITS = (2, 3, 4, 5, 6, 8)
KEY = "quantization"


def quantize_model(model: PixWordModel, bits: int, group_size: int = 64) -> PixWordModel:
    """Quantise the projections of a model in place; layers whose width no group divides stay as they are.

    Args:
        model: with plain weights.
        bits: a weight, 8 or 4 commonly.
        group_size: weights that share a scale and a bias: 32, 64 or 128. Where it does not divide a layer's width, the
            next smaller one is taken.

    Raises:
        PixWordError: bits or groups that MLX does not have, a model that is quantised already, or no layer that fits.
    """
    _check(bits, group_size, "affine", "quantize")
    if quantization_of(model) is not None:
        raise PixWordError("the model is quantised already; start from its plain weights")
    nn.quantize(model, group_size, bits)
    if quantization_of(model) is None:
        raise PixWordError(
            f"no group of {', '.join(map(str, GROUPS))} weights divides the width of any layer, so none can be "
            f"quantised: hidden_size is {model.args.hidden_size}, intermediate_size {model.args.intermediate_size}"
        )
    return model


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """The value of ``quantization`` in `config.json` for a model as it is, or None if nothing in it is quantised."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)}
    each = {name: {"group_size": m.group_size, "bits": m.bits, "mode": m.mode} for name, m in found.items()}
    if not each:
        return None
    values = list(each.values())
    common = max(values, key=values.count)
    return common | {
        name.replace(".linear", ""): value for name, value in sorted(each.items()) if value != common
    }  # a layer inside an adapter is called `linear`


def prepare(model: PixWordModel, value: Any, names: Collection[str]) -> None:
    """Quantise the layers of a model whose weights come quantised, so that they can be loaded.

    Args:
        model: new, with plain layers.
        value: of ``quantization`` in `config.json`.
        names: of the weights there are; a layer with ``scales`` is quantised.

    Raises:
        PixWordError: a value that is malformed, or asks for what MLX does not have.
    """
    if not isinstance(value, Mapping):
        raise PixWordError(f"config.json: {KEY} must be an object with group_size and bits, got {shown(value)}")
    common = _parameters(value, KEY)

    def of_layer(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if not isinstance(layer, Linear) or f"{path}.scales" not in names:
            return False
        own = value.get(path)
        wanted = common if own is None else _parameters(own, f"{KEY}.{path}")
        if layer.weight.shape[1] % wanted["group_size"]:
            raise PixWordError(
                f"config.json: groups of {wanted['group_size']} do not divide the width of {path}, "
                f"{layer.weight.shape[1]}"
            )
        return wanted

    nn.quantize(model, class_predicate=of_layer)


def _parameters(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise PixWordError(f"config.json: {where} must be an object with group_size and bits, got {shown(value)}")
    found = {
        "group_size": value.get("group_size", 64),
        "bits": value.get("bits", 4),
        "mode": value.get("mode", "affine"),
    }
    _check(found["bits"], found["group_size"], found["mode"], f"config.json: {where}")
    return found


def _check(bits: Any, group_size: Any, mode: Any, where: str) -> None:
    if type(bits) is not int or bits not in BITS or type(group_size) is not int or group_size not in GROUPS:
        raise PixWordError(
            f"{where}: bits must be one of {', '.join(map(str, BITS))} and group_size one of "
            f"{', '.join(map(str, sorted(GROUPS)))}, got {shown(bits)} and {shown(group_size)}"
        )
    if mode != "affine":
        raise PixWordError(f"{where}: mode must be affine, got {shown(mode)}")
