"""The language block as a language model of mlx-lm, with its tokenizer.

D  hidden size    d  head size    V  words, with the six special ones
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..common import files
from ..common.errors import PixWordError
from ..inputs.tokenizer import Tokenizer
from ..model.args import ModelArgs
from ..model.layers import plain_weight
from ..model.network import PixWordModel
from ..model.origin import Origin
from .from_mlx_lm import NAMES, SPECIAL_IDS, halves_to_pairs, reorder
from .tokenizer_files import tokenizer_files


def save_for_mlx_lm(model: PixWordModel, tokenizer: Tokenizer | None, folder: Path) -> Path:
    """Write the language block as a model of mlx-lm; images are left out.

    Of a model that started as one of mlx-lm's, the words are the old ones again; of any other the special words stay.

    Raises:
        PixWordError: layers that no family of mlx-lm has, a tokenizer that counts otherwise, or a folder that holds
            something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PixWordError(f"--out {folder}: exists and is not an empty folder; name a new one")
    a, origin = model.args, model.origin
    first = origin.word_offset if origin else 0
    plain = _plain(model)
    weights = {_their_name(name): array for name, array in plain.items() if name.startswith(("layers.", "norm."))}
    table, head = plain["embed_words.weight"], plain["head.weight"][: a.vocab_size]
    weights["model.embed_tokens.weight"] = _without_special(table, origin)
    weights["lm_head.weight"] = _without_special(head, origin)
    family = _family_of(a)
    if family == "qwen3" and not a.qk_norm_weights:
        for n in range(a.num_layers):
            for name in ("q_norm", "k_norm"):
                weights[f"model.layers.{n}.self_attn.{name}.weight"] = mx.ones(a.head_size)
    reorder(weights, a.head_size, np.argsort(halves_to_pairs(a.head_size)))
    ids = origin.to_dict() if origin else dict(SPECIAL_IDS)
    ids.pop("word_offset", None)
    config = _their_config(a, family, a.vocab_size - first) | ids
    beside = {} if tokenizer is None else tokenizer_files(tokenizer, first, ids)
    files.make_folder(folder)
    text = (json.dumps(config, indent=2) + "\n").encode()
    files.write_file(folder / "config.json", lambda file: file.write(text))
    files.write_file(folder / "model.safetensors", lambda file: mx.save_safetensors(file, weights, {"format": "mlx"}))
    for name, contents in beside.items():
        files.write_file(folder / name, partial(_write, contents))
    files.sync_folder(folder)
    return folder


def _plain(model: PixWordModel) -> dict[str, mx.array]:
    """The model's weights, those in few bits as the numbers that they stand for."""
    weights, _ = model.plain_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            del weights[f"{name}.scales"], weights[f"{name}.biases"]
            weights[f"{name}.weight"] = plain_weight(module)
    return {name: array.astype(mx.float32) for name, array in weights.items()}


def _family_of(args: ModelArgs) -> str:
    if args.qk_norm:
        family, allowed = "qwen3", not (args.attention_bias or args.output_bias or args.mlp_bias or args.no_rope_every)
    elif args.attention_bias and not args.output_bias:
        family = "qwen2"
        allowed = not args.mlp_bias and not args.no_rope_every and args.head_size == args.hidden_size // args.num_heads
    else:
        family, allowed = "smollm3" if args.no_rope_every else "llama", args.attention_bias == args.output_bias
    if not allowed:
        raise PixWordError("no family of mlx-lm has these layers: biases, query norms or layers without RoPE together")
    return family


def _their_config(args: ModelArgs, family: str, words: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "intermediate_size": args.intermediate_size,
        "num_attention_heads": args.num_heads,
        "num_key_value_heads": args.num_kv_heads,
        "head_dim": args.head_size,
        "rms_norm_eps": args.rms_norm_eps,
        "vocab_size": words,
        "max_position_embeddings": args.max_seq_len,
        "rope_theta": args.rope_theta,
        "tie_word_embeddings": False,
    }
    if family in ("llama", "smollm3"):
        config |= {"attention_bias": args.attention_bias, "mlp_bias": args.mlp_bias}
    if family == "smollm3":
        config["no_rope_layer_interval"] = args.no_rope_every
    if args.rope_scaling == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": args.rope_factor}
    if args.rope_scaling == "llama3":
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": args.rope_factor,
            "low_freq_factor": args.rope_low_freq_factor,
            "high_freq_factor": args.rope_high_freq_factor,
            "original_max_position_embeddings": args.rope_context,
        }
    return config


def _their_name(name: str) -> str:
    back = {ours: theirs for theirs, ours in NAMES.items()}
    return "model." + ".".join(back.get(part, part) for part in name.split("."))


def _without_special(rows: mx.array, origin: Origin | None) -> mx.array:
    """``[V, D]`` to what mlx-lm has: without rows that were put before its words, whose own take what was learnt."""
    if origin is None:
        return rows
    kept = rows[origin.word_offset :] + 0
    for name, own in origin.to_dict().items():
        if name in SPECIAL_IDS and own < len(kept):
            kept[own] = rows[SPECIAL_IDS[name]]
    return kept


def _write(contents: bytes, file: BinaryIO) -> None:
    file.write(contents)
