"""Language models of mlx-lm as the language block; `to_mlx_lm.py` is the way back.

D  hidden size    d  head size    V  words, with the six special ones

mlx-lm loads the model; nothing of its folder is run. RoPE turns interleaved pairs here and the two halves of a head
there, unless `rope_traditional` says otherwise, so rows of queries and keys are put in another order. The model's words
follow the six special ones; rows of these are copied from the model's own where it has such.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..common import files
from ..common.errors import PixWordError
from ..common.settings import shown
from ..inputs.tokenizer import Tokenizer, load_tokenizer
from ..model.document import BOS, EOS, PAD, SPECIAL_WORDS, UNK
from ..model.network import PixWordModel
from ..model.origin import Origin

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
OFFSET = len(SPECIAL_WORDS)
SPECIAL_IDS = {"pad_token_id": PAD, "unk_token_id": UNK, "bos_token_id": BOS, "eos_token_id": EOS}  # later ones win
SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
NAMES = {  # theirs, under `model.layers.N.`: ours, under `layers.N.`
    "input_layernorm": "attention_norm",
    "self_attn": "attention",
    "post_attention_layernorm": "ffn_norm",
    "mlp": "ffn",
}


@dataclass(frozen=True)
class LanguageModel:
    """A language model of mlx-lm, in our names and order.

    Attributes:
        shape: fields of `ModelArgs` that follow from it.
        weights: of the language block and the norm, float32, and ``words``, ``head``: rows ``[V, D]``.
        tokenizer: its own, with the special words before its words.
        origin: what `config.json` keeps of it for the way back.
    """

    shape: dict[str, Any]
    weights: dict[str, mx.array]
    tokenizer: Tokenizer | None
    origin: Origin


def language_shape(folder: Path) -> dict[str, Any]:
    """Fields of `ModelArgs` that follow from a language model, read from its configuration alone."""
    config = _read_config(folder)
    if (family := config.get("model_type")) not in FAMILIES:
        raise PixWordError(f"{folder} is a model of the family {shown(family)}; known are {', '.join(FAMILIES)}")
    if config.get("model_file") is not None:
        raise PixWordError(
            f"{folder} wants to run a file of its own, {shown(config['model_file'])}; only weights, tokenizer and "
            "configuration are read"
        )
    try:
        return _shape(config, folder) | {"vocab_size": OFFSET + config["vocab_size"]}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise PixWordError(f"{folder}: config.json does not describe a language model: {error}") from error


def read_language_model(folder: Path) -> LanguageModel:
    """Read a model directory that mlx-lm loads.

    Raises:
        PixWordError: a model of another family, one with a RoPE that cannot be expressed, or a damaged one.
    """
    shape, config = language_shape(folder), _read_config(folder)
    model = _load(folder)
    found = {name: array.astype(mx.float32) for name, array in dict(tree_flatten(model.parameters())).items()}
    special = _special_ids(config)
    embed = found.pop("model.embed_tokens.weight")
    head = found.pop("lm_head.weight", embed)
    shape["vocab_size"] = OFFSET + len(embed)
    weights = {"words": _with_special(embed, special), "head": _with_special(head, special)}
    weights |= {_our_name(name): array for name, array in found.items()}
    if not config.get("rope_traditional", False):
        reorder(weights, shape["head_dim"], halves_to_pairs(shape["head_dim"]))
    words = [folder / name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).exists()]
    origin = Origin(OFFSET, **special)
    return LanguageModel(shape, weights, load_tokenizer(words[0]) if words else None, origin)


def language_origin(folder: Path) -> Origin:
    """What a model that starts from a language model remembers of it, read from its configuration alone."""
    return Origin(OFFSET, **_special_ids(_read_config(folder)))


def put_language_model(model: PixWordModel, language: LanguageModel) -> None:
    """Give a model, whose shape has been made for it, the language model's weights; pixel rows stay as they are."""
    args, own = model.args, dict(language.weights)
    words, head = own.pop("words"), own.pop("head")
    own["embed_words.weight"] = words
    own["head.weight"] = mx.concatenate([head, model.head.weight[args.vocab_size :]])
    model.load_weights(list(own.items()), strict=False)
    model.origin = language.origin
    mx.eval(model.parameters())


def halves_to_pairs(size: int) -> np.ndarray:
    """For each place of a head that turns interleaved pairs, the place in one that turns its halves; ``[d]``."""
    return np.arange(size).reshape(2, -1).T.ravel()


# --------------------------------------------------------------------------------------------------------------- shape


