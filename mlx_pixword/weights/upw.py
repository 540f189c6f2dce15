"""Checkpoints of the authors' program (UPW): read, checked, and built into our model.

V  words, K  pix tokens      D  hidden size      d  head size, D / H      G  key heads      F  feed-forward width

Every size but the number of heads is read from the shapes of the weights. Source of the names: Llama's own program,
which UPW (arXiv 2605.14028) extends by `imgblk.`.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError
from ..model.args import ModelArgs
from ..model.network import PixWordModel
from ..pixels.colors import FOLD_FACTORS, num_pix_tokens
from ..pixels.windows import check_geometry
from .safetensors import read_safetensors

WRAPPERS = ("module.", "model.")  # what data-parallel training and nested checkpoints put before every key


SAFE_TORCH = (2, 10)  # older ones have known holes in weights_only
UNUSED = "imgblk.norm.weight"  # stored, never applied: the image block has no final norm


TOP_NAMES = {
    "tok_embeddings.weight": "embed_words.weight",
    "imgblk.pix_emb.weight": "image_block.embed_pixels.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
}


LAYER_NAMES = {  # under `layers.N.` and `imgblk.layers.N.`, without `.weight`
    "attention_norm": "attention_norm",
    "attention.wq": "attention.q_proj",
    "attention.wk": "attention.k_proj",
    "attention.wv": "attention.v_proj",
    "attention.wo": "attention.o_proj",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn.gate_proj",
    "feed_forward.w3": "ffn.up_proj",
    "feed_forward.w2": "ffn.down_proj",
}


def read_checkpoint(path: Path) -> dict[str, mx.array]:
    """Weights of a `.safetensors` or `.pth` file under UPW's names, float32; `module.` and `model.` are taken off."""
    if not path.is_file():
        raise PixWordError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        found = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        found = _read_torch(path)
    else:
        raise PixWordError(f"{path}: expected a .safetensors or a .pth file")
    weights = {_bare(key): value for key, value in found.items()}
    if len(weights) < len(found):
        raise PixWordError(f"{path}: two keys are the same without {' and '.join(WRAPPERS)}; keep one set of weights")
    return weights


