"""Metal kernels: on a Mac their speed, elsewhere the bytes that they move.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --kernel fold_colors --emulate

On a Mac every kernel is compared with its reference, on sizes that training meets, and then timed in turn with the
reference and with MLX's own fused operation where there is one: forward, and forward and backward together where it is
trained through. All run as in a compiled step. `GB/s` is the floor over the kernel's time.

Elsewhere, or with `--emulate`, the emulator of tests/metal_emulator runs the kernels' text on small sizes and counts.
The floor is every input read once and every output written once; backward these are the inputs, the results and their
cotangents, and the gradients. Bytes that MLX's own operations move around a launch are not counted.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from shared.record import keep, with_machine

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.settings import setting
from mlx_pixword.ops.dispatch import load
from mlx_pixword.ops.dispatch.choose import Kernel, available
from mlx_pixword.ops.dispatch.trial import Probe, compare, compiled, make_probe, race, results
from mlx_pixword.ops.survey import KERNELS

TESTS = Path(__file__).parents[1] / "tests"
FORWARD = Probe([], [])  # asks for no gradients


@dataclass(frozen=True)
class KernelsArgs:
    """Speed of the Metal kernels on a Mac; elsewhere bytes, barriers and threadgroup memory, by the emulator."""

    kernel: str = setting("all", "which kernel", choices=("all", *(kernel.name for kernel in KERNELS)))
    emulate: bool = setting(False, "count in the emulator, though there is a GPU with Metal")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for every kernel, size and direction and, on the last line, the JSON."""
    args = parse(KernelsArgs, "benchmarks/kernels.py", argv)
    kernels = [kernel for kernel in KERNELS if args.kernel in ("all", kernel.name)]
    emulated = args.emulate or not available()
    rows = print_rows(*(COUNTS, counts(kernels)) if emulated else (TIMES, times(kernels)))
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    result = with_machine({"benchmark": "kernels", "emulated": emulated, "rows": rows, "settings": settings})
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))


def print_rows(columns: dict[str, str], rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the rows as they come, under a heading; ``columns`` are headings by name."""
    print(f"{'kernel':<24}{'sizes':<34}{'':<10}" + "".join(f"{heading:>12}" for heading in columns.values()))
    kept = []
    for row in rows:
        values = "".join(f"{shown(row[name]):>12}" for name in columns)
        print(f"{row['kernel']:<24}{row['sizes']:<34}{row['direction']:<10}{values}", flush=True)
        kept.append(row)
    return kept


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def directions(kernel: Kernel, args: tuple[Any, ...]) -> dict[str, Probe]:
    """What is measured: forward, and with gradients where the kernel is trained through."""
    return {"forward": FORWARD} | ({"backward": make_probe(kernel, args)} if kernel.trained else {})


def floor_bytes(kernel: Kernel, args: tuple[Any, ...], probe: Probe) -> int:
    """Inputs once and outputs once; backward, also the results and their cotangents, which it starts from."""
    inputs = [arg for arg in args if isinstance(arg, mx.array)]
    outputs = results(kernel.reference, args, probe)
    return sum(array.nbytes for array in [*inputs, *outputs, *probe.cotangents])


# ------------------------------------------------------------------------------------------- on a Mac

TIMES = {
    "share": "off/allowed", "kernel_ms": "kernel ms", "reference_ms": "ref. ms", "rival_ms": "MLX's ms",
    "speed_up": "x reference", "rival_speed_up": "x MLX's", "gb_per_s": "GB/s",
}  # fmt: skip


def times(kernels: Sequence[Kernel]) -> Iterator[dict[str, Any]]:
    """Compare and time; a kernel that is wrong ends the program with `KernelError`."""
    for kernel in kernels:
        for sizes, args in kernel.standard().items():
            share = compare(kernel, args)
            for direction, probe in directions(kernel, args).items():
                seconds = time_row(kernel, args, probe)
                rate = floor_bytes(kernel, args, probe) / (seconds["kernel_ms"] * 1e6)
                row = {"kernel": kernel.name, "sizes": sizes, "direction": direction, "share": share}
                yield {**row, **seconds, "gb_per_s": rate}


def time_row(kernel: Kernel, args: tuple[Any, ...], probe: Probe) -> dict[str, Any]:
    """Milliseconds of the kernel and of those that it is compared with, taken in turn."""
    sides: dict[str, Callable[..., Any]] = {"kernel": kernel.metal, "reference": kernel.reference}
    if kernel.rival:
        sides["rival"] = kernel.rival
    seconds = dict(zip(sides, race([compiled(side, args, probe) for side in sides.values()]), strict=True))
    rival = seconds.get("rival")
    return {
        "kernel_ms": seconds["kernel"] * 1e3, "reference_ms": seconds["reference"] * 1e3,
        "rival_ms": rival and rival * 1e3, "speed_up": seconds["reference"] / seconds["kernel"],
        "rival_speed_up": rival and rival / seconds["kernel"],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- in the emulator

COUNTS = {
    "launches": "launches", "traffic_bytes": "bytes", "floor_bytes": "floor", "traffic": "x floor",
    "threadgroup_bytes": "threadgroup", "barriers": "barriers", "mma": "mma",
}  # fmt: skip


def counts(kernels: Sequence[Kernel]) -> Iterator[dict[str, Any]]:
    """Run the kernels in the emulator on small sizes, with all its checks, and count."""
    with emulator() as emulated:
        for kernel in kernels:
            for sizes, args in kernel.small().items():
                forward = 0
                for direction, probe in directions(kernel, args).items():
                    emulated.reports.clear()
                    mx.eval(results(kernel.metal, args, probe))
                    launches = emulated.reports[forward:]  # gradients take the forward launches first
                    forward = len(launches)
                    row = {"kernel": kernel.name, "sizes": sizes, "direction": direction}
                    yield row | count_row(launches, floor_bytes(kernel, args, probe), emulated)


def count_row(launches: Sequence[Any], floor: int, emulated: Any) -> dict[str, Any]:
    """What some launches did together, against the floor of what they compute."""
    moved = sum(emulated.traffic(report) for report in launches)
    return {
        "launches": len(launches), "traffic_bytes": moved, "floor_bytes": floor, "traffic": moved / floor,
        "threadgroup_bytes": max(report.threadgroup_bytes for report in launches),
        "barriers": sum(report.stats["barriers"] for report in launches),
        "mma": sum(report.stats["mma"] for report in launches),
    }  # fmt: skip


@contextmanager
def emulator() -> Iterator[Any]:
    """The tests' emulator, in the place of `mx.fast.metal_kernel`."""
    sys.path.insert(0, str(TESTS))
    real = load.metal_kernel
    try:
        emulated = import_module("metal_emulator")
        load.metal_kernel = emulated.metal_kernel
        load.build_kernel.cache_clear()
        yield emulated
    finally:
        load.metal_kernel = real
        load.build_kernel.cache_clear()
        sys.path.remove(str(TESTS))


if __name__ == "__main__":
    run_command(main)
