"""What a run's folder holds, read for a report. The run may be going on: a line in the writing is passed over."""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..common.errors import PixWordError
from ..config.run import MAX_YAML, PRESETS, make_config
from ..training.reporter import Curve

MOST_SAMPLES = 40  # steps whose samples a report holds, evenly over the run
MOST_REASONS = 50  # lines of the table of skipped files
EXAMPLES = 3  # names of skipped files shown for each reason


@dataclass(frozen=True)
class Sample:
    """What `samples/` has of a step: pages as PNG files in data URLs, and readings as the run wrote them."""

    step: int
    pages: list[str]
    readings: list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """One run.

    Attributes:
        name: what the report calls it.
        settings: of `config.yaml`.
        usual: settings of its preset, where this version knows it.
        curves: points ``(step, value)`` of every number in `metrics.jsonl`, at most 2,000 each; finite ones only.
        last: the newest value of every number.
        samples: of at most 40 steps; ``sample_steps`` counts those there are.
        skipped: reasons, how many files each, and some names.
        machines: a line of `machines.jsonl` each.
        nonfinite: steps without an update.
        finished: whether `final/` is there.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    usual: dict[str, Any]
    curves: dict[str, list[tuple[float, float]]]
    last: dict[str, float]
    samples: list[Sample]
    sample_steps: int
    skipped: list[tuple[str, int, list[str]]]
    skipped_reasons: int
    machines: list[dict[str, Any]]
    nonfinite: int
    finished: bool

    @property
    def step(self) -> int:
        """The newest step with a line of metrics."""
        return int(self.last.get("step", 0))


def read_run(folder: Path, name: str) -> RunFiles:
    """Read a run's folder; raises `PixWordError` if it is none."""
    settings = _settings(folder)
    curves, last = _curves(folder / "metrics.jsonl")
    steps = _sample_steps(folder / "samples")
    shown = steps[:: -(-len(steps) // MOST_SAMPLES)] if steps else []
    shown = [*shown, steps[-1]] if steps and shown[-1] != steps[-1] else shown
    reasons = _reasons(folder / "skipped.jsonl")
    skipped = [(reason, *reasons[reason]) for reason in sorted(reasons, key=lambda r: -reasons[r][0])]
    return RunFiles(
        name, folder, settings, _usual(settings), curves, last, [_sample(folder / "samples", step) for step in shown],
        len(steps), skipped[:MOST_REASONS], len(skipped), list(lines_of(folder / "machines.jsonl")),
        sum(1 for _ in lines_of(folder / "nonfinite.jsonl")), (folder / "final" / "config.json").is_file(),
    )  # fmt: skip


def held_out_curve(folder: Path) -> tuple[list[dict[str, float]], float]:
    """Exact match and nats a word of a run's held-out documents, step by step, and the minutes that it trained.

    Raises:
        PixWordError: see `lines_of`.
    """
    curve, seconds = list[dict[str, float]](), 0.0
    for line in lines_of(folder / "metrics.jsonl"):
        seconds += line.get("seconds", 0.0)
        if "heldout_exact_match" in line:
            values = {name: round(line[f"heldout_{name}"], 4) for name in ("exact_match", "word_loss")}
            curve.append({"step": line["step"], "minutes": round(seconds / 60, 2), **values})
    return curve, round(seconds / 60, 2)


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines; the last line may be unfinished, any other must be whole.

    Raises:
        PixWordError: a line that is no JSON object, with its number, or a file that cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    if not line.endswith("\n"):
                        return
                    value = None
                if not isinstance(value, dict):
                    raise PixWordError(f"{path}, line {number}: not a JSON object; is this the file of a run?")
                yield value
    except FileNotFoundError:
        return
    except OSError as error:
        raise PixWordError(f"{path}: {error.strerror}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """Settings as they lie there; a run of another version may have names that this one does not know."""
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise PixWordError(f"{folder} is not a folder; give the folder of a run, such as runs/pretrain")
    if not path.is_file():
        raise PixWordError(f"{folder} is not the folder of a run: it has no config.yaml")
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_YAML else ""
        values = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise PixWordError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict):
        raise PixWordError(f"{path} holds no settings of a run")
    return {str(name): value for name, value in values.items()}


def _usual(settings: dict[str, Any]) -> dict[str, Any]:
    preset = settings.get("preset")
    return make_config({"preset": preset}).to_flat() if isinstance(preset, str) and preset in PRESETS else {}


def _curves(path: Path) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    curves: dict[str, Curve] = {}
    last: dict[str, float] = {}
    for values in lines_of(path):
        step = values.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                last[name] = value
                curves.setdefault(name, Curve()).add(step, float(value))
    curves.pop("step", None)
    return {name: curve.points for name, curve in curves.items()}, last


def _sample_steps(folder: Path) -> list[int]:
    names = [path.stem.split("-") for path in folder.glob("step-*")]
    return sorted({int(parts[1]) for parts in names if parts[1].isascii() and parts[1].isdigit()})


def _sample(folder: Path, step: int) -> Sample:
    pages = [folder / f"step-{step}.png", folder / f"step-{step}-drawn.png"]
    return Sample(step, [_data_url(page) for page in pages if page.is_file()], _readings(folder / f"step-{step}.json"))


def _readings(path: Path) -> list[dict[str, Any]]:
    """Readings that a run wrote; none where it wrote none."""
    if not path.is_file():
        return []
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))["readings"]
        readings: list[dict[str, Any]] = [
            {"read": str(line["read"]), "written": str(line["written"])} for line in lines
        ]
        for reading, line in zip(readings, lines, strict=True):
            reading |= {"confidence": float(line["confidence"])} if "confidence" in line else {}
            reading |= {"picture": line["picture"]} if isinstance(line.get("picture"), str) else {}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise PixWordError(f"{path} is damaged; move it away") from error
    return readings


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _reasons(path: Path) -> dict[str, tuple[int, list[str]]]:
    """How many files were left out for each reason, and the first names."""
    counts: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for line in lines_of(path):
        reason = str(line.get("reason", ""))
        counts[reason] += 1
        if counts[reason] <= EXAMPLES:
            names.setdefault(reason, []).append(str(line.get("file", "")))
    return {reason: (count, names[reason]) for reason, count in counts.items()}
