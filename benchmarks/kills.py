"""Whether a run that is killed again and again ends where an undisturbed one does.

    python benchmarks/kills.py --trials 20 --kills 10

A trial starts a very small run, packed, on three sources with a cache, kills it with SIGKILL and resumes it, so many
times, and then lets it end. Kills take turns: during the start, at a random moment, while a checkpoint is written.
Weights, optimiser state, best model and skipped files must be equal byte for byte, and metrics equal but for clocks. On
a GPU, where sums have no fixed order and kernels are chosen by their time, numbers must be equal within 1 in 1,000.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared.record import keep, with_machine
from shared.tiny_runs import alike, command, make_data, on_gpu, outcome

from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting


@dataclass(frozen=True)
class KillArgs:
    """Trials of runs that are killed and resumed, against one that is not."""

    trials: int = setting(20, "runs that are killed")
    kills: int = setting(10, "kills a run")
    steps: int = setting(120, "optimiser steps of a run")
    save_every: int = setting(3, "steps between checkpoints")
    seed: int = setting(0, "of the moments")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        for name in ("trials", "kills", "steps", "save_every"):
            if getattr(self, name) < 1:
                raise PixWordError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the trials, print a line each and, on the last line, the JSON."""
    args = parse(KillArgs, "benchmarks/kills.py", argv)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data, start = make_data(folder / "data"), time.perf_counter()
        run(start_run(folder, "whole", data, args))
        seconds, expected = time.perf_counter() - start, outcome(folder / "whole")
        results: list[dict[str, Any]] = []
        for number in range(args.trials):
            results.append(trial(folder, f"trial-{number}", data, args, rng, seconds, expected))
            notice(f"trial {number}: {results[-1]}")
            shutil.rmtree(folder / f"trial-{number}")
    report = with_machine({"benchmark": "kills", "trials": results, "settings": _settings(args)})
    equal, kills = sum(not result["differs"] for result in results), sum(result["kills"] for result in results)
    inside = sum(result["inside_a_checkpoint"] for result in results)
    print(f"{equal} of {args.trials} trials equal to the undisturbed run; {kills} kills, {inside} inside a checkpoint")
    if args.save:
        keep(report, args.save)
    print(json.dumps(report))
    if equal < args.trials:
        raise PixWordError("a trial ended elsewhere than the undisturbed run")


def _settings(args: KillArgs) -> dict[str, Any]:
    return {name: value for name, value in asdict(args).items() if name != "save"}


def start_run(folder: Path, name: str, data: list[str], args: KillArgs) -> "subprocess.Popen[str]":
    """Start a run, or go on with it."""
    flags = [
        *data, "--cache", folder / f"{name}-cache", "--pack", "--steps", args.steps, "--save-every", args.save_every,
        "--log-every", 1, "--eval-every", 10, "--keep", 2,
        *(["--resume"] if (folder / name / ".lock").exists() else []),
    ]  # fmt: skip
    return subprocess.Popen(
        command(folder / name, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run(process: "subprocess.Popen[str]") -> str:
    """Wait for a run to end well; gives its standard error."""
    _, error = process.communicate()
    if process.returncode:
        raise PixWordError(f"a run ended with status {process.returncode}: {error.strip().splitlines()[-1:]}")
    return error


def trial(
    folder: Path, name: str, data: list[str], args: KillArgs, rng: np.random.Generator, seconds: float,
    expected: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Kill a run so many times, let it end, and compare."""
    inside = killed = resumed = 0
    while killed < args.kills:
        process = start_run(folder, name, data, args)
        drafts = folder / name / "checkpoints"
        if killed % 3 == 0:
            _wait(process, float(rng.uniform(0, 0.5)) * seconds)
        elif killed % 3 == 1:
            _wait_for_steps(process, folder / name, (args.steps - 20) // args.kills, rng)
        else:
            _wait_for_draft(process, drafts, rng)
        process.kill()
        _, error = process.communicate()
        resumed += "resuming from" in error
        if process.returncode == 0:
            break  # it was done before its time had come
        killed += 1
        inside += any(drafts.glob(".step-*.draft"))
    run(start_run(folder, name, data, args))
    found = outcome(folder / name)
    shutil.rmtree(folder / f"{name}-cache")
    differs = [part for part in expected if not alike(expected[part], found[part], on_gpu())]
    return {"kills": killed, "inside_a_checkpoint": inside, "resumed": resumed, "differs": differs}


def _wait(process: "subprocess.Popen[str]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _wait_for_steps(process: "subprocess.Popen[str]", out: Path, most: int, rng: np.random.Generator) -> None:
    """Wait until a run has done some steps more, and a moment more."""
    start, target = None, int(rng.integers(1, most + 1))
    while process.poll() is None:
        lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
        start = len(lines) if start is None or len(lines) < start else start
        if len(lines) >= start + target:
            break
        time.sleep(0.001)
    time.sleep(float(rng.uniform(0, 0.05)))


def _wait_for_draft(process: "subprocess.Popen[str]", folder: Path, rng: np.random.Generator) -> None:
    """Wait until a checkpoint is being written that was not when the run began, and a moment more."""
    before = {path.name for path in folder.glob(".step-*.draft")}
    count = int(rng.integers(1, 3))
    while process.poll() is None and count:
        now = {path.name for path in folder.glob(".step-*.draft")}
        count -= bool(now - before)
        before = now | before
        time.sleep(0.0005)
    time.sleep(float(rng.uniform(0, 0.015)))


if __name__ == "__main__":
    run_command(main)
