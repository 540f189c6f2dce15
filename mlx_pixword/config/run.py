"""A run's configuration: a preset, then a YAML file, then the command line, each over the one before."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..common.errors import PixWordError
from ..common.settings import build, convert, shown
from ..model.args import ModelArgs
from .adapt import AdaptArgs
from .data import BUILT_IN, MORE_TEXT_KINDS, TEXT_KINDS, DataArgs
from .train import TrainArgs

# A micro-batch of 64 elements is one image of 224 px, or a few small ones: what a laptop's memory holds.
_PAPER: dict[str, Any] = {
    "grad_checkpoint": True, "window_chunk": 8, "batch_tokens": 64, "accumulate": 32, "eval_documents": 64,
}  # fmt: skip

PARTS = (ModelArgs, DataArgs, TrainArgs, AdaptArgs)
MAX_YAML = 2**16  # bytes; all settings together take about a thousand
MAX_DEPTH = 8

# What makes small text learnable (docs/text.md).
SMALL_TEXT: dict[str, Any] = {
    "fold_factor": 32, "window_size": 4, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 4, "image_layers": 1,
    "intermediate_size": 256, "qk_norm": True, "factored_colors": True, "linear_color_scale": 0.5,
    "sine_color_scale": 0.0, "positions": "grid", "rope_theta": 100.0, "summary": "concat", "image_hidden_size": 32,
    "image_num_heads": 2, "image_num_kv_heads": 2, "image_intermediate_size": 64, "data": ["text"],
    "group_size": 1024, "pack": False, "optimizer": "muon", "learning_rate": 0.01, "image_lr_scale": 0.2,
    "zero_init": True, "weight_decay": 0.0, "word_weight": 1.0, "boundary_weight": 0.0, "dense_weight": 0.0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # ours, for a two-core CPU
        "vocab_size": 512, "fold_factor": 32, "image_size": 64, "window_size": 4, "hidden_size": 64, "num_heads": 4,
        "num_kv_heads": 2, "num_layers": 3, "image_layers": 2, "intermediate_size": 128, "max_seq_len": 512,
        "qk_norm": True, "factored_colors": True, "optimizer": "muon", "learning_rate": 0.01, "zero_init": True,
        "weight_decay": 0.0, "warmup": 30, "word_weight": 50.0, "pixel_queries": 3, "batch_tokens": 512, "pack": False,
        "steps": 900, "accumulate": 2, "eval_every": 450,
    },
    "numbers": {  # ours: reads small numbers in any face and colour, after five minutes of two cores
        **SMALL_TEXT, "vocab_size": 300, "image_size": 64, "window_size": 8, "max_seq_len": 256, "num_layers": 3,
        "text_kinds": "numbers", "text_heights": "10-16", "text_length": 3, "text_curriculum": 23_000,
        "batch_tokens": 220, "accumulate": 2, "warmup": 50, "steps": 1900, "eval_every": 475, "draw_images": 0,
    },
    "upw-120m": _PAPER,  # the paper's: images alone
    "upw-170m": {**_PAPER, "vocab_size": 32000, "num_layers": 10},  # the paper's: images and words
    "reader": {  # ours: reads small text and draws nothing; scripts/train_reader.py trains it
        **SMALL_TEXT, "fold_factor": 16, "vocab_size": 340, "image_size": 160, "max_seq_len": 1664, "hidden_size": 160,
        "num_heads": 5, "num_kv_heads": 5, "num_layers": 4, "intermediate_size": 320, "text_heights": "3-16",
        "text_kinds": ",".join((*TEXT_KINDS, *MORE_TEXT_KINDS)), "text_length": 12, "text_wear": 0.7,
        "text_curriculum": 80_000, "batch_tokens": 1200, "accumulate": 1, "warmup": 100, "schedule": "wsd",
        "steps": 400_000, "eval_every": 1000, "eval_documents": 300, "draw_images": 0, "save_every": 2000,
        "save_minutes": 10.0, "keep": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    preset: str
    model: ModelArgs
    data: DataArgs
    train: TrainArgs
    adapt: AdaptArgs = AdaptArgs()

    def __post_init__(self) -> None:
        again = self.train.grad_checkpoint or (self.train.window_chunk and self.adapt.lora_image_block)
        if self.adapt.lora_dropout and again:
            name = "grad_checkpoint" if self.train.grad_checkpoint else "window_chunk"
            raise PixWordError(
                f"lora_dropout {self.adapt.lora_dropout} with {name}: layers that are computed again in the backward "
                "pass would leave out other inputs than before; turn one of the two off"
            )

    def to_flat(self) -> dict[str, Any]:
        """One level of plain values, as YAML and the command line have them."""
        values = {**asdict(self.model), **asdict(self.data), **asdict(self.train), **asdict(self.adapt)}
        return {"preset": self.preset} | {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def with_absolute_paths(self) -> "RunConfig":
        """The same, to be read from any folder; names of built-in data stay as they are."""
        parts = {name: _absolute(getattr(self, name)) for name in ("data", "train", "adapt")}
        return replace(self, **parts)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_flat(), sort_keys=False)


Part = TypeVar("Part", DataArgs, TrainArgs, AdaptArgs)


def _absolute(part: Part) -> Part:
    values: dict[str, Any] = {f.name: getattr(part, f.name) for f in fields(part)}
    for f in fields(part):
        value = values[f.name]
        if isinstance(value, Path):
            values[f.name] = value.absolute()
        elif f.metadata["path"] and isinstance(value, list):
            named = BUILT_IN if f.name == "data" else ()
            values[f.name] = [path if path in named else str(Path(path).absolute()) for path in value]
        elif f.metadata["path"] and value and Path(value).exists():  # or it is a repository
            values[f.name] = str(Path(value).absolute())
    return replace(part, **values)


def make_config(values: Mapping[str, Any], where: str = "settings") -> RunConfig:
    """A configuration from flat values over their preset; unknown keys and bad values raise `PixWordError`."""
    check_values(values, where)
    preset = values.get("preset", "tiny")
    merged = {**PRESETS[preset], **values}
    parts: list[Any] = []
    for cls in PARTS:
        parts.append(build(cls, {f.name: merged[f.name] for f in fields(cls) if f.name in merged}, where))
    return RunConfig(preset, *parts)


def check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise `PixWordError` for an unknown preset or key, or a value of a wrong type, each looked at by itself."""
    if (preset := values.get("preset", "tiny")) not in list(PRESETS):
        raise PixWordError(f"{where}: preset must be one of {', '.join(PRESETS)}, got {shown(preset)}")
    known = {f.name: f for cls in PARTS for f in fields(cls)}
    if unknown := sorted(set(values) - set(known) - {"preset"}):
        names = ", ".join(sorted(known))
        raise PixWordError(f"{where}: unknown key {shown(unknown[0])}; known keys are preset, {names}")
    for name, value in values.items():
        if name != "preset":
            convert(known[name], value, where)


class _Loader(yaml.SafeLoader):
    """Plain YAML, refused early where a small file describes a huge value or takes long to read."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise self._refusal("an alias, and no setting needs one")
        if self._depth == MAX_DEPTH:
            raise self._refusal("nested too deeply for settings")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, problem: str) -> yaml.YAMLError:
        return yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # such as 2001-99-99
            raise yaml.constructor.ConstructorError(None, None, f"no value: {error}", node.start_mark) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Flat values of a YAML file, each checked by itself; raises `PixWordError` with the file's name."""
    try:
        if (size := path.stat().st_size) > MAX_YAML:
            raise PixWordError(f"--config {path} has {size:,} bytes, a configuration has at most {MAX_YAML:,}")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except OSError as error:
        raise PixWordError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PixWordError(f"--config {path} is not YAML: {_shortened(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise PixWordError(f"--config {path} must hold names and values, got {type(values).__name__}")
    check_values(values, where=str(path))
    return values


def _shortened(error: Exception) -> str:
    """What is wrong and, at the end, where."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"
