"""What this machine allows a training step and a drawn pixel, and which share of it they reach (a CPU's roofline).

    python benchmarks/roofline.py

GFLOP/s are those of MLX's float32 matrix products, GB/s those of NumPy's products of a matrix and a vector, whose bytes
are read once: of matrices as large as the weights that a pixel is multiplied with, and of ones that fit no cache. The
work of a step and of a pixel is counted as in `python -m mlx_pixword.plan`. A share is the time that the roofline
(Williams et al., CACM 52(4), 2009) would take over the time taken; medians of the rounds.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import mlx.core as mx
import numpy as np
from loader import make_photos
from peer.generation_sides import Ours
from peer.train_sides import ours as training_side
from shared.record import keep, with_machine
from shared.rounds import warn_if_busy
from shared.workload import Job, initial_weights, make_job, overridden, square_document, with_objective

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.planning.costs import Load, training_flops
from mlx_pixword.planning.footprint import drawing_work

PRODUCT = 2048  # side of the matrices that are multiplied
STREAMED = 512 * 2**20  # bytes of a matrix that fits no cache
WIDE = ("hidden_size=384", "num_heads=6", "num_kv_heads=3", "num_layers=4", "image_layers=3", "intermediate_size=1152")
DRAWN = {"tiny": ("tiny", ()), "wide": ("upw-120m", WIDE)}  # preset and settings of the models that draw
PREFIX = 2  # elements before the first window


@dataclass(frozen=True)
class RooflineArgs:
    """GFLOP/s and GB/s of this machine, and the shares of them that training and drawing reach."""

    size: int = setting(64, "side of the square image that is drawn, in pixels")
    rounds: int = setting(5, "rounds; medians are printed")
    seconds: float = setting(2.0, "about how long a round takes")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.size < 16 or not 0 < self.seconds < math.inf:
            raise PixWordError("--rounds must be at least 1, --size at least 16 and --seconds positive")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the machine's rates, then a line for each kind of work, then the JSON."""
    args = parse(RooflineArgs, "benchmarks/roofline.py", argv)
    warn_if_busy()
    gflops = rate(products(), args)
    print(f"matrix products{gflops:>10,.1f} GFLOP/s")
    streamed = rate(reads(STREAMED), args)
    print(f"memory         {streamed:>10,.1f} GB/s, matrices of {STREAMED // 2**20} MB")
    shares = {"step, photos at width 384": training(args, gflops)}
    for name, (preset, settings) in DRAWN.items():
        shares[f"pixel, {name}"] = drawing(preset, settings, args, gflops)
    for name, share in shares.items():
        print(f"{name:<28}{'  '.join(f'{key} {value:,.3g}' for key, value in share.items())}")
    asked = {"size": args.size, "rounds": args.rounds}
    rates = {"gflops": gflops, "memory_gb_per_second": streamed}
    result = with_machine({"benchmark": "roofline", **rates, "shares": shares, "settings": asked})
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))


# --- the machine ------------------------------------------------------------------------------------------------------


def rate(work: tuple[float, Callable[[], None]], args: RooflineArgs) -> float:
    """Billions of operations or bytes a second: the median over the rounds."""
    amount, run = work
    run()
    start = time.perf_counter()
    run()
    times = max(1, round(args.seconds / (time.perf_counter() - start)))
    return amount / 1e9 / seconds_of(lambda: [run() for _ in range(times)], args.rounds) * times


def seconds_of(work: Callable[[], Any], rounds: int) -> float:
    """The median of a work's seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def products() -> tuple[float, Callable[[], None]]:
    """Operations of a product of two square matrices, and the product."""
    a, b = mx.random.normal((PRODUCT, PRODUCT)), mx.random.normal((PRODUCT, PRODUCT))
    mx.eval(a, b)
    return 2.0 * PRODUCT**3, lambda: mx.eval(a @ b)


def reads(size: int) -> tuple[float, Callable[[], None]]:
    """Bytes of a matrix, and its product with a vector."""
    width = 1024
    matrix = np.ones((size // 4 // width, width), np.float32)
    vector = np.ones(width, np.float32)
    return float(matrix.nbytes), lambda: (matrix @ vector).sum()


# --- what the program does --------------------------------------------------------------------------------------------


def training(args: RooflineArgs, gflops: float) -> dict[str, float]:
    """Seconds of an optimiser step, and the share of the products' rate that its operations reach."""
    with tempfile.TemporaryDirectory() as folder:
        job = with_objective(make_job("wide-photos", make_photos(Path(folder) / "photos", 24)), "boundary")
    side = training_side(job, initial_weights(job.model), {})
    side.measure(len(job.steps))
    seconds = seconds_of(lambda: side.measure(len(job.steps)), args.rounds) / len(job.steps)
    gflop = step_flops(job) / 1e9
    return {"seconds": seconds, "gflop": gflop, "of_gflops": gflop / seconds / gflops}


def step_flops(job: Job) -> float:
    """Operations of the job's optimiser steps, their mean: repeated windows counted once, nothing padded."""
    total = 0
    for step in job.steps:
        for document in step:
            windows = np.unique(np.concatenate([image.windows for image in document.images]), axis=0)
            load = Load(1, len(document), len(windows))
            total += training_flops(job.model, load)
    return total / len(job.steps)


def drawing(preset: str, settings: Sequence[str], args: RooflineArgs, gflops: float) -> dict[str, float]:
    """Seconds of a drawn pixel, and its shares of the rates of products and of reading as many bytes of weights."""
    windows = (args.size // overridden(preset, settings).model.window_size) ** 2
    config = overridden(preset, settings, image_size=args.size, max_seq_len=windows + 3, dtype="float32")
    document = square_document(np.random.default_rng(0), config.model, args.size)
    side = Ours(Job(config.model, config.train, [[document]]), initial_weights(config.model), {"threads": 2})
    pixels = args.size**2
    seconds = seconds_of(lambda: side.draw(range(pixels)), args.rounds) / pixels
    work = drawing_work(config.model, args.size, args.size, PREFIX, 1)
    size = round(work.bytes / pixels)
    near = rate(reads(max(2**20, size)), args)  # matrices that stay in a cache if the weights do
    return {
        "seconds": seconds, "mb": size / 1e6, "gb_per_second": size / 1e9 / seconds,
        "of_reading": size / 1e9 / seconds / near, "of_gflops": work.flops / pixels / 1e9 / seconds / gflops,
    }  # fmt: skip


if __name__ == "__main__":
    run_command(main)
