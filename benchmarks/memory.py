"""How much memory a training step takes, and how it grows with the image.

    python benchmarks/memory.py
    python benchmarks/memory.py --part block --sizes 224,448
    python benchmarks/memory.py --part evaluate --preset upw-170m --set hidden_size=384

step      one optimiser step of the preset on one image of the preset's size: forward, backward, clipping, optimiser
block     the image block alone on larger and larger images: forward and backward of the mean square of window states
model     the optimiser step on those images, with room for them in the sequence
evaluate  three processes: the step; the step, then held-out losses and readings of 64 images with captions, as in a
          run; losses and readings alone, as the command `evaluate` does. `x first` is over the step's

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

PARTS = ("step", "block", "model", "evaluate")
STAGES = ("step", "step and evaluate", "evaluate")  # of the part evaluate
CAPTION = (8, 40)  # words, from and to
COLUMNS = {"peak_mb": "peak MB", "added_mb": "added MB", "mlx_mb": "MLX MB"}


@dataclass(frozen=True)
class MemoryArgs:
    """Peak memory of a training step and of the image block, by image size."""

    part: str = setting("all", "what to measure", choices=("all", *PARTS))
    preset: str = setting("upw-120m", "model and training settings", choices=tuple(PRESETS))
    set: list[str] = setting([], "change a setting of the preset; may be repeated", metavar="NAME=VALUE")
    sizes: str = setting("224,448,672,896", "sides of the square images, in pixels", metavar="PX,PX,...")
    documents: int = setting(64, "held-out images with captions, in the part evaluate")
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
    has_words = overridden(args.preset, args.set).model.vocab_size > 6
    parts = [part for part in PARTS if has_words or part != "evaluate"] if args.part == "all" else [args.part]
    if args.part == "evaluate" and not has_words:
        raise PixWordError(f"--part evaluate reads words, and --preset {args.preset} has none; take upw-170m or tiny")
    requests = {part: make_requests(part, args) for part in parts}
    for request in chain(*requests.values()):
        configure(request)  # a mistake is told before anything is measured
    print(f"{'part':<18}{'image':>7}{'windows':>9}" + "".join(f"{name:>10}{'x first':>9}" for name in COLUMNS.values()))
    results = {part: measure(of_part) for part, of_part in requests.items()}
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    result = with_machine({"benchmark": "memory", "parts": results, "settings": settings})
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))
    return None


def make_requests(part: str, args: MemoryArgs) -> list[dict[str, Any]]:
    """What each process of a part is to measure; the parts step and evaluate have the preset's image size."""
    size = overridden(args.preset, args.set).model.image_size
    sides = [size] if part in ("step", "evaluate") else args.sides
    stages = STAGES if part == "evaluate" else (part,)
    names = ("preset", "set", "max_seq_len", "documents")
    every = {name: value for name, value in asdict(args).items() if name in names}
    return [{"part": part, "stage": stage, "side": side, **every} for side in sides for stage in stages]


def measure(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask a new process for each request and print what it says."""
    rows: list[dict[str, Any]] = []
    for request in requests:
        with Worker(Path(__file__)) as worker:
            rows.append({"size": request["side"], "stage": request["stage"], **worker.ask(**request)})
        print_row(request["stage"], rows[-1], rows[0])
    return rows


def print_row(stage: str, row: dict[str, Any], first: dict[str, Any]) -> None:
    """A line: what was measured, and as times the first size's."""
    values = "".join(f"{row[name]:>10,.1f}{growth(row[name], first[name]):>9}" for name in COLUMNS)
    print(f"{stage:<18}{row['size']:>7}{row['windows']:>9,}{values}", flush=True)


def growth(value: float, first: float) -> str:
    """A value as times the first one; `-` where nothing was counted."""
    return f"{value / first:.2f}" if first else "-"


# -------------------------------------------------------------------------------------------------- worker


def configure(request: dict[str, Any]) -> RunConfig:
    """The run's configuration for an image of the size asked for; float32, one micro-batch."""
    room = {} if request["part"] in ("step", "evaluate") else {"max_seq_len": request["max_seq_len"]}
    fixed = {"dtype": "float32", "accumulate": 1, "image_size": request["side"], **room}
    return overridden(request["preset"], request["set"], **fixed)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request names, once, in this process."""
    import mlx.core as mx

    config = configure(request)
    ready = PREPARE[request["stage"]](config, request)
    before = memory()["now"]
    mx.reset_peak_memory()
    ready()
    peak = memory()["peak"]
    return {
        "windows": (config.model.image_size // config.model.window_size) ** 2,
        "peak_mb": round(peak / 1e6, 1), "added_mb": round((peak - before) / 1e6, 1),
        "mlx_mb": round(mx.get_peak_memory() / 1e6, 1),
    }  # fmt: skip


def prepare_step(config: RunConfig, _request: Any = None) -> Any:
    """A function that makes one optimiser step, as `pretrain` does."""
    return model_and_step(config)[1]


def model_and_step(config: RunConfig) -> tuple[Any, Any]:
    """A model, and a function that makes one optimiser step with one image."""
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
    return model, lambda: mx.eval(step([batch]), model.state, optimizer.state)


def prepare_evaluation(config: RunConfig, request: dict[str, Any]) -> Any:
    """A model, documents and a function that computes their losses and reads them, as a run's evaluation does."""
    import mlx.core as mx

    from mlx_pixword.training.setup import build_model

    model = build_model(config.model, config.train)
    mx.eval(model.parameters())
    return lambda: evaluate(model, config, request["documents"])


def prepare_run(config: RunConfig, request: dict[str, Any]) -> Any:
    """A function that makes a step and then evaluates in the same process, with the optimiser's state in memory."""
    from mlx_pixword.common.blas import release_memory

    model, step = model_and_step(config)

    def run() -> None:
        step()
        release_memory()  # as `pretrain` does
        evaluate(model, config, request["documents"])

    return run


def evaluate(model: Any, config: RunConfig, count: int) -> None:
    """Losses and readings of square images with captions of several lengths."""
    from mlx_pixword.evaluation.meter import LossMeter
    from mlx_pixword.evaluation.readings import read_documents
    from mlx_pixword.inputs.processor import Processor

    args, rng = config.model, np.random.default_rng(1)
    words = [rng.integers(6, args.vocab_size, rng.integers(*CAPTION)).tolist() for _ in range(count)]
    documents = [square_document(rng, args, args.image_size, caption) for caption in words]
    meter = LossMeter(model, config.data.batch_tokens, config.train.pixel_queries)
    meter.add(documents)
    assert len(read_documents(model, Processor(args), documents, config.data.batch_tokens)) == count


def prepare_block(config: RunConfig, _request: Any = None) -> Any:
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


PREPARE: dict[str, Any] = {
    "step": prepare_step, "model": prepare_step, "block": prepare_block,
    "step and evaluate": prepare_run, "evaluate": prepare_evaluation,
}  # fmt: skip


if __name__ == "__main__":
    run_command(main)
