"""Compile every rendered text with nvcc, where there is one; needs no GPU.

    PYTHONPATH=.:tests python -m metal_on_cuda.compile [--arch sm_80]

Prints a line for each text that does not compile and, last, how many do, with the most registers a thread and bytes of
shared memory that nvcc says they take, on an NVIDIA GPU: that says nothing of Apple's. Ends with status 1 if one fails.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .launch import Unit, units_of
from .sizes import launches


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metal_on_cuda.compile", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="sm_80", help="what to compile for (sm_80)")
    parser.add_argument("--standard", action="store_true", help="the benchmark's sizes as well; minutes")
    args = parser.parse_args(argv)
    if not shutil.which("nvcc"):
        print("no nvcc: install NVIDIA's CUDA toolkit", file=sys.stderr)
        return 2
    units = units_of([*launches(False), *(launches(True) if args.standard else [])])
    failed, registers, shared, spilled = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, unit in enumerate(units):
            result = compile_unit(unit, Path(folder) / f"{number}.cu", args.arch)
            text = result.stdout + result.stderr
            if result.returncode:
                failed += 1
                print(f"{unit.name}, {unit.threadgroup}: does not compile\n{text[:2000]}")
            registers = max(registers, *map(int, re.findall(r"Used (\d+) registers", text) or [0]))
            shared = max(shared, *map(int, re.findall(r"(\d+) bytes smem", text) or [0]))
            spilled += any(map(int, re.findall(r"(\d+) bytes spill", text)))
    print(
        f"{len(units) - failed} of {len(units)} texts compile for {args.arch}; at most {registers} registers a thread, "
        f"{shared} bytes of shared memory; {spilled} spill"
    )
    return min(failed, 1)


def compile_unit(unit: Unit, path: Path, arch: str) -> "subprocess.CompletedProcess[str]":
    path.write_text(unit.text, encoding="utf-8")
    command = [
        "nvcc",
        f"-arch={arch}",
        "-std=c++17",
        "-O3",
        "-Xptxas",
        "-v",
        "--cubin",
        "-o",
        f"{path}.cubin",
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
