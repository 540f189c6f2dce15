"""How fast a model trains: one optimiser step of this library against the paper's program in PyTorch, on the CPU.

    python benchmarks/train_step.py --case tiny-plates --objective boundary

ours        `mlx_pixword.training.step.make_step`, the path of `pretrain`: micro-batches on one stream a thread
peer        peer/: square padding, every window through every layer, plain AdamW
peer-compiled  with --compiled: the peer through `torch.compile`, which needs a C++ compiler
ours-plain  with --plain: ours without the image block's read-out and table projection

Timed are whole optimiser steps on the same images: forward, backward, clipping, AdamW, until all is evaluated. Batches
are laid out before. Each side has a process of its own, and they take turns. Before a case is measured both programs
get the same weights and square images of whole windows, where they are the same function: loss and gradient norm must
agree. Printed are medians over the rounds, of the speeds and of each round's ratios.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shared.torch_first  # noqa: F401  (before all that imports mlx_pixword)
from loader import make_photos
from peer.train_sides import work
from shared.record import keep
from shared.rounds import WORKER, Worker, in_turn, ratios, require_torch, summary, warn_if_busy, with_torch
from shared.workload import (
    CASES,
    DISTINCT,
    OBJECTIVES,
    Job,
    check_job,
    initial_weights,
    make_job,
    with_objective,
    write_job,
)

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

MADE_PHOTOS = 24
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3  # relative


@dataclass(frozen=True)
class TrainStepArgs:
    """Images per second and memory of a training step, ours against the paper's program in PyTorch."""

    case: str = setting("all", "what to train", choices=("all", *CASES))
    objective: str = setting("both", "what is predicted", choices=("both", *OBJECTIVES))
    rounds: int = setting(5, "rounds; medians are printed")
    seconds: float = setting(4.0, "about how long one measurement of the slower side takes")
    threads: int = setting(2, "threads of each side")
    images: int = setting(0, "images an optimiser step (default: as many as pretrain would take)")
    ours_micro: int = setting(2, "micro-batches that our side cuts a step's images into")
    peer_micro: int = setting(1, "micro-batches that the peer cuts a step's images into")
    compiled: bool = setting(False, "also measure the peer through torch.compile (it needs a C++ compiler)")
    plain: bool = setting(False, "also measure ours without the image block's exact savings")
    data: Path | None = setting(None, "folder of photos (default: photo-like ones are made)", metavar="DIR")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "ours_micro", "peer_micro"):
            if getattr(self, name) < 1:
                raise PixWordError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.seconds < float("inf") or self.images < 0:
            raise PixWordError(
                f"--seconds must be positive and --images not negative, got {self.seconds} and {self.images}"
            )

    @property
    def sides(self) -> list[str]:
        more = {"peer-compiled": self.compiled, "ours-plain": self.plain}
        return ["ours", "peer", *(name for name, wanted in more.items() if wanted)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all cases, print a table as it grows and, on the last line, the JSON."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == [WORKER]:
        return work(argv[1])
    args = parse(TrainStepArgs, "benchmarks/train_step.py", argv)
    require_torch()
    warn_if_busy()
    results: dict[str, Any] = {}
    print_heading()
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES if args.case == "all" else [args.case]:
            folder = Path(scratch) / case
            photos = _photos(case, args, folder)
            job = make_job(case, photos, args.images)
            job = replace(job, train=replace(job.train, accumulate=args.ours_micro, streams=args.threads))
            weights = initial_weights(job.model)
            agreement = check(job, weights, args, folder)
            for objective in OBJECTIVES if args.objective == "both" else [args.objective]:
                path = write(with_objective(job, objective), weights, args, folder / objective)
                results[f"{case} {objective}"] = measure(path, args) | {"agreement": agreement[objective]}
                print_rows(case, objective, results[f"{case} {objective}"])
    result = report(results, args)
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))
    return None


def _photos(case: str, args: TrainStepArgs, folder: Path) -> Path | None:
    if case != "wide-photos":
        return None
    return args.data or make_photos(folder / "photos", MADE_PHOTOS)


def write(job: Job, weights: dict[str, np.ndarray], args: TrainStepArgs, folder: Path) -> Path:
    return write_job(job, folder, weights, threads=args.threads, peer_micro=args.peer_micro)


