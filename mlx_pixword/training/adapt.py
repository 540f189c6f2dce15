"""Runs that start from a model that is there: its shape and tokenizer, its weights, and adapters on it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..common.errors import PixWordError
from ..common.settings import flag
from ..config.adapt import AdaptArgs
from ..config.run import RunConfig
from ..model.args import ModelArgs
from ..model.document import SPECIAL_WORDS
from ..model.image_block import Table
from ..model.network import PixWordModel
from ..model.origin import Origin
from ..weights import quantized
from ..weights.directory import load, locate, locate_model
from ..weights.from_mlx_lm import OFFSET, language_origin, language_shape, put_language_model, read_language_model
from ..weights.lora import adapter_config, add_adapters
from .vocabulary import add_rows

# Other values of these fit the same weights.
_MAY_CHANGE = (*("dtype", "factored_colors", "linear_color_scale", "sine_color_scale", "image_size", "max_seq_len"),)


def with_init(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that starts from ``values["init"]``: its shape and tokenizer stand for what is not given.

    Args:
        values: what the user gave, flat.
        defaults: what stands for the remainder, over the preset; the model's own shape goes over these.

    Raises:
        PixWordError: no model there, or a shape that is not the model's.
    """
    shape = {name for name in values if name in _shape_names()}
    known = values.get("resume") and shape == _shape_names()  # a resumed run has its weights and all settings
    if values.get("language_from") is not None and not known:
        return {**defaults, **_with_language(values)}
    if values.get("init") is None or known:
        return {**defaults, **values}
    there = locate_model(values["init"])
    own = asdict(there.args)
    _check_bits(values["init"], there.is_quantized, values.get("lora", 0))
    for name in sorted(shape - {*_MAY_CHANGE, *(["vocab_size"] if values.get("new_words") else [])}):
        if values[name] != own[name]:
            raise PixWordError(
                f"{flag(name)} {values[name]}: the model {values['init']} has {own[name]}, and a model keeps its "
                "shape; leave it out"
            )
    found: dict[str, Any] = {"pixel_queries": there.pixel_queries} | own
    del found["factored_colors"]
    found |= {"boundary_weight": 0.0, "dense_weight": 0.0} if there.words_only else {}
    if there.args.vocab_size > len(SPECIAL_WORDS):
        found |= _tokenizer_of(values, values["init"], there.folder, ("tokenizer.model", "tokenizer.json"))
    return {"factored_colors": False, **defaults, **found, **values}


def _with_language(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run whose language block is a language model; its image block is small unless a width is given."""
    folder = locate(values["language_from"])
    own = language_shape(folder)
    for name in sorted(set(values) & set(own)):
        if values[name] != own[name]:
            raise PixWordError(
                f"{flag(name)} {values[name]}: the model {values['language_from']} has {own[name]}; leave it out"
            )
    width = values.get("image_hidden_size") or min(128, own["hidden_size"] // 4 * 4)
    small = {
        "image_hidden_size": width, "image_num_heads": 4, "image_num_kv_heads": 2, "image_intermediate_size": 2 * width,
        "zero_init": False, "word_weight": 1.0,
    }  # fmt: skip
    words = _tokenizer_of(values, values["language_from"], folder, ("tokenizer.json", "tokenizer.model"))
    return {**small, **own, **words, **values}


def _tokenizer_of(values: Mapping[str, Any], where: str, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The tokenizer of a model that a run starts from; one trained on the run's text would count words otherwise."""
    if values.get("tokenizer") is not None:
        return {}
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise PixWordError(
            f"{where} has words and no {' or '.join(names)}; give the tokenizer it was trained with, --tokenizer FILE"
        )
    return {"tokenizer": str(found[0])}


def _check_bits(name: str, is_quantized: bool, rank: int) -> None:
    if is_quantized and not rank:
        raise PixWordError(f"{name} is quantised and cannot be trained itself; train adapters on it, --lora 8")


def _shape_names() -> set[str]:
    return {f.name for f in fields(ModelArgs)}


def origin_of(adapt: AdaptArgs) -> Origin | None:
    """What the model of a new run remembers of a language model: the one it starts from, or the start of its start."""
    if adapt.language_from is not None:
        return language_origin(locate(adapt.language_from))
    return None if adapt.init is None else locate_model(adapt.init).origin


def start_from(model: PixWordModel, config: RunConfig, resumed: bool) -> None:
    """Give a new model the weights that its run starts from, and adapters where it trains these.

    A resumed run takes all weights from its checkpoint; adapters need to know of what kind the layers under them are.
    """
    adapt = config.adapt
    if adapt.language_from is not None:
        _start_from_language(model, adapt, resumed)
        return
    if adapt.init is None or (resumed and not adapt.lora):
        return
    loaded, processor = load(adapt.init, master=True)
    weights = dict(tree_flatten(loaded.parameters()))
    if adapt.new_words and processor.tokenizer is not None:
        add_rows(weights, loaded.args.vocab_size, processor.tokenizer, adapt.new_words.split())
    if (there := len(weights["embed_words.weight"])) != model.args.vocab_size:
        raise PixWordError(
            f"{adapt.init} has {there} words and the tokenizer {model.args.vocab_size}; give the model's own, "
            "--tokenizer FILE"
        )
    how = quantized.quantization_of(loaded)
    _check_bits(adapt.init, how is not None, adapt.lora)
    if how is not None:
        quantized.prepare(model, how, weights.keys())
    for name, module in model.named_modules():
        if isinstance(module, Table) and "factors" in module:
            weights[f"{name}.factors"] = mx.zeros_like(module.factors)  # the free rows are the whole table at first
    model.load_weights(list(weights.items()))
    if adapt.lora:
        add_adapters(model, adapters_of(model, adapt))


def _start_from_language(model: PixWordModel, adapt: AdaptArgs, resumed: bool) -> None:
    if not resumed or adapt.lora:
        put_language_model(model, read_language_model(locate(adapt.language_from or "")))
    if adapt.lora:
        add_adapters(model, adapters_of(model, adapt))
        for part in (model.image_block, model.embed_words, model.head):
            part.unfreeze()
    if adapt.lora or adapt.freeze_language:
        for kept in (*([] if adapt.lora else model.layers), model.norm):
            kept.freeze()
        for table in (model.embed_words, model.head):
            table.freeze_rows(OFFSET, model.args.vocab_size)


def adapters_of(model: PixWordModel, adapt: AdaptArgs) -> dict[str, Any]:
    """What `adapter_config.json` says of a run's adapters."""
    return adapter_config(
        model, adapt.lora, adapt.lora_scale, adapt.lora_dropout, adapt.lora_layers, adapt.lora_image_block
    )
