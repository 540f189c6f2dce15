"""The kernels' texts on an NVIDIA GPU, by MLX's CUDA build, against references: full shapes, forward and backward.

    PYTHONPATH=.:tests python -m metal_on_cuda.compare [--seconds 120]

Prints a line a comparison and, on the last line, JSON. It shows races, masks and gradients on a GPU at sizes that the
emulator cannot reach; it says nothing of Apple's compiler or of speed on Apple's GPUs. A launch that the GPU refuses,
as too large for its registers, is tried again with narrower threadgroups. Ends with status 1 if anything disagrees.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from span_attention import difference, expected, make_case

from mlx_pixword.ops import span_build
from mlx_pixword.ops.dispatch.trial import compare
from mlx_pixword.ops.survey import KERNELS

from .launch import cuda_kernel, standing_in

TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1e-2}  # as trials have it
WIDTHS = (16, 8, 4)  # most simdgroups of a threadgroup, one after the other
CASES = [  # against float64: many windows, ragged; places on a grid; long prefixes; large heads
    ("window", (64, 0, 256, 2, 2, 64), mx.float32), ("window", (64, 0, 256, 2, 2, 64), mx.bfloat16),
    ("scattered", (64, 0, 256, 1, 2, 32), mx.float32), ("scattered", (128, 0, 64, 2, 2, 64), mx.bfloat16),
    ("read", (64, 5, 256, 2, 2, 64), mx.float32), ("own", (2, 784, 600, 2, 2, 64), mx.float32),
    ("own", (2, 784, 600, 2, 2, 64), mx.float16), ("own", (1, 300, 200, 1, 4, 128), mx.float32),
    ("window", (16, 0, 256, 1, 2, 128), mx.float32),
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metal_on_cuda.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="stop beginning comparisons after so long (120)")
    args = parser.parse_args(argv)
    if mx.metal.is_available() or mx.default_device() != mx.gpu:
        print(
            "no NVIDIA GPU in use: this needs one, and MLX's CUDA build (bash scripts/setup.sh cuda)", file=sys.stderr
        )
        return 2
    rows = list(run(comparisons(), args.seconds))
    print(json.dumps(rows))
    return int(any(row.get("share", 2.0) > 1 for row in rows if "skipped" not in row))


def run(works: Iterator[tuple[str, Callable[[], float]]], seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each comparison: its difference as a share of what is tolerated, an error, or why it was skipped."""
    start = time.perf_counter()
    for name, work in works:
        row: dict[str, Any] = {"name": name}
        if time.perf_counter() - start > seconds:
            row["skipped"] = f"no time left of {seconds:g} seconds"
        else:
            row |= attempt(work)
        print(row, flush=True)
        yield row


def attempt(work: Callable[[], float]) -> dict[str, Any]:
    """A comparison, with narrower threadgroups where wide ones are refused."""
    row: dict[str, Any] = {}
    widest = span_build.MOST_SIMDGROUPS
    try:
        for width in WIDTHS:
            span_build.MOST_SIMDGROUPS = width
            try:
                with standing_in(cuda_kernel):
                    return row | {"share": work(), "most_simdgroups": width}
            except Exception as error:  # refused, not compiled, or different: it is told
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                if "KernelError" in row["error"]:
                    return row
    finally:
        span_build.MOST_SIMDGROUPS = widest
    return row


def comparisons() -> Iterator[tuple[str, Callable[[], float]]]:
    """Names and works: the sizes of the benchmark against the references, and cases against float64."""
    for kernel in KERNELS:
        for sizes, args in kernel.standard().items():
            yield f"{kernel.name}, {sizes}", partial(compare, kernel, args)
    for kind, shape, dtype in CASES:

        def exact(kind: str = kind, shape: Sequence[int] = shape, dtype: mx.Dtype = dtype) -> float:
            case = make_case(kind, shape, dtype)
            return difference(case.run(), expected(case)) / TOLERANCE[dtype]

        yield f"{kind} {shape} {str(dtype).rpartition('.')[2]}", exact


if __name__ == "__main__":
    sys.exit(main())
