"""A run's configuration: a preset, then a YAML file, then the command line, each over the one before."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import PixWordError
from ..common.settings import build, shown
from ..model.args import ModelArgs
from .data import DataArgs
from .train import TrainArgs

# A micro-batch of 64 elements is one image of 224 px, or a few small ones: what a laptop's memory holds.
_PAPER: dict[str, Any] = {"grad_checkpoint": True, "window_chunk": 8, "batch_tokens": 64, "eval_documents": 64}

MAX_YAML = 2**16  # bytes; all settings together take about a thousand
MAX_DEPTH = 8

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # ours, for a two-core CPU
        "vocab_size": 512, "fold_factor": 32, "image_size": 64, "window_size": 4, "hidden_size": 64, "num_heads": 4,
        "num_kv_heads": 2, "num_layers": 3, "image_layers": 2, "intermediate_size": 128, "max_seq_len": 512,
        "qk_norm": True, "factored_colors": True, "optimizer": "muon", "learning_rate": 0.01, "zero_init": True,
        "weight_decay": 0.0, "warmup": 30, "word_weight": 50.0, "pixel_queries": 3, "batch_tokens": 512, "pack": False,
        "steps": 900, "accumulate": 2, "eval_every": 450,
    },
    "upw-120m": _PAPER,  # the paper's: images alone
    "upw-170m": {**_PAPER, "vocab_size": 32000, "num_layers": 10},  # the paper's: images and words
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    preset: str
    model: ModelArgs
    data: DataArgs
    train: TrainArgs

    def to_flat(self) -> dict[str, Any]:
        """One level of plain values, as YAML and the command line have them."""
        values = {**asdict(self.model), **asdict(self.data), **asdict(self.train)}
        return {"preset": self.preset} | {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_flat(), sort_keys=False)


def make_config(values: Mapping[str, Any], where: str = "settings") -> RunConfig:
    """A configuration from flat values over their preset; unknown keys and bad values raise `PixWordError`."""
    preset = values.get("preset", "tiny")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise PixWordError(f"{where}: preset must be one of {', '.join(PRESETS)}, got {shown(preset)}")
    merged = {**PRESETS[preset], **{k: v for k, v in values.items() if k != "preset"}}
    parts: list[Any] = []
    for cls in (ModelArgs, DataArgs, TrainArgs):
        names = {f.name for f in fields(cls)}
        parts.append(build(cls, {k: merged.pop(k) for k in list(merged) if k in names}, where))
    if merged:
        known = sorted(f.name for cls in (ModelArgs, DataArgs, TrainArgs) for f in fields(cls))
        raise PixWordError(
            f"{where}: unknown key {shown(sorted(merged)[0])}; known keys are preset, {', '.join(known)}"
        )
    return RunConfig(preset, *parts)


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
    """Flat values of a YAML file; raises `PixWordError` with the file's name."""
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
    make_config(values, where=str(path))
    return values


def _shortened(error: Exception) -> str:
    """What is wrong and, at the end, where."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"
