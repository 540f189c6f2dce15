"""Low-rank adapters (LoRA), made by mlx-lm's tuner and kept in its files, `adapters.safetensors` and a configuration.

mlx-lm's `linear_to_lora_layers` sees the language block, ``model.layers``. Layers of the image block are named in its
``keys`` in full, such as ``image_block.layers.0.attention.q_proj``; its own `load_adapters` follows these too.

Source: Hu et al., "LoRA", arXiv 2106.09685.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..common import files
from ..common.errors import PixWordError
from ..common.settings import named, shown
from ..model.image_block import ColorTable
from ..model.layers import Linear, plain_weight
from ..model.network import PixWordModel
from .safetensors import read_safetensors

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
MAX_RANK = 4096
BASE = "base_norms"  # in the configuration: what tells the model that adapters were trained on


def adapter_config(
    model: PixWordModel, rank: int, scale: float, dropout: float = 0.0, layers: int = 0, image_block: bool = False
) -> dict[str, Any]:
    """What `adapter_config.json` says of new adapters.

    Args:
        model: to be adapted.
        rank, scale, dropout: of the adapters, ``W + scale (A B)^T``.
        layers: the last layers of the language block that are adapted; 0 for all.
        image_block: adapt the image block too, and the colours' rows that images are read and written by.
    """
    inside = sorted({_bare(name) for layer in model.layers for name, m in layer.named_modules() if _adaptable(m)})
    local = [name for name, m in model.image_block.named_modules() if image_block and _adaptable(m)]
    keys = inside + sorted(f"image_block.{_bare(name)}" for name in local) + (["head"] if image_block else [])
    parameters = {"rank": rank, "scale": scale, "dropout": dropout, "keys": keys}
    count = min(layers or len(model.layers), len(model.layers))
    own = {BASE: base_norms(model)}
    return {"fine_tune_type": "lora", "num_layers": count, "lora_parameters": parameters, **own}


def base_norms(model: PixWordModel) -> str:
    """A digest of the weights of a model's norms, in float16: neither adapters nor few bits change these."""
    digest = hashlib.sha256()
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):
        if "norm." in name:
            digest.update(np.array(array.astype(mx.float16)).tobytes())
    return digest.hexdigest()[:16]


