"""Very small runs for tests: settings, and ways to look at what a run leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_pixword.common.cli import run_command
from mlx_pixword.pretrain import main

SETTINGS = {
    "image-size": 28, "window-size": 4, "hidden-size": 8, "num-heads": 2, "num-kv-heads": 1, "num-layers": 1,
    "image-layers": 1, "intermediate-size": 8, "max-seq-len": 64, "batch-tokens": 64, "group-size": 8,
    "eval-documents": 2, "log-every": 1, "eval-every": 1000, "save-every": 1000, "pixel-queries": 1, "draw-images": 0,
    "sample-images": 0, "accumulate": 1, "streams": 1,
}  # fmt: skip
FLAGS = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]


def train(out: Path, *flags: object, steps: int = 3) -> list[dict[str, Any]]:
    """Run `pretrain` and give its metrics."""
    main([*FLAGS, "--out", str(out), "--steps", str(steps), *map(str, flags)])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def refusal(capsys: Any, main: Callable[[list[str]], None], *arguments: object) -> list[str]:
    """Lines that a command line says before it exits 2, the last of them its mistake; it prints nothing else."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*map(str, arguments)]))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return list(captured.err.strip().splitlines())


def untimed(out: Path) -> list[dict[str, Any]]:
    """Metrics of a run without clocks and memory."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in m.items() if k not in ("tokens_per_second", "seconds", "peak_gb", "active_gb")} for m in lines
    ]
