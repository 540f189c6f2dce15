"""What a run tells: the progress bar, `metrics.jsonl`, `loss.png`, and tensorboard or wandb where wanted."""

import json
import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from secrets import token_hex
from typing import Any

from tqdm import tqdm

from ..common.errors import PixWordError
from ..common.files import append_text, replace_file

Metrics = Mapping[str, float | int]
MOST_POINTS = 2000  # of a curve in loss.png


class Reporter:
    """Writes a run's numbers; use as a context manager.

    Args:
        folder: the run folder.
        total, done: optimiser steps in all, and before this start.
        report_to: any of "tensorboard" and "wandb".
        config: flat settings, for the services.
    """

    def __init__(self, folder: Path, total: int, done: int, report_to: list[str], config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._writers: list[Any] = [_SERVICES[name][1](folder, config) for name in services(report_to)]
        self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        for writer in self._writers:
            writer.close()

    def step(self) -> None:
        self._bar.update()

    def show(self, **values: str) -> None:
        """Put values behind the progress bar."""
        self._bar.set_postfix(values)

    def write(self, metrics: Metrics) -> None:
        """Append one line to `metrics.jsonl`."""
        append_text(self._folder / "metrics.jsonl", json.dumps(dict(metrics)) + "\n")
        for writer in self._writers:
            writer.write(metrics)


class _Tensorboard:
    def __init__(self, folder: Path, _config: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        path = folder / "wandb-run.txt"
        if not path.exists():
            replace_file(path, f"{token_hex(4)}\n".encode())
        name = path.read_text(encoding="utf-8").strip()
        self._run = wandb.init(project="mlx-pixword", dir=str(folder), config=dict(config), id=name, resume="allow")

    def write(self, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=metrics["step"])

    def close(self) -> None:
        self._run.finish()


_SERVICES = {"tensorboard": ("tensorboardX", _Tensorboard), "wandb": ("wandb", _Wandb)}


def services(report_to: list[str]) -> list[str]:
    """Names of ``--report-to``, split at commas; one that is unknown or not installed raises `PixWordError`."""
    names = [name.strip() for entry in report_to for name in entry.split(",")]
    for name in names:
        if name not in _SERVICES:
            raise PixWordError(f"--report-to takes {', '.join(_SERVICES)}, got {name!r}")
        if find_spec(_SERVICES[name][0]) is None:
            raise PixWordError(
                f"--report-to {name}: {_SERVICES[name][0]} is not installed; pip install {_SERVICES[name][0]}"
            )
    return names


def keep_metrics(folder: Path, step: int) -> None:
    """Move lines after ``step`` to `metrics.dropped.jsonl`: a resumed run writes them anew, unless settings changed."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    dropped = [line for line in lines if not _is_up_to(line, step)]
    if dropped:
        append_text(folder / "metrics.dropped.jsonl", "".join(line + "\n" for line in dropped))
        kept = [line for line in lines if _is_up_to(line, step)]
        replace_file(path, "".join(line + "\n" for line in kept).encode())


def _is_up_to(line: str, step: int) -> bool:
    """Whether a line of metrics is whole and of a step up to ``step``; power cuts leave lines in part."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False


class Curve:
    """Points of a curve, at most ``MOST_POINTS``: of a long run every second, fourth, .. one, evenly from the start."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._every = self._seen = 0

    def add(self, step: float, value: float) -> None:
        if self._seen % (1 << self._every) == 0:
            self.points.append((step, value))
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            self.points, self._every = self.points[::2], self._every + 1


def _curves(folder: Path, names: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
    """Points of the curves in `metrics.jsonl`, line by line: memory does not grow with the run."""
    curves = {name: Curve() for name in names}
    path = folder / "metrics.jsonl"
    with path.open(encoding="utf-8") if path.exists() else StringIO() as file:
        for line in file:
            values = json.loads(line)
            for name in curves.keys() & values.keys():
                if math.isfinite(values[name]):
                    curves[name].add(values["step"], values[name])
    return {name: curve.points for name, curve in curves.items()}


def plot_losses(folder: Path) -> Path:
    """Draw `loss.png` from `metrics.jsonl`: nats a word and nats a boundary pixel, training and held-out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="nats a target", title="Loss")
    curves = (
        ("word_loss", "words, training", "C0-"),
        ("boundary_loss", "boundary pixels, training", "C1-"),
        ("dense_loss", "all other pixels, training", "C2-"),
        ("heldout_word_loss", "words, held out", "C0o--"),
        ("heldout_boundary_loss", "boundary pixels, held out", "C1o--"),
        ("heldout_dense_loss", "all other pixels, held out", "C2o--"),
    )
    points = _curves(folder, [name for name, _, _ in curves])
    for name, label, style in curves:
        if points[name]:
            axes.plot(*zip(*points[name], strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
    return folder / "loss.png"
