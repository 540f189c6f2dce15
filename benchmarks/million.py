"""How long a run takes to start and to go on over a million image files, and how much memory it needs.

    python benchmarks/million.py --count 1000000 --save benchmarks/results

The same images are made once as one zip, one tar and one folder of hard links. Of each a very small run is started
twice, so that the second finds the list of the archive that the first one kept, and then resumed. A start ends when the
run says how many steps it will make; what follows is training. Memory is the largest of the process, without decoders.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from shared.record import keep, with_machine

from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

KINDS = ("zip", "tar", "folder")
PER_FOLDER = 1000
PER_FILE = 50_000  # hard links to one file; ext4 allows 65,000

# Runs the command in a process whose own memory is told at its end, and notes when it has begun to train.
PROGRAM = """
import resource, sys, time
begun = time.perf_counter()
from mlx_pixword import pretrain
from mlx_pixword.training import trainer
announce = trainer.announce
def announced(run):
    announce(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"ready {time.perf_counter() - begun:.3f} {peak}", flush=True)
trainer.announce = announced
pretrain.main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(f"done {time.perf_counter() - begun:.3f} {peak}", flush=True)
"""


@dataclass(frozen=True)
class MillionArgs:
    """Seconds and memory to start and resume over very many files."""

    count: int = setting(1_000_000, "image files")
    kinds: list[str] = setting(list(KINDS), "some of zip, tar and folder; may be repeated", metavar="KIND")
    scratch: Path | None = setting(
        None, "folder for the files (default: the system's for temporary ones)", metavar="DIR"
    )
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if self.count < 20:
            raise PixWordError(f"--count must be at least 20, got {self.count}")
        if wrong := [kind for kind in self.kinds if kind not in KINDS]:
            raise PixWordError(f"--kinds must be some of {', '.join(KINDS)}, got {wrong[0]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and, on the last line, the JSON."""
    args = parse(MillionArgs, "benchmarks/million.py", argv)
    result: dict[str, Any] = {"benchmark": "million", "count": args.count, "kinds": {}}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for kind in args.kinds:
            began = time.perf_counter()
            data = make(kind, Path(scratch), args.count)
            notice(f"{kind}: made in {time.perf_counter() - began:,.0f} s")
            result["kinds"][kind] = measure(data, Path(scratch))
    result = with_machine(
        result | {"settings": {k: v for k, v in asdict(args).items() if k not in ("save", "scratch")}}
    )
    print_table(result)
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))


def names(count: int) -> list[str]:
    """``000/0000000.png`` and so on, a thousand a folder."""
    return [f"{n // PER_FOLDER:04}/{n:07}.png" for n in range(count)]


def picture(number: int) -> bytes:
    """A small image of its own."""
    file = BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 90)).save(file, "PNG")
    return file.getvalue()


def make(kind: str, scratch: Path, count: int) -> Path:
    """The files as a zip, a tar, or a folder of hard links to a few of them."""
    pictures = [picture(n) for n in range(64)]
    path = scratch / (f"images.{kind}" if kind != "folder" else "images")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for n, name in enumerate(names(count)):
                archive.writestr(zipfile.ZipInfo(name), pictures[n % len(pictures)])
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for n, name in enumerate(names(count)):
                info = tarfile.TarInfo(name)
                info.size = len(pictures[n % len(pictures)])
                archive.addfile(info, BytesIO(pictures[n % len(pictures)]))
                archive.members.clear()  # type: ignore[attr-defined]  # or all of them stay in memory
    else:
        _make_links(path, pictures, count)
    return path


def _make_links(folder: Path, pictures: list[bytes], count: int) -> None:
    for n, name in enumerate(names(count)):
        place = folder / name
        if n % PER_FOLDER == 0:
            place.parent.mkdir(parents=True)
        if n % PER_FILE == 0:
            first = place
            first.write_bytes(pictures[n // PER_FILE % len(pictures)])
        else:
            os.link(first, place)


def measure(data: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """Start twice, then go on."""
    flags = ["--data", str(data), "--batch-tokens", "64", "--group-size", "64", "--eval-documents", "16"]
    flags += ["--image-size", "8", "--threads", "1", "--warmup", "1"]
    index, results = scratch / "index", {}
    for name, more in (
        ("cold", ["--steps", "2", "--out", str(scratch / f"{data.name}-cold")]),
        ("warm", ["--steps", "2", "--out", str(scratch / f"{data.name}-warm")]),
        ("resume", ["--steps", "3", "--out", str(scratch / f"{data.name}-warm"), "--resume"]),
    ):
        results[name] = start([*flags, *more], index)
        notice(f"{data.name}: {name} {results[name]}")
    return results


def start(flags: list[str], index: Path) -> dict[str, float]:
    """Run the command; ``index`` is where lists of archives are kept."""
    environment = os.environ | {"PIXWORD_INDEX": str(index)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flags], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    ready = re.search(r"^ready (\S+) (\S+)$", done.stdout, re.MULTILINE)
    end = re.search(r"^done (\S+) (\S+)$", done.stdout, re.MULTILINE)
    if ready is None or end is None:
        raise PixWordError(f"the run failed: {done.stderr.strip().splitlines()[-1:]}")
    return {
        "start_seconds": round(float(ready[1]), 2),
        "whole_seconds": round(seconds, 2),
        "start_gb": round(float(ready[2]) / 1e9, 3),
        "peak_gb": round(float(end[2]) / 1e9, 3),
    }


def print_table(result: dict[str, Any]) -> None:
    """A line a measurement."""
    print(f"{'files':<10}{'':<8}{'start s':>10}{'whole s':>10}{'peak GB':>10}")
    for kind, runs in result["kinds"].items():
        for name, values in runs.items():
            print(
                f"{kind:<10}{name:<8}{values['start_seconds']:>10.1f}{values['whole_seconds']:>10.1f}{values['peak_gb']:>10.2f}"
            )


if __name__ == "__main__":
    run_command(main)
