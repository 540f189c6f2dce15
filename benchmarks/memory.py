"""How much memory a training step takes, and how it grows with the image.

    python benchmarks/memory.py
    python benchmarks/memory.py --part block --sizes 224,448

step   one optimiser step of the preset on one image of the preset's size: forward, backward, clipping, optimiser
block  the image block alone on larger and larger images: forward and backward of the mean square of window states
model  the optimiser step on those images, with room for them in the sequence

Layers and window chunks are recomputed as the preset says. Images are random pixels, so that no window repeats. Every
line is a process of its own. `peak` is the most memory that it held; `added` is the part of it above what it held when
weights and batch were there and nothing had been computed; MLX's own count is peak memory in arrays alone.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from shared.record import keep, with_machine
from shared.rounds import WORKER, Worker, memory, serve
from shared.workload import overridden, square_document

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.run import PRESETS, RunConfig

PARTS = ("step", "block", "model")
COLUMNS = {"peak_mb": "peak MB", "added_mb": "added MB", "mlx_mb": "MLX MB"}


@dataclass(frozen=True)
class MemoryArgs:
    """Peak memory of a training step and of the image block, by image size."""

    part: str = setting("all", "what to measure", choices=("all", *PARTS))
    preset: str = setting("upw-120m", "model and training settings", choices=tuple(PRESETS))
    set: list[str] = setting([], "change a setting of the preset; may be repeated", metavar="NAME=VALUE")
    sizes: str = setting("224,448,672,896", "sides of the square images, in pixels", metavar="PX,PX,...")
    max_seq_len: int = setting(4096, "elements of the longest sequence, in the parts block and model")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    @property
    def sides(self) -> list[int]:
        try:
            sides = [int(word) for word in self.sizes.split(",")]
        except ValueError:
            sides = []
        if not sides or min(sides) < 1:
            raise PixWordError(f"--sizes must be positive integers with commas between, got {self.sizes!r}")
        return sides


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a line for every process and, on the last line, the JSON."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [WORKER]:
        return serve(work)
    args = parse(MemoryArgs, "benchmarks/memory.py", argv)
    parts = PARTS if args.part == "all" else [args.part]
    requests = {part: [make_request(part, side, args) for side in sides(part, args)] for part in parts}
    for request in chain(*requests.values()):
        configure(request)  # a mistake is told before anything is measured
    print(f"{'part':<7}{'image':>7}{'windows':>9}" + "".join(f"{name:>10}{'x first':>9}" for name in COLUMNS.values()))
    results = {part: measure(of_part) for part, of_part in requests.items()}
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    result = with_machine({"benchmark": "memory", "parts": results, "settings": settings})
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))
    return None


def sides(part: str, args: MemoryArgs) -> list[int]:
    """Sides of the images of a part; the part step has the preset's."""
    return [overridden(args.preset, args.set).model.image_size] if part == "step" else args.sides


def make_request(part: str, side: int, args: MemoryArgs) -> dict[str, Any]:
    """What one process is to measure."""
    return {"part": part, "side": side, "preset": args.preset, "set": args.set, "max_seq_len": args.max_seq_len}


def measure(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask a new process for each request and print what it says."""
    rows: list[dict[str, Any]] = []
    for request in requests:
        with Worker(Path(__file__)) as worker:
            rows.append({"size": request["side"], **worker.ask(**request)})
        print_row(request["part"], rows[-1], rows[0])
    return rows


def print_row(part: str, row: dict[str, Any], first: dict[str, Any]) -> None:
    """A line: what was measured, and as times the first size's."""
    values = "".join(f"{row[name]:>10,.1f}{growth(row[name], first[name]):>9}" for name in COLUMNS)
    print(f"{part:<7}{row['size']:>7}{row['windows']:>9,}{values}", flush=True)


def growth(value: float, first: float) -> str:
    """A value as times the first one; `-` where nothing was counted."""
    return f"{value / first:.2f}" if first else "-"


# -------------------------------------------------------------------------------------------------- worker


def configure(request: dict[str, Any]) -> RunConfig:
    """The run's configuration for an image of the size asked for; float32, one micro-batch."""
    room = {} if request["part"] == "step" else {"max_seq_len": request["max_seq_len"]}
    fixed = {"dtype": "float32", "accumulate": 1, "image_size": request["side"], **room}
    return overridden(request["preset"], request["set"], **fixed)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request names, once, in this process."""
    import mlx.core as mx

    config = configure(request)
    ready = prepare_block(config) if request["part"] == "block" else prepare_step(config)
    before = memory()["now"]
    mx.reset_peak_memory()
    ready()
    peak = memory()["peak"]
    return {
        "windows": (config.model.image_size // config.model.window_size) ** 2,
        "peak_mb": round(peak / 1e6, 1), "added_mb": round((peak - before) / 1e6, 1),
        "mlx_mb": round(mx.get_peak_memory() / 1e6, 1),
    }  # fmt: skip


def prepare_step(config: RunConfig) -> Any:
    """A model, a batch of one image and a function that makes one optimiser step, as `pretrain` does."""
    import mlx.core as mx

    from mlx_pixword.model.batch import collate
    from mlx_pixword.training.device import prepare_streams
    from mlx_pixword.training.optimizer import make_optimizer
    from mlx_pixword.training.setup import build_model
    from mlx_pixword.training.step import make_step

    prepare_streams(config.train)
    args, train = config.model, config.train
    model, optimizer = build_model(args, train), make_optimizer(train)
    document = square_document(np.random.default_rng(0), args, args.image_size)
    batch = collate([[document]], args, pixel_queries=train.pixel_queries)
    mx.eval(model.parameters(), batch.arrays())
    step = make_step(model, optimizer, train)
    return lambda: mx.eval(step([batch]), model.state, optimizer.state)


def prepare_block(config: RunConfig) -> Any:
    """An image block, an image and a function that computes the gradient of its window states' mean square."""
    import mlx.core as mx

    from mlx_pixword.model.network import PixWordModel
    from mlx_pixword.training.chunked_gradient import make_chunked_gradient
    from mlx_pixword.training.device import prepare_streams

    prepare_streams(config.train)
    model = PixWordModel(config.model)
    (image,) = square_document(np.random.default_rng(0), config.model, config.model.image_size).images
    arrays = {"windows": mx.array(image.windows), "reads": mx.array(image.lengths[:, None] - 1)}

    def mean_square(_arrays: Any, normalizer: mx.array, states: mx.array | None) -> Any:
        assert states is not None
        return mx.mean(mx.square(states)) / normalizer, normalizer

    streams = [mx.new_stream(mx.default_device()) for _ in range(config.train.streams)]
    gradient = make_chunked_gradient(
        model, mean_square, config.train.window_chunk or len(image.windows), streams, False
    )
    mx.eval(model.parameters(), arrays)
    return lambda: mx.eval(gradient(arrays, mx.array(1.0)))


if __name__ == "__main__":
    run_command(main)