def add_adapters(model: PixWordModel, config: dict[str, Any]) -> PixWordModel:
    """Freeze a model and give it new adapters, which change nothing yet and are all that is trained.

    Raises:
        PixWordError: a configuration that is malformed, or of another model.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers  # mlx-lm takes over a second to import

    layers, parameters = _checked(config)
    if any(_is_adapted(m) for m in model.modules()):
        raise PixWordError("the model has adapters already; fuse them first (convert --fuse)")
    known = dict(model.named_modules()) | dict(model.layers[0].named_modules())
    for key in parameters["keys"] or []:
        if not _adaptable(known.get(key)):
            raise PixWordError(
                f"{CONFIG}: {named(key)} is no projection of this model; the adapters are of another one"
            )
    if layers > len(model.layers):
        raise PixWordError(
            f"{CONFIG}: num_layers is {layers} and the model has {len(model.layers)} language layers; the adapters are "
            "of another model"
        )
    model.freeze()
    linear_to_lora_layers(model, layers, {k: v for k, v in parameters.items() if v is not None})
    return model


def load_adapters(model: PixWordModel, folder: str | Path) -> PixWordModel:
    """Put adapters on a model, in place.

    Args:
        folder: with `adapters.safetensors` and `adapter_config.json`, from here or from mlx-lm.

    Raises:
        PixWordError: nothing there, malformed files, or adapters of another model.
    """
    folder = files.expand(Path(folder))
    config = files.read_object(folder / CONFIG, f"{folder} has no adapters")
    if not (folder / WEIGHTS).is_file():
        raise PixWordError(f"{folder} has no {WEIGHTS}; give a folder of adapters")
    weights = read_safetensors(folder / WEIGHTS)
    if config.get(BASE, own := base_norms(model)) != own:
        raise PixWordError(
            f"{folder}: they were trained on weights with the digest {shown(config[BASE])}, and this model's is "
            f"'{own}'; the adapters are of another model"
        )
    add_adapters(model, config)
    expected = adapter_weights(model)
    for name in sorted(set(expected) ^ set(weights)):
        problem = "is missing" if name in expected else "is unknown"
        raise PixWordError(f"{folder}: {named(name)} {problem}; the adapters are of another model")
    for name, array in weights.items():
        if array.shape != expected[name].shape or not mx.issubdtype(array.dtype, mx.floating):
            raise PixWordError(
                f"{folder}: {named(name)} is {array.dtype} {array.shape}, the model needs {expected[name].shape}; the "
                "adapters are of another model"
            )
    model.load_weights([(name, array.astype(mx.float32)) for name, array in weights.items()], strict=False)
    mx.eval(model.parameters())
    model.eval()
    return model


def save_adapters(model: PixWordModel, config: dict[str, Any], folder: Path) -> Path:
    """Write the adapters of a model; the folder appears complete or not at all."""
    draft = folder.parent / f".{folder.name}.{os.getpid()}"
    weights = dict(sorted(adapter_weights(model).items()))
    files.make_folder(draft)
    try:
        text = json.dumps(config, indent=2) + "\n"
        files.write_file(draft / CONFIG, lambda file: file.write(text.encode()))
        files.write_file(draft / WEIGHTS, lambda file: mx.save_safetensors(file, weights, {"format": "mlx"}))
        files.sync_folder(draft)
        files.move(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The arrays of the adapters, by name."""
    every = dict(tree_flatten(model.parameters()))
    return {name: array for name, array in every.items() if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b")}


def fuse(model: PixWordModel) -> PixWordModel:
    """Add the adapters to the weights they adapt, in place; a layer that was quantised is quantised again."""
    fused = [(name, _fused(m)) for name, m in model.named_modules() if _is_adapted(m)]
    model.update_modules(tree_unflatten(fused))
    mx.eval(model.parameters())
    return model


@contextmanager
def fused(model: PixWordModel) -> Iterator[PixWordModel]:
    """The model with its adapters added to the weights, inside the block alone."""
    adapted = [(name, m) for name, m in model.named_modules() if _is_adapted(m)]
    try:
        yield fuse(model)
    finally:
        model.update_modules(tree_unflatten(adapted))


def _fused(adapted: nn.Module) -> nn.Module:
    inner = adapted.linear
    if isinstance(inner, ColorTable):
        table = ColorTable(inner._colors, inner.weight.shape[1])
        table.weight = adapted()
        return table
    weight = plain_weight(adapted)
    layer = Linear(weight.shape[1], weight.shape[0])
    layer.weight = weight.astype(mx.float32)
    if "bias" in inner:
        layer.bias = inner.bias
    if isinstance(inner, nn.QuantizedLinear):
        quantised: nn.Module = layer.to_quantized(inner.group_size, inner.bits, inner.mode)
        return quantised
    return layer


def _adaptable(module: Any) -> bool:
    return isinstance(module, nn.Linear | nn.QuantizedLinear | ColorTable)


def _bare(name: str) -> str:
    """A layer's name without what mlx-lm puts behind it inside an adapter."""
    return name.removesuffix(".linear")


def _is_adapted(module: nn.Module) -> bool:
    return "lora_a" in module and "linear" in module


def _checked(config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Number of layers, 0 for all as -1 is in mlx-lm, and the tuner's parameters; raises `PixWordError`."""
    if (kind := config.get("fine_tune_type", "lora")) != "lora":
        raise PixWordError(f"{CONFIG}: fine_tune_type must be lora, got {shown(kind)}")
    layers, values = config.get("num_layers", -1), config.get("lora_parameters")
    if type(layers) is not int or not isinstance(values, dict):
        raise PixWordError(
            f"{CONFIG} must hold an integer num_layers and lora_parameters, got {shown(layers)} and {shown(values)}"
        )
    rank, scale, dropout = values.get("rank"), values.get("scale"), values.get("dropout", 0.0)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (scale, dropout))
    if type(rank) is not int or not 1 <= rank <= MAX_RANK or not numbers or not 0 <= dropout < 1:
        raise PixWordError(
            f"{CONFIG}: lora_parameters must hold rank, scale and dropout, got {shown(rank)}, {shown(scale)} and "
            f"{shown(dropout)}"
        )
    keys = values.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise PixWordError(f"{CONFIG}: keys must be a list of names, got {shown(keys)}")
    return max(layers, 0), {"rank": rank, "scale": float(scale or 0), "dropout": float(dropout), "keys": keys}
