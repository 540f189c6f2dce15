"""Whether a long run stays as it is: memory and open descriptors of a very small model over thousands of steps.

    python benchmarks/soak.py --steps 20000

The run is packed, on three sources with a cache, with two evaluations and checkpoints between looks. What is looked at:
resident memory, what MLX holds, open descriptors, threads, and the processes that decode.
`kills.py` is the other half: whether a run that is killed ends where an undisturbed one does.
"""

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.record import keep, with_machine
from shared.tiny_runs import command, make_data

from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting


@dataclass(frozen=True)
class SoakArgs:
    """Memory and descriptors of a long run of a very small model."""

    steps: int = setting(20_000, "optimiser steps")
    settled: int = setting(2_000, "steps after which nothing may grow any more")
    every: int = setting(500, "steps between looks")
    most_growth: float = setting(0.02, "share that resident memory may grow by")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.settled < self.steps:
            raise PixWordError(f"1 <= --every <= --settled < --steps must hold, got {self}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print a line a look and, on the last line, the JSON."""
    args = parse(SoakArgs, "benchmarks/soak.py", argv)
    with tempfile.TemporaryDirectory() as scratch:
        looks = soak(Path(scratch), args)
    result = verdict(looks, args)
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    report = with_machine({"benchmark": "soak", **result, "looks": looks, "settings": settings})
    print(f"from step {args.settled} on: memory {result['growth']:+.2%}, descriptors {result['descriptors']}")
    if args.save:
        keep(report, args.save)
    print(json.dumps(report))
    if not result["flat"]:
        raise PixWordError("memory or descriptors grew")


def soak(folder: Path, args: SoakArgs) -> list[dict[str, Any]]:
    """Train in this process and look at it from a thread."""
    from mlx_pixword.pretrain import main as pretrain

    flags = [
        *make_data(folder / "data"), "--cache", folder / "cache", "--pack", "--steps", args.steps, "--accumulate", 1,
        "--streams", 1, "--batch-tokens", 64, "--optimizer", "adamw", "--log-every", 10,
        "--eval-every", args.every // 2, "--save-every", args.every // 2,
    ]  # fmt: skip
    looks: list[dict[str, Any]] = []
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder / "run/metrics.jsonl", args.every, looks, done))
    watcher.start()
    try:
        pretrain(command(folder / "run", *flags)[3:])
    finally:
        done.set()
        watcher.join()
    return looks


def _watch(metrics: Path, every: int, looks: list[dict[str, Any]], done: threading.Event) -> None:
    """Look each time that so many steps more are done; a torn last line is read again later."""
    place = step = 0
    while not done.wait(0.05):
        if not metrics.exists():
            continue
        with metrics.open("rb") as file:
            file.seek(place)
            lines = file.read().split(b"\n")
        place += sum(len(line) + 1 for line in lines[:-1])
        step = max([step, *(json.loads(line)["step"] for line in lines[:-1])])
        if step >= (len(looks) + 1) * every:
            looks.append({"step": step, **look()})
            notice(str(looks[-1]))


def look() -> dict[str, Any]:
    """This process now: bytes of resident memory and of MLX, descriptors, threads and processes it started."""
    import mlx.core as mx

    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    own, children = os.getpid(), [row for row in rows if row[1] == os.getpid()]
    return {
        "resident": next(row[2] for row in rows if row[0] == own) * 1024,
        "children_resident": sum(row[2] for row in children) * 1024,
        "active": mx.get_active_memory(),
        "descriptors": min(_descriptors() for _ in range(50)),
        "threads": threading.active_count(),
    }


def _descriptors() -> int:
    """Open now; the least of several counts leaves out files that are open for a moment."""
    time.sleep(0.002)
    return sum(1 for _ in Path("/dev/fd").iterdir())


def verdict(looks: list[dict[str, Any]], args: SoakArgs) -> dict[str, Any]:
    """Growth of memory, last looks over those after it settled, and the range of descriptors."""
    after = [one for one in looks if one["step"] >= args.settled]
    if len(after) < 2:
        raise PixWordError("too few looks; take more steps")
    some = max(1, len(after) // 10)  # a few looks at each end: one of them may fall into an evaluation
    first, last = (statistics.median(o["resident"] for o in part) for part in (after[:some], after[-some:]))
    descriptors = sorted({one["descriptors"] for one in after})
    growth = last / first - 1
    flat = growth <= args.most_growth and after[-1]["descriptors"] <= after[0]["descriptors"]
    return {"growth": round(growth, 4), "descriptors": descriptors, "flat": flat}


if __name__ == "__main__":
    run_command(main)