def start(side: str, args: TrainStepArgs) -> Worker:
    """The process of a side. `prepare_streams` leaves OpenBLAS one thread where there are several streams."""
    count = str(args.threads)
    # Threads of OpenMP that spin while they wait make the peer several times slower wherever a core is shared.
    env = {"OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    return Worker(Path(__file__), side, env=env)


# --------------------------------------------------------------------------------------------------- check


def check(job: Job, weights: dict[str, np.ndarray], args: TrainStepArgs, folder: Path) -> dict[str, dict[str, float]]:
    """How far the peer's loss and gradient norm lie from ours, relatively, by objective; raises where it is too far."""
    paths = {
        objective: write(with_objective(check_job(job), objective), weights, args, folder / f"check-{objective}")
        for objective in OBJECTIVES
    }
    found: dict[str, dict[str, Any]] = {objective: {} for objective in OBJECTIVES}
    for side in args.sides:
        with start(side, args) as worker:
            for objective, path in paths.items():
                worker.ask(job=str(path))
                found[objective][side] = worker.ask(steps=1)
    return {objective: compare(objective, sides) for objective, sides in found.items()}


def compare(objective: str, sides: dict[str, dict[str, float]]) -> dict[str, float]:
    """Relative differences between the sides' losses and gradient norms; raises `PixWordError` if one is too large."""
    differences = {}
    for name, tolerance in (("loss", LOSS_TOLERANCE), ("norm", NORM_TOLERANCE)):
        values = np.array([side[name] for side in sides.values()])
        differences[name] = float(np.abs(values / values[0] - 1).max())  # NumPy's: not a number stays that
        if not differences[name] <= tolerance:
            raise PixWordError(
                f"the programs disagree on the {objective} {name} of the same images with the same weights, "
                f"{' and '.join(f'{value:.6g}' for value in values)}; nothing was measured"
            )
    return differences


# ----------------------------------------------------------------------------------------------- measuring


def measure(path: Path, args: TrainStepArgs) -> dict[str, Any]:
    """Speeds and memory of every side of one job, and the ratios to the peer."""
    with ExitStack() as stack:
        workers = {side: stack.enter_context(start(side, args)) for side in args.sides}
        slowest = 0.0
        for worker in workers.values():
            worker.ask(job=str(path))
            worker.ask(steps=DISTINCT)  # buffers, thread pools, and what is compiled for each shape
            slowest = max(slowest, worker.ask(steps=1)["seconds"])
        steps = max(1, round(args.seconds / slowest))
        answers = in_turn({side: partial(workers[side].ask, steps=steps) for side in workers}, args.rounds)
    return summarise(answers) | {"steps": steps}


def summarise(answers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians and rounds of images and pixels per second, memory in MB, and each round's ratio to the peer."""
    speeds = {side: [a["images"] / a["seconds"] for a in given] for side, given in answers.items()}
    sides = {
        side: {
            "images_per_second": summary(speeds[side]),
            "pixels_per_second": summary([a["pixels"] / a["seconds"] for a in given]),
            "peak_mb": round(given[-1]["peak"] / 1e6),
            "peak_over_start_mb": round((given[-1]["peak"] - given[-1]["before"]) / 1e6),
        }
        for side, given in answers.items()
    }
    to_peer = {side: summary(ratios(speeds[side], speeds["peer"])) for side in speeds if side != "peer"}
    return {"sides": sides, "ratio_to_peer": to_peer}


# -------------------------------------------------------------------------------------------------- report


def report(results: dict[str, Any], args: TrainStepArgs) -> dict[str, Any]:
    """What is kept: medians, every round, the settings, the machine and the versions."""
    settings = {name: value for name, value in asdict(args).items() if name not in ("data", "save")}
    settings["made_photos"] = args.data is None
    return with_torch({"benchmark": "train_step", "cases": results, "settings": settings})


def print_heading() -> None:
    print(
        f"{'case':<12}{'objective':<10}{'side':<14}{'images/s':>10}{'pixels/s':>12}{'peak MB':>9}{'of steps':>9}"
        f"{'x peer':>8}  rounds"
    )


def print_rows(case: str, objective: str, result: dict[str, Any]) -> None:
    """A line a side: speeds, peak memory, that above the start, and times the peer."""
    for side, values in result["sides"].items():
        ratio = result["ratio_to_peer"].get(side, {"median": 1.0, "rounds": []})
        print(
            f"{case:<12}{objective:<10}{side:<14}{values['images_per_second']['median']:>10,.2f}"
            f"{values['pixels_per_second']['median']:>12,.0f}{values['peak_mb']:>9,}"
            f"{values['peak_over_start_mb']:>9,}{ratio['median']:>8.2f}  {' '.join(map(str, ratio['rounds']))}",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main)
