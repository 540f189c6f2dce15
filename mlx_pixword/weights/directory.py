"""Model directories: `config.json`, safetensors and a tokenizer file, on disk or on the Hugging Face hub."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
from mlx.utils import tree_flatten

from ..common import files
from ..common.errors import PixWordError
from ..common.random_state import kept_random_state
from ..common.settings import named, shown
from ..common.threads import outlive_this_thread
from ..inputs.processor import Processor
from ..inputs.tokenizer import Tokenizer, load_tokenizer
from ..model.args import DTYPES, ModelArgs, parameters
from ..model.calibration import KEY as CALIBRATION
from ..model.calibration import Calibration
from ..model.network import PixWordModel
from ..model.origin import KEY as ORIGIN
from ..model.origin import Origin
from . import quantized
from .lora import load_adapters
from .safetensors import read_safetensors, read_shapes

PATTERNS = ["*.json", "*.safetensors", "tokenizer.model"]  # all that is ever downloaded
WORDS_ONLY = "_words_only"  # whether it was trained to read alone
TRAINED_QUERIES = "_pixel_queries"  # how the model was trained; an underscore key is no part of its shape
SHARD_BYTES = 5 * 10**9
SHIPPED = Path(__file__).parents[1] / "pretrained" / "reader"  # the model that comes with the library


def load(
    path_or_repo: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    master: bool = False,
    adapter_path: str | Path | None = None,
) -> tuple[PixWordModel, Processor]:
    """Load a model and its processor. MLX's global random state stays as it is.

    Args:
        path_or_repo: a model directory, or a repository on the hub such as ``owner/name``; by default the reader that
            comes with the library.
        revision: branch, tag or commit of a repository.
        dtype: compute type instead of the configuration's: float32, bfloat16, float16 or auto.
        master: keep the weights in float32 whatever the compute type, as training needs.
        adapter_path: a folder of adapters (LoRA) to put on the model, as mlx-lm's `load` has it.

    Raises:
        PixWordError: nothing there, an unknown configuration key, a truncated file, or weights that do not fit.

    Example:
        >>> model, processor = pw.load("runs/plates/final")
    """
    outlive_this_thread()
    folder = shipped_reader(revision) if path_or_repo is None else locate(path_or_repo, revision)
    _check_kinds(folder)
    config = _read_config(folder / "config.json") | ({} if dtype is None else {"dtype": dtype})
    args, shards = ModelArgs.from_dict(config), _shards(folder)
    _check_size(args, shards, folder)
    with kept_random_state():
        model = _model(config, args, shards, folder, master, adapter_path)
    words = [folder / name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).exists()]
    tokenizer = load_tokenizer(words[0]) if words else None
    if tokenizer is not None and model.origin is not None:
        tokenizer.vocab_size = max(tokenizer.vocab_size, args.vocab_size)  # its table may have rows for no word
    return model, Processor(model.args, tokenizer)


def _model(
    config: dict[str, Any], args: ModelArgs, shards: list[Path], folder: Path, master: bool,
    adapter_path: str | Path | None,
) -> PixWordModel:  # fmt: skip
    model = PixWordModel(args, _trained_queries(config))
    model.calibration = Calibration.from_config(config)
    model.origin = Origin.from_config(config)
    model.words_only = _is_words_only(config)
    _load_weights(model, shards, folder, config.get(quantized.KEY), master)
    if adapter_path is not None:
        load_adapters(model, adapter_path)
    return model


def save_model(
    model: PixWordModel, tokenizer: Tokenizer | None, directory: str | Path, beside: Mapping[str, bytes] | None = None,
    half: bool = False,
) -> Path:  # fmt: skip
    """Write a model directory; it appears complete or not at all. Factored colours become plain tables.

    ``beside`` are other files by their path in it, such as a model card. With ``half`` all floats are float16.

    Raises:
        PixWordError: the directory exists and is not empty.
    """
    directory = files.expand(Path(directory))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PixWordError(f"{directory} exists already; choose another folder")
    draft = directory.parent / f".{directory.name}.{os.getpid()}"
    files.make_folder(draft)
    try:
        weights, args = model.plain_weights()
        config: dict[str, Any] = {"model_type": "pixword", "architectures": [type(model).__name__]}
        config |= {TRAINED_QUERIES: model.pixel_queries, **args.to_dict()}
        config |= {CALIBRATION: model.calibration.to_dict()} if model.calibration != Calibration() else {}
        config |= {WORDS_ONLY: True} if model.words_only else {}
        config |= {} if model.origin is None else {ORIGIN: model.origin.to_dict()}
        if (how := quantized.quantization_of(model)) is not None:
            config |= {quantized.KEY: how, "quantization_config": how}  # both, as mlx-lm has it
            weights = {name: _small(name, array) for name, array in weights.items()}
        weights = {name: _half(name, array) for name, array in weights.items()} if half else weights
        files.write_file(draft / "config.json", lambda file: file.write(_json(config)))
        _save_weights(weights, draft)
        if tokenizer is not None:
            contents = tokenizer.contents
            files.write_file(draft / tokenizer.filename, lambda file: file.write(contents))
        for name, more in (beside or {}).items():
            files.make_folder((draft / name).parent)
            files.write_file(draft / name, partial(_write, more))
        files.sync_folder(draft)
        files.move(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


@dataclass(frozen=True)
class Located:
    """What the configuration of a model says.

    Attributes:
        folder: where it is.
        args: its shape.
        pixel_queries: query pixels a window that it was trained with.
        words_only: whether it was trained to read alone.
        origin: what it remembers of a language model.
        is_quantized: whether its projections are kept in few bits.
    """

    folder: Path
    args: ModelArgs
    pixel_queries: int
    words_only: bool
    origin: Origin | None
    is_quantized: bool


def locate_model(path_or_repo: str | Path, revision: str | None = None) -> Located:
    """The folder of a model, downloaded if need be, and what its `config.json` says; no weights are read."""
    folder = locate(path_or_repo, revision)
    _check_kinds(folder)
    config = _read_config(folder / "config.json")
    args, origin = ModelArgs.from_dict(config), Origin.from_config(config)
    bits = config.get(quantized.KEY) is not None
    return Located(folder, args, _trained_queries(config), _is_words_only(config), origin, bits)


def shipped_reader(revision: str | None = None) -> Path:
    """The folder of the model that comes with the library."""
    if revision is not None:
        raise PixWordError(f"revision {revision} is of a repository on the hub; give the repository too")
    if not (SHIPPED / "config.json").is_file():
        raise PixWordError(
            "this copy of mlx-pixword comes without its reader; name a model: --model DIR_OR_REPO, in Python "
            "pw.load(DIR_OR_REPO)"
        )
    return SHIPPED


def locate(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, downloaded if need be."""
    path = files.expand(Path(path_or_repo))
    if path.is_dir():
        return path
    name = str(path_or_repo)
    if name.count("/") != 1 or path.exists() or name.startswith((".", "/", "~")):
        raise PixWordError(f"no model at {name}: not a folder, and not a hub repository such as owner/name")
    import huggingface_hub  # 0.3 s, needed for downloads alone

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=["*/*"])
        )
    except (
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.LocalEntryNotFoundError,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PixWordError(f"no folder {name}, and the hub gave no repository of that name: {reason}") from error


def _check_kinds(folder: Path) -> None:
    """Whoever opens a pipe waits until somebody writes to it."""
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            if path.exists() and not path.is_file():
                raise PixWordError(f"{path} is no file; a model directory holds files alone")


def _read_config(path: Path) -> dict[str, Any]:
    for name in ("final", "best"):
        if not path.exists() and (path.parent / name / path.name).is_file():
            raise PixWordError(f"{path.parent} is the folder of a run; its model is {path.parent / name}")
    return files.read_object(path, f"{path.parent} is no model directory")


def _trained_queries(config: dict[str, Any]) -> int:
    value = config.get(TRAINED_QUERIES, 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise PixWordError(f"config.json: {TRAINED_QUERIES} must be an integer from 0, got {shown(value)}")
    return value


def _is_words_only(config: dict[str, Any]) -> bool:
    value = config.get(WORDS_ONLY, False)
    if not isinstance(value, bool):
        raise PixWordError(f"config.json: {WORDS_ONLY} must be true or false, got {shown(value)}")
    return value


def _shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise PixWordError(f"{folder} has no model.safetensors")
    return shards


def _check_size(args: ModelArgs, shards: list[Path], folder: Path) -> None:
    """Compare the numbers that a configuration asks for with those there are, before anything is built for it."""
    seen: dict[str, Path] = {}
    there = 0
    for shard in shards:
        for name, shape in read_shapes(shard).items():
            if name in seen:
                raise PixWordError(f"{folder}: weight {named(name)} is in {seen[name].name} and in {shard.name}")
            seen[name] = shard
            there += prod(shape)
    if parameters(args) > 10 * there + 10**7:
        raise PixWordError(
            f"{folder}: config.json describes a model of {parameters(args):,} parameters, the weights are {there:,}"
        )
    if (layers := args.num_layers + args.image_layers) > len(seen):
        raise PixWordError(f"{folder}: config.json describes {layers:,} layers, the weights have {len(seen):,} names")


def _load_weights(model: PixWordModel, shards: list[Path], folder: Path, quantization: Any, master: bool) -> None:
    weights = {name: array for file in shards for name, array in read_safetensors(file).items()}
    if quantization is not None:
        quantized.prepare(model, quantization, weights.keys())
    expected = dict(tree_flatten(model.parameters()))
    for name in sorted(set(expected) ^ set(weights)):
        problem = "is missing" if name in expected else "is unknown"
        raise PixWordError(f"{folder}: weight {named(name)} {problem}; the file does not belong to this config.json")
    for name, array in weights.items():
        packed = expected[name].dtype == mx.uint32
        if array.shape != expected[name].shape or array.dtype not in ((mx.uint32,) if packed else DTYPES.values()):
            raise PixWordError(
                f"{folder}: weight {name} is {array.dtype} {array.shape}, "
                f"config.json asks for {'uint32' if packed else 'floats'} {expected[name].shape}"
            )
    compute = mx.float32 if master else model.args.compute_dtype
    model.load_weights([(name, stored(name, array, compute)) for name, array in weights.items()])
    mx.eval(model.parameters())


def stored(name: str, array: mx.array, compute: mx.Dtype) -> mx.array:
    """Projections are kept in the compute type, so they are not cast at every step; all else in float32."""
    if array.dtype == mx.uint32:  # a quantised projection
        return array
    return array.astype(compute if "_proj." in name else mx.float32)


def _small(name: str, array: mx.array) -> mx.array:
    """What a quantised model directory keeps: tables and scales in float16, norms and other layers as they are."""
    keeps = array.dtype == mx.uint32 or "norm." in name or name.endswith("_proj.weight")
    return array if keeps else array.astype(mx.float16)


def _half(name: str, array: mx.array) -> mx.array:
    if array.dtype == mx.uint32:
        return array
    if not mx.isfinite(array.astype(mx.float16)).all().item():
        raise PixWordError(f"weight {name} has values that float16 does not hold; keep the model in float32")
    return array.astype(mx.float16)


def _save_weights(weights: Mapping[str, mx.array], folder: Path) -> None:
    shards: list[dict[str, mx.array]] = [{}]
    room = SHARD_BYTES
    for name, array in sorted(weights.items()):
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = array
        room -= array.nbytes
    if len(shards) == 1:
        _save_shard(folder / "model.safetensors", shards[0])
        return
    names = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        _save_shard(folder / file, shard)
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": sum(a.nbytes for a in weights.values())}, "weight_map": weight_map}
    files.write_file(folder / "model.safetensors.index.json", lambda file: file.write(_json(index)))


def _write(contents: bytes, file: BinaryIO) -> None:
    file.write(contents)


def _save_shard(path: Path, shard: dict[str, mx.array]) -> None:
    files.write_file(path, lambda file: mx.save_safetensors(file, shard, {"format": "mlx"}))


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