def _bare(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def _read_safetensors(path: Path) -> dict[str, mx.array]:
    try:
        found = read_safetensors(path)
        mx.eval(found)  # read lazily: what cannot be read should fail here
    except RuntimeError as error:
        raise PixWordError(f"{path}: cannot be read: {_first_line(error)}") from error
    for key, value in found.items():
        if not mx.issubdtype(value.dtype, mx.floating):
            raise PixWordError(f"{path}: {key} holds {value.dtype}, expected floating-point weights")
    return {key: value.astype(mx.float32) for key, value in found.items()}


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version such as 2.10.0+cpu."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split(".")[:2])


def _read_torch(path: Path) -> dict[str, mx.array]:
    """A pickle, so only ever read with ``weights_only=True``, which builds tensors and nothing else."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise PixWordError(f"{path}: reading .pth needs PyTorch; pip install torch, or use safetensors") from error
    if _version(torch.__version__) < SAFE_TORCH:
        raise PixWordError(
            f"{path}: PyTorch {torch.__version__} can be made to run code by a .pth even with weights_only; "
            "pip install 'torch>=2.10', or use safetensors"
        )
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        raise PixWordError(f"{path}: PyTorch cannot read it as weights: {_first_line(error)}") from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict):
        raise PixWordError(f"{path}: expected a dict of tensors, got {type(found).__name__}")
    return {str(key): _from_torch(str(key), value) for key, value in found.items()}


def _from_torch(key: str, value: Any) -> mx.array:
    if not hasattr(value, "detach"):
        raise PixWordError(f"{key}: expected a tensor, got {type(value).__name__}")
    return mx.array(np.asarray(value.detach().float().numpy()))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_args(weights: dict[str, mx.array], heads: int, image_size: int = 224, window_size: int = 16) -> ModelArgs:
    """Sizes of a checkpoint, from the shapes of its weights.

    Args:
        weights: under UPW's names.
        heads: query heads; shapes do not tell.
        image_size, window_size: ``S`` and ``w``, pixels; shapes do not tell them either.
    """
    words, size = _shape(weights, "tok_embeddings.weight")
    pixels, _ = _shape(weights, "imgblk.pix_emb.weight")
    keys, _ = _shape(weights, "layers.0.attention.wk.weight")
    intermediate, _ = _shape(weights, "layers.0.feed_forward.w1.weight")
    check_geometry(image_size, window_size)
    if heads < 1 or size % heads or size // heads % 2:
        raise PixWordError(f"--heads {heads} must divide the width of tok_embeddings.weight, {size}, into even heads")
    if keys % (size // heads) or heads % max(1, keys // (size // heads)):
        raise PixWordError(
            f"layers.0.attention.wk.weight has {keys} rows: with --heads {heads} expected a multiple of the head size "
            f"{size // heads} that divides {size}; try another --heads"
        )
    return ModelArgs(
        vocab_size=words,
        fold_factor=_fold_factor(pixels - 1),
        image_size=image_size,
        window_size=window_size,
        hidden_size=size,
        num_heads=heads,
        num_kv_heads=keys // (size // heads),
        num_layers=_count_layers(weights, ""),
        image_layers=_count_layers(weights, "imgblk."),
        intermediate_size=intermediate,
        max_seq_len=max(1024, 2 * (image_size // window_size) ** 2),  # unknown too; a whole image must fit
    )


def _shape(weights: dict[str, mx.array], key: str) -> tuple[int, int]:
    if key not in weights:
        raise PixWordError(f"{key} is missing; expected the weights of the authors' program")
    if weights[key].ndim != 2 or 0 in weights[key].shape:
        raise PixWordError(f"{key} has shape {tuple(weights[key].shape)}, expected a matrix")
    rows, columns = weights[key].shape
    return rows, columns


def _fold_factor(num_pix: int) -> int:
    """``f`` from ``K = (256 / f)^3``."""
    for fold_factor in FOLD_FACTORS:
        if num_pix_tokens(fold_factor) == num_pix:
            return fold_factor
    raise PixWordError(
        f"imgblk.pix_emb.weight has {num_pix + 1} rows, expected (256 / f)^3 + 1 for a power of two f, "
        f"such as {num_pix_tokens(16) + 1}"
    )


def _count_layers(weights: dict[str, mx.array], prefix: str) -> int:
    """Distinct layer numbers; a gap among them shows up as a missing key."""
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    return max(1, len({match[1] for key in weights if (match := pattern.match(key))}))


def key_table(args: ModelArgs) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every key of a UPW checkpoint: our name for it, and its shape."""
    d, f, g = args.hidden_size, args.intermediate_size, args.num_kv_heads * args.head_size
    rows = {"attention.wk": g, "attention.wv": g, "feed_forward.w1": f, "feed_forward.w3": f}
    shapes = {"embed_words": args.vocab_size, "image_block.embed_pixels": args.num_pix + 1}
    shapes["head"] = args.vocab_size + args.num_pix
    table: dict[str, tuple[str, tuple[int, ...]]] = {}
    for theirs, ours in TOP_NAMES.items():
        table[theirs] = (ours, (d,) if ours == "norm.weight" else (shapes[ours.removesuffix(".weight")], d))
    for prefix, block, layers in (("", "", args.num_layers), ("imgblk.", "image_block.", args.image_layers)):
        for n in range(layers):
            for theirs, ours in LAYER_NAMES.items():
                shape = (d,) if theirs.endswith("norm") else (rows.get(theirs, d), f if theirs.endswith("w2") else d)
                table[f"{prefix}layers.{n}.{theirs}.weight"] = (f"{block}layers.{n}.{ours}.weight", shape)
    return table


def build_model(weights: dict[str, mx.array], args: ModelArgs) -> PixWordModel:
    """The model that a UPW checkpoint describes; ``PixWordError`` names the first key that does not belong."""
    table = key_table(args)
    for key, (_, shape) in table.items():
        if key not in weights:
            raise PixWordError(f"{key} is missing, expected shape {shape}")
        if tuple(weights[key].shape) != shape:
            raise PixWordError(f"{key} has shape {tuple(weights[key].shape)}, expected {shape}")
    if extra := sorted(set(weights) - set(table) - {UNUSED}):
        raise PixWordError(f"{extra[0]} does not belong to the model, expected only {len(table)} known weights")
    model = PixWordModel(args)
    model.load_weights([(ours, weights[theirs]) for theirs, (ours, _) in table.items()])
    mx.eval(model.parameters())
    return model
