"""MLX's CUDA build on an NVIDIA GPU: the kernels' texts, a training step against PyTorch, drawing, and `tiny` trained.

    bash benchmarks/gpu.sh --save benchmarks/results

kernels                 `tests/metal_on_cuda`: the Metal texts as CUDA against their references, at full shapes
training                images a second of the compiled step of `pretrain`, on plates (`tiny`) and photos (D 384)
training peer           the paper's program in PyTorch on the same images, batch and types, eager
training peer compiled  the same by `torch.compile`
drawing                 pixels a second of 64x64 images, one and 16 at once
tiny                    `tiny` trained for a while, and how many new plates it reads

Each part is a process of its own with a limit; all end within `--minutes`. The last line is the JSON, which says why a
part was skipped or failed. This measures MLX's CUDA build, and says nothing of Apple's GPUs.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if sys.argv[1:2] == ["part"] and "peer" in sys.argv[2]:
    import torch  # noqa: F401  (before all that imports mlx_pixword)

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import mlx.core as mx
from shared.record import keep, with_machine

from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

ROOT = Path(__file__).resolve().parents[1]
CASES = {"tiny-plates": 0, "wide-photos": 16}  # images a step; 0: as many as pretrain takes
WARM, ROUNDS = 3, 5


@dataclass(frozen=True)
class GpuArgs:
    """What MLX's CUDA build makes of the kernels' texts, of training and of drawing on an NVIDIA GPU."""

    minutes: float = setting(8.0, "all parts end within so many minutes")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise PixWordError(f"--minutes must be positive, got {self.minutes}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts one after the other and print the JSON; ``part NAME`` runs one of them here."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["part"]:
        print(json.dumps(PARTS[argv[1]].work()))
        return
    args, start = parse(GpuArgs, "benchmarks/gpu.py", argv), time.perf_counter()
    parts: dict[str, Any] = {}
    for name, part in PARTS.items():
        left = 60 * args.minutes - (time.perf_counter() - start)
        parts[name] = run_part(name, min(part.seconds, left - 5))
        notice(f"{name}: {parts[name]}")
    settings = {"minutes": args.minutes}
    result = with_machine({"benchmark": "gpu", "gpu": gpu(), "parts": parts, "settings": settings})
    result["versions"] |= builds()
    result["seconds"] = round(time.perf_counter() - start, 1)
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))


def run_part(name: str, seconds: float) -> dict[str, Any]:
    """What a part found in a process of its own, or why it was skipped or failed."""
    if not gpu():
        return {"skipped": "no NVIDIA GPU in use: it needs one, its driver, and MLX's CUDA build"}
    if "peer" in name and find_spec("torch") is None:
        return {"skipped": "no PyTorch: python -m pip install torch==2.13.0"}
    if seconds < 10:
        return {"skipped": "no time left"}
    command = [sys.executable, str(Path(__file__).resolve()), "part", name]
    result = in_time(command, seconds, ROOT)
    if result is None:
        return {"skipped": f"it took more than {seconds:.0f} seconds"}
    if result.returncode:
        return {"failed": (result.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(result.stdout.splitlines()[-1]))


def in_time(command: list[str], seconds: float, folder: Path) -> "subprocess.CompletedProcess[str] | None":
    """A command's end; None if it took longer, and then its own children are gone too."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **streams) as process:
        try:
            out, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def builds() -> dict[str, str]:
    """Versions of PyTorch and of MLX's builds, of those that are installed."""
    found: dict[str, str] = {}
    for name in ("torch", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def gpu() -> str:
    """Name and driver of the GPU that MLX computes on; empty if it is none of NVIDIA's."""
    if mx.metal.is_available() or mx.default_device() != mx.gpu or not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return found[0] if found else ""


# --- parts ------------------------------------------------------------------------------------------------------------


def kernels() -> dict[str, Any]:
    """The comparison of `tests/metal_on_cuda`."""
    sys.path[:0] = [str(ROOT / "tests")]
    from metal_on_cuda.compare import comparisons, run

    rows = list(run(comparisons(), 100.0))
    agree = sum(row.get("share", 2.0) <= 1 for row in rows)
    return {"agree": agree, "of": len(rows), "skipped_rows": sum("skipped" in row for row in rows), "rows": rows}


def training() -> dict[str, Any]:
    """Ours: the compiled step of `pretrain`, float32."""
    from peer.train_sides import ours

    return _training(lambda job, weights: ours(job, weights, {}).step)


def training_peer(compiled: bool = False) -> dict[str, Any]:
    """PyTorch's, eager or compiled; TensorFloat-32 for products, as MLX's CUDA build has it."""
    import torch
    from peer.padding import LossWeights, square_batch
    from peer.torch_model import Peer, load_weights, make_optimizer, tensors, train_step
    from peer.train_sides import draw_keys

    torch.set_float32_matmul_precision("high")

    def make(job: Any, weights: Any) -> Callable[[int], Any]:
        model, train = Peer(job.model), job.train
        load_weights(model, weights)
        model = model.to(device())
        parts = LossWeights(train.word_weight, train.boundary_weight, train.dense_weight)
        keys = [draw_keys(job, n) for n in range(len(job.steps))]
        squares = [
            square_batch(step, job.model, train.pixel_queries, key, parts)
            for step, key in zip(job.steps, keys, strict=True)
        ]
        ready = [{name: array.to(device()) for name, array in tensors(square).items()} for square in squares]
        optimizer = make_optimizer(model, train)
        run: Any = torch.compile(model) if compiled else model
        return lambda n: train_step(run, optimizer, [ready[n]], float(squares[n].num_targets), train.clip_norm)

    def device() -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    return _training(make)


def _training(make: Callable[[Any, Any], Callable[[int], Any]]) -> dict[str, Any]:
    """Images a second of each case: the median of rounds over the case's steps, after some that are not counted."""
    from loader import make_photos
    from shared.workload import initial_weights, make_job, with_objective

    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case, a_step in CASES.items():
            photos = make_photos(Path(scratch) / case, 24) if case == "wide-photos" else None
            job = with_objective(make_job(case, photos, a_step), "dense")
            step = make(job, initial_weights(job.model))
            for n in range(WARM * len(job.steps)):
                step(n % len(job.steps))
            seconds = [_seconds(lambda step=step, job=job: [step(n) for n in range(len(job.steps))])  # type: ignore[misc]
                       for _ in range(ROUNDS)]  # fmt: skip
            rates[case] = {
                "images_per_second": sum(map(len, job.steps)) / statistics.median(seconds),
                "seconds": seconds,
            }
    return rates


def drawing() -> dict[str, Any]:
    """`tiny` with random weights, float32."""
    from mlx_pixword.config.run import make_config
    from mlx_pixword.inference.draw import generate_images
    from mlx_pixword.inputs.processor import Processor
    from mlx_pixword.model.network import PixWordModel

    model = PixWordModel(make_config({"preset": "tiny", "dtype": "float32"}).model)
    processor, rates = Processor(model.args), dict[str, Any]()
    for count in (1, 16):
        generate_images(model, processor, size=(16, 16), count=count)
        seconds = _seconds(lambda count=count: generate_images(model, processor, size=(64, 64), count=count))  # type: ignore[misc]
        rates[f"{count} at once"] = {"pixels_per_second": 64 * 64 * count / seconds}
    return rates


def tiny() -> dict[str, Any]:
    """`tiny` by `pretrain` for its own number of steps, and plates that training never draws, read by `evaluate`."""
    with tempfile.TemporaryDirectory() as scratch:
        out, plates = Path(scratch) / "run", Path(scratch) / "plates"
        start = time.perf_counter()
        _python("-m", "mlx_pixword.pretrain", "--preset", "tiny", "--out", str(out))
        seconds = time.perf_counter() - start
        _python(str(ROOT / "scripts" / "make_plates.py"), "--count", "200", "--seed", "1", "--out", str(plates))
        lines = _python(
            "-m", "mlx_pixword.evaluate", "--model", str(out / "final"), "--data", str(plates / "labels.jsonl")
        )
        return {"training_seconds": seconds, "evaluation": json.loads(lines.splitlines()[-1])}


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Part:
    """What is measured, and the most seconds that it may take."""

    work: Callable[[], dict[str, Any]]
    seconds: float


PARTS = {
    "kernels": Part(kernels, 150), "training": Part(training, 70), "training peer": Part(training_peer, 50),
    "training peer compiled": Part(lambda: training_peer(True), 90), "drawing": Part(drawing, 40),
    "tiny": Part(tiny, 150),
}  # fmt: skip


if __name__ == "__main__":
    run_command(main)