def _shape(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    heads, size, family = config.get("num_attention_heads", 0), config.get("hidden_size", 0), config["model_type"]
    for name in SIZES:
        if type(value := config.get(name)) is not int or value < 1:
            raise PixWordError(
                f"{folder}: config.json does not describe a language model: {name} must be a positive integer, got "
                f"{shown(value)}"
            )
    if "sliding_attention" in (config.get("layer_types") or []):
        raise PixWordError(f"{folder} has layers with sliding windows, which cannot be expressed")
    parameters = config.get("rope_parameters") or {}
    bias = bool(config.get("attention_bias", False)) and family not in ("qwen2", "qwen3")
    shape = {
        "hidden_size": size,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "num_layers": config["num_hidden_layers"],
        "intermediate_size": config["intermediate_size"],
        "rms_norm_eps": float(config["rms_norm_eps"]),
        "head_dim": config.get("head_dim") or size // heads,
        "attention_bias": bias or family == "qwen2",
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)) and family not in ("qwen2", "qwen3"),
        "qk_norm": family == "qwen3",
        "qk_norm_weights": family == "qwen3",
        "rope_theta": float(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0),
        "no_rope_every": _no_rope(config, folder) if family == "smollm3" else 0,
    }
    return shape | _scaling(config.get("rope_scaling") or parameters, folder)


def _scaling(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    kind = values.get("type") or values.get("rope_type", "default")
    if kind == "default":
        return {"rope_scaling": "none"}
    if kind == "linear":
        return {"rope_scaling": "linear", "rope_factor": float(values["factor"])}
    if kind != "llama3":
        raise PixWordError(f"{folder} scales its RoPE by {shown(kind)}; linear, llama3 and none can be expressed")
    return {
        "rope_scaling": "llama3",
        "rope_factor": float(values["factor"]),
        "rope_low_freq_factor": float(values.get("low_freq_factor", 1.0)),
        "rope_high_freq_factor": float(values.get("high_freq_factor", 4.0)),
        "rope_context": int(values.get("original_max_position_embeddings", 8192)),
    }


def _no_rope(config: Mapping[str, Any], folder: Path) -> int:
    """The interval of layers without RoPE, where they come at an interval."""
    layers, every = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(layers)]
    for interval in (0, *range(1, layers + 1)):
        if turned == [int(not interval or (n + 1) % interval != 0) for n in range(layers)]:
            return interval
    raise PixWordError(f"{folder}: its layers without RoPE come at no fixed interval, which cannot be expressed")


# ------------------------------------------------------------------------------------------------------------- weights


def _load(folder: Path) -> Any:
    """The model as mlx-lm builds it, in plain weights."""
    from mlx_lm.utils import dequantize_model, load_model  # mlx-lm takes over a second to import

    try:
        model, config = load_model(folder, lazy=True)
        if config.get("quantization"):
            model = dequantize_model(model)
        mx.eval(model.parameters())
        return model
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PixWordError(f"{folder}: mlx-lm cannot load it: {reason}") from error


def _our_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    return ".".join(NAMES.get(part, part) for part in parts)


def reorder(weights: dict[str, mx.array], size: int, order: np.ndarray) -> None:
    """Put the places of each head of queries and keys in another order, biases and norms too."""
    places = mx.array(order)
    for name, array in weights.items():
        parts = ["", *name.split(".")]  # tables have one part
        if parts[-2] in ("q_proj", "k_proj"):
            heads = array.reshape(-1, size, *array.shape[1:])
            weights[name] = heads[:, places].reshape(array.shape)
        elif parts[-2] in ("q_norm", "k_norm"):
            weights[name] = array[places]


def _with_special(rows: mx.array, special: Mapping[str, int | None]) -> mx.array:
    """``[V - 6, D]`` to ``[V, D]``: special words that the model has none of get small random rows."""
    before = 0.02 * mx.random.normal((OFFSET, rows.shape[1]))
    for name, place in SPECIAL_IDS.items():
        own = special[name]
        if own is not None and 0 <= own < len(rows):
            before[place] = rows[own]
    return mx.concatenate([before, rows])


def _special_ids(config: Mapping[str, Any]) -> dict[str, int | None]:
    return {name: _first_id(config.get(name)) for name in SPECIAL_IDS}


def _first_id(value: Any) -> int | None:
    """An id of a special word; some configurations have a list of them."""
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def _read_config(folder: Path) -> dict[str, Any]:
    return files.read_object(folder / "config.json", f"{folder} is no model directory")
