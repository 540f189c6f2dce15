#!/usr/bin/env python3
"""Write the text of every Metal kernel as MLX hands it to Metal's compiler: a file for each build, nothing runs.

    python scripts/dump_kernels.py --out kernels

The texts are those of the sizes that `benchmarks/kernels.py` measures on a Mac, forward and backward. Each begins with
the line that includes MLX's own header, so `xcrun metal -I`, with MLX's folder of headers, compiles them, as
`scripts/mac_check.sh` does. Needs a checkout: `tests/metal_emulator` has MLX trace a launch.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_pixword.common import files
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.settings import setting
from mlx_pixword.ops.dispatch import load
from mlx_pixword.ops.dispatch.trial import make_probe, results
from mlx_pixword.ops.survey import KERNELS

TESTS = Path(__file__).resolve().parents[1] / "tests"
PRELUDE = '#include "mlx/backend/metal/kernels/utils.h"\n'


@dataclass(frozen=True)
class DumpArgs:
    """Texts of the Metal kernels as MLX generates them."""

    out: Path = setting(Path("kernels"), "folder to write NAME-N.metal to", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the texts and print their paths."""
    args = parse(DumpArgs, "scripts/dump_kernels.py", argv)
    files.perform("make", args.out, lambda: args.out.mkdir(parents=True, exist_ok=True))
    counts: dict[str, int] = {}
    for name, text in texts():
        path = args.out / f"{name}-{counts.setdefault(name, 0)}.metal"
        counts[name] += 1
        files.perform("write", path, partial(path.write_text, PRELUDE + text, encoding="utf-8"))
        print(path)


def texts() -> list[tuple[str, str]]:
    """Name and text of every build that the standard sizes of all kernels need, each once."""
    sys.path.insert(0, str(TESTS))
    real, calls = load.metal_kernel, list[Any]()
    try:
        load.metal_kernel = partial(import_module("metal_emulator").noting_kernel, calls)
        load.build_kernel.cache_clear()
        for kernel in KERNELS:
            for args in (*kernel.small().values(), *(kernel.example(*args) for args in kernel.standard().values())):
                mx.eval(results(kernel.metal, args, make_probe(kernel, args)))
    finally:
        load.metal_kernel = real
        load.build_kernel.cache_clear()
        sys.path.remove(str(TESTS))
    names = [name for kernel in KERNELS for name in kernel.sources or (kernel.name,)]
    short = sorted(set(names), key=len, reverse=True)
    return list(dict.fromkeys((next(name for name in short if name in call.name), call.source) for call in calls))


if __name__ == "__main__":
    run_command(main)
