"""How fast pixels are drawn: the two-level cache against recomputing what a pixel depends on.

    python benchmarks/generation.py --size 64 --count 16

ours   `mlx_pixword.inference.draw.draw`, whole images: caches in the open window and in the sequence
mlx    the same model without caches: states of finished windows are kept; for every pixel the open window goes through
       the image block and the whole sequence through the language block
torch  the same in PyTorch, with the layers of peer/

With --count, all sides draw so many images at once, in one batch, each behind pixels of its own. Whole images take the
two baselines long, so they draw a sample of pixels, one at random in each of as many equal stretches of the image,
behind a finished image's pixels; the mean is the cost of a pixel of that image. The sampling of a token is timed on all
sides. Each side has a process of its own, and they take turns. Before, all three must give the same logits of the next
pixel at places all over the image. Printed are medians over the rounds, and how many operations of MLX a pixel of all
images takes, views and the parts of fast operations included; ours are those for a GPU, a CPU computes with NumPy.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shared.torch_first  # noqa: F401  (before all that imports mlx_pixword)
from peer.generation_sides import SIDES
from shared.record import keep
from shared.rounds import WORKER, Worker, in_turn, ratios, require_torch, serve, summary, warn_if_busy, with_torch
from shared.workload import Job, initial_weights, overridden, read_job, square_document, write_job

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.run import PRESETS

TOLERANCE = 1e-3  # of logits, relative to the largest
CHECKED = 12  # places whose logits are compared


@dataclass(frozen=True)
class GenerationArgs:
    """Pixels per second of drawing images, with the two-level cache and without caches."""

    size: int = setting(64, "side of the square image in pixels, a multiple of the window size")
    count: int = setting(1, "images at once")
    sample: int = setting(256, "pixels that a baseline draws in a round")
    rounds: int = setting(3, "rounds; medians are printed")
    threads: int = setting(2, "threads of each side")
    preset: str = setting("tiny", "shape of the model", choices=tuple(PRESETS))
    set: list[str] = setting([], "change a setting of the preset; may be repeated", metavar="NAME=VALUE")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        for name in ("size", "count", "sample", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise PixWordError(f"--{name} must be at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the logits, measure, print the table and, on the last line, the JSON."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [WORKER]:
        return serve(Drawer(argv[1], Path(argv[2])).answer)
    args = parse(GenerationArgs, "benchmarks/generation.py", argv)
    job = make_job(args)
    pixels = args.size**2
    require_torch()
    warn_if_busy()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = write_job(job, Path(scratch) / "job", initial_weights(job.model), threads=args.threads)
        env = {"OPENBLAS_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
        workers = {side: stack.enter_context(Worker(Path(__file__), side, str(folder), env=env)) for side in SIDES}
        checked = sample_places(pixels, CHECKED, seed=1)
        difference = compare({side: worker.ask(logits=checked)["logits"] for side, worker in workers.items()})
        operations = {side: worker.ask(operations=pixels // 2 - 1)["operations"] for side, worker in workers.items()}
        places = sample_places(pixels, args.sample)
        seconds = in_turn({side: partial(_seconds, worker, places) for side, worker in workers.items()}, args.rounds)
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    result = summarise(seconds) | {"operations": operations, "agreement": difference, "settings": settings}
    result = with_torch({"benchmark": "generation", **result})
    print_table(result, args)
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))
    return None


def make_job(args: GenerationArgs) -> Job:
    """The model, and images of random pixels to draw behind."""
    windows = (args.size // overridden(args.preset, args.set).model.window_size) ** 2
    config = overridden(args.preset, args.set, image_size=args.size, max_seq_len=windows + 3, dtype="float32")
    rng = np.random.default_rng(0)
    documents = [square_document(rng, config.model, args.size) for _ in range(args.count)]
    return Job(replace(config.model, vocab_size=6), config.train, [documents])


def sample_places(pixels: int, count: int, seed: int = 0) -> list[int]:
    """Places ``0 <= p < pixels``, one at random in each of ``count`` equal stretches.

    Even spacing would meet every window at the same pixel: the cost of a pixel depends on its place in the window.
    """
    ends = np.arange(min(count, pixels) + 1) * pixels // min(count, pixels)
    return [int(p) for p in np.random.default_rng(seed).integers(ends[:-1], ends[1:])]


def compare(logits: dict[str, Any]) -> float:
    """Largest difference from our logits, relative to the largest; raises `PixWordError` if it is too large."""
    ours = np.array(logits["ours"])
    difference = float(np.max([np.abs(np.array(other) - ours).max() for other in logits.values()]) / np.abs(ours).max())
    if not difference <= TOLERANCE:
        raise PixWordError(f"the programs disagree on the logits of the next pixel by {difference:.1e} of the largest")
    return difference


def _seconds(worker: Worker, places: list[int]) -> float:
    return float(worker.ask(draw=places)["seconds_a_pixel"])


# -------------------------------------------------------------------------------------------------- report


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Pixels per second of each side, and how often a baseline takes our time, from seconds a pixel of each round."""
    baselines = [side for side in seconds if side != "ours"]
    return {
        "pixels_per_second": {side: summary([1 / value for value in values]) for side, values in seconds.items()},
        "times_our_time": {side: summary(ratios(seconds[side], seconds["ours"])) for side in baselines},
    }


def print_table(result: dict[str, Any], args: GenerationArgs) -> None:
    """A line a side."""
    images = f"{args.count} {args.size}x{args.size} image{'s' if args.count > 1 else ''} at once"
    print(f"{images}; mlx and torch from a sample of {args.sample} pixels of each a round")
    print(f"{'side':<7}{'pixels/s':>10}{'s an image':>12}{'MLX operations':>16}{'x our time':>12}  rounds")
    for side, speed in result["pixels_per_second"].items():
        ratio = result["times_our_time"].get(side, {"median": 1.0, "rounds": []})
        print(
            f"{side:<7}{speed['median']:>10,.1f}{args.size**2 / speed['median']:>12,.1f}"
            f"{result['operations'][side] or '':>16}{ratio['median']:>12,.1f}  {' '.join(map(str, ratio['rounds']))}"
        )


# ------------------------------------------------------------------------------------------------- workers


class Drawer:
    """A worker: one side's model, the logits it gives and the seconds that a pixel takes it."""

    def __init__(self, side: str, folder: Path) -> None:
        self._side = SIDES[side](*read_job(folder))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Logits at places, operations at one, or the mean time of a pixel; a place counts pixels that are there."""
        if "logits" in request:
            return {"logits": [logits.tolist() for logits in self._side.logits(request["logits"])]}
        if "operations" in request:
            return {"operations": self._side.operations(request["operations"])}
        start = time.perf_counter()
        drawn = self._side.draw(request["draw"])
        return {"seconds_a_pixel": (time.perf_counter() - start) / drawn}


if __name__ == "__main__":
    run_command(main)
