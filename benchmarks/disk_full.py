"""Whether a run on a disk that fills up ends with one line and goes on when there is room: Linux, as root.

    python benchmarks/disk_full.py

A very small run writes to a tmpfs of each size in turn, too small for its checkpoints. It must end with status 2 and a
line that names the path and what is needed. The disk is then made larger, the run resumed, and the outcome compared
with that of a run on a large disk: weights and optimiser state byte for byte, metrics but for clocks.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.record import keep, with_machine
from shared.tiny_runs import command, make_data, outcome

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

FLAGS = ["--pack", "--steps", 40, "--save-every", 4, "--log-every", 2, "--eval-every", 20]
SIZES = (250_000, 500_000, 1_000_000)  # bytes: for no checkpoint, one, and two


@dataclass(frozen=True)
class DiskArgs:
    """Runs on disks that fill up."""

    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Try each size, print a line each and, on the last line, the JSON."""
    args = parse(DiskArgs, "benchmarks/disk_full.py", argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = make_data(folder / "data")
        subprocess.run(command(folder / "whole", *data, *FLAGS), check=True, capture_output=True)
        expected = outcome(folder / "whole")
        results = [trial(folder, size, data, expected) for size in SIZES]
    for result in results:
        print(f"{result['bytes']:>9,} bytes: {result}")
    report = with_machine({"benchmark": "disk-full", "trials": results})
    if args.save:
        keep(report, args.save)
    print(json.dumps(report))
    if any(not result["one_line"] or result["differs"] for result in results):
        raise PixWordError("a run did not end as it should")


def trial(folder: Path, size: int, data: list[str], expected: dict[str, Any]) -> dict[str, Any]:
    """One disk: fill it, make room, go on."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk))
    try:
        program = command(disk / "run", *data, *FLAGS)
        full = subprocess.run(program, capture_output=True, text=True, check=False)
        line = full.stderr.strip().splitlines()[-1]
        kept = sorted(path.name for path in (disk / "run" / "checkpoints").glob("*"))
        _mount("-o", "remount,size=64m", str(disk))
        subprocess.run([*program, "--resume"], capture_output=True, check=True)
        found = outcome(disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    told = all(words in line for words in ("error: cannot", "No space left", "make room", "go on with: python -m"))
    return {
        "bytes": size,
        "one_line": full.returncode == 2 and told and "Traceback" not in full.stderr,
        "checkpoints": kept,
        "differs": [part for part in expected if expected[part] != found[part]],
    }


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PixWordError(f"no disk to fill: mount: {done.stderr.strip()}; this needs Linux and root")


if __name__ == "__main__":
    run_command(main)
