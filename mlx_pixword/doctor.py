"""`python -m mlx_pixword.doctor`: what this machine offers, and what would make it faster."""

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from . import __version__
from .common.blas import INSTALL, cuda_builds, describe_openblas, has_gpu, hidden_cuda
from .common.cli import parse, run_command
from .common.machine import device_name, memory_bytes
from .common.settings import setting
from .ops.dispatch.choose import mode
from .ops.survey import Finding, survey

SIZE = 1024  # side of the matrices that are timed
PRIVATE = ("BLAS", "C++ compiler")  # may hold paths; no report needs them


@dataclass(frozen=True)
class DoctorArgs:
    """What this machine offers, and what would make it faster."""

    report: bool = setting(False, "print the findings as JSON, to paste into a report on Metal kernels")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the findings, and advice where there is any."""
    args = parse(DoctorArgs, "-m mlx_pixword.doctor", argv)
    kernels, (findings, advice) = survey(), examine()
    if args.report:
        print(json.dumps(report(findings, kernels), indent=2))
        return
    findings |= {f"kernel {finding.kernel}": str(finding) for finding in kernels}
    width = max(map(len, findings))
    for name, value in findings.items():
        print(f"{name:<{width}}  {value}")
    if any(trial.error for finding in kernels for trial in finding.trials.values()):
        advice.append("a Metal kernel failed; please report it with what this prints: --report")
    for line in advice or ["nothing would make this machine faster that this program knows of"]:
        print(f"- {line}")


def report(findings: dict[str, str], kernels: Sequence[Finding]) -> dict[str, Any]:
    """What a report on Metal kernels needs: the machine, the versions and every trial; no names or paths."""
    machine = {name: value for name, value in findings.items() if name not in PRIVATE}
    return {
        "report": "metal kernels", "machine": machine, "device": dict(mx.device_info()),
        "kernels": [finding.as_json() for finding in kernels],
    }  # fmt: skip


def examine() -> tuple[dict[str, str], list[str]]:
    """Findings by name, and lines of advice."""
    on_gpu = mx.default_device() != mx.cpu
    findings = {
        "mlx-pixword": __version__,
        "mlx": f"{version('mlx')}, mlx-lm {version('mlx-lm')}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "device": f"{mx.default_device().type.name}, {device_name()}",
        "memory": f"{memory_bytes() / 2**30:.0f} GiB" + _gpu_memory(on_gpu),
        "BLAS": _blas(on_gpu),
        "float32 matmul": f"{_flops(mx.float32) / 1e9:,.0f} GFLOP/s at {SIZE}x{SIZE}",
        "bfloat16 matmul": f"{_flops(mx.bfloat16) / 1e9:,.0f} GFLOP/s at {SIZE}x{SIZE}",
        "exp": f"{_seconds(lambda: mx.exp(_matrix(mx.float32))) / SIZE**2 * 1e9:.2f} ns an element",
        "C++ compiler": shutil.which("g++") or "none (only --compile on needs one on Linux)",
        "PIXWORD_KERNELS": mode(),
    }
    return findings, _advice(on_gpu)


def _advice(on_gpu: bool) -> list[str]:
    if on_gpu:
        return []
    lines = ["this is a CPU: use --preset tiny here, and float32, as bfloat16 matmuls are slow on it"]
    if sys.platform == "linux" and describe_openblas() is None:
        lines.append(f"MLX runs without OpenBLAS; {INSTALL}")
    if hidden := hidden_cuda():
        lines.append(hidden)
    elif has_gpu() and not cuda_builds():
        lines.append("this machine has an NVIDIA GPU, and MLX is its CPU build: bash scripts/setup.sh cuda")
    if sys.platform == "darwin":
        lines.append("MLX found no Metal GPU: it needs Apple silicon, macOS 14 or newer and a native arm64 Python")
    return lines


def _blas(on_gpu: bool) -> str:
    if sys.platform == "darwin":
        return "Accelerate"
    return describe_openblas() or ("not needed on a GPU" if on_gpu else "the slow reference BLAS of MLX's wheel")


def _matrix(dtype: mx.Dtype) -> mx.array:
    return mx.full((SIZE, SIZE), 0.5, dtype)


def _flops(dtype: mx.Dtype) -> float:
    matrix = _matrix(dtype)
    return 2 * SIZE**3 / _seconds(lambda: matrix @ matrix)


def _seconds(operation: Callable[[], object], budget: float = 0.5) -> float:
    """The fastest run of an operation within a time budget, seconds."""
    mx.eval(operation())
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        mx.eval(operation())
        best = min(best, time.perf_counter() - start)
    return best


def _gpu_memory(on_gpu: bool) -> str:
    """What MLX says of the GPU's memory; its backends use different names, and say 0 or nothing where unknown."""
    names = ("max_recommended_working_set_size", "total_memory", "memory_size")
    sizes = [int(mx.device_info().get(name, 0)) for name in names]
    size = next((size for size in sizes if size), 0)
    return f", GPU may use {size / 2**30:.0f} GiB" if on_gpu and size else ""


if __name__ == "__main__":
    run_command(main)
