"""The commands of the experiments: parse, call, print."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

RESULTS, SCRATCH = Path("benchmarks/evidence/results"), Path("runs/evidence")
BLOCK_NAMES = ("i", "ii", "iii", "iv", "v", "vi")


@dataclass(frozen=True)
class PrepareArgs:
    """Fix the plan and draw the crops: training, development and test sets."""

    plan: str = setting(
        "full",
        "full: 18 minutes of one core a run; short: 8; quick: seconds",
        choices=("full", "short", "quick"),
    )
    minutes: float = setting(0.0, "minutes of a run, in place of the plan's")
    seeds: int = setting(0, "seeds of the main comparison, in place of the plan's")
    real: Path | None = setting(None, "folder of real sets, made by benchmarks/real_text.py --prepare", metavar="DIR")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")
    scratch: Path = setting(SCRATCH, "folder of crops, states and locks, which is not kept", metavar="DIR")


@dataclass(frozen=True)
class TimingArgs:
    """Measure processor seconds and operations a crop of every arm; single-threaded."""

    blocks: str = setting(",".join(BLOCK_NAMES), "blocks whose arms and variants are measured; others stay as kept")
    rounds: int = setting(5, "times that each arm's turn comes")
    steps: int = setting(6, "steps a turn")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")
    scratch: Path = setting(SCRATCH, "folder of crops, states and locks", metavar="DIR")


@dataclass(frozen=True)
class RunArgs:
    """Take the next runs and do them; stopped at any time, the same command goes on."""

    minutes: float = setting(0.0, "stop after so many minutes; 0: when all is done")
    jobs: int = setting(2, "runs at a time, one thread each")
    blocks: str = setting("i", "blocks of the protocol, with commas between, in this order")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")
    scratch: Path = setting(SCRATCH, "folder of crops, states and locks", metavar="DIR")


@dataclass(frozen=True)
class WorkArgs:
    """One worker, as `run` starts them."""

    deadline: float = setting(float("inf"), "when to stop, seconds since 1970")
    blocks: str = setting("i", "blocks of the protocol, with commas between")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")
    scratch: Path = setting(SCRATCH, "folder of crops, states and locks", metavar="DIR")


@dataclass(frozen=True)
class StatusArgs:
    """What is done and what is left."""

    blocks: str = setting(",".join(BLOCK_NAMES), "blocks of the protocol, with commas between")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")


@dataclass(frozen=True)
class PredictArgs:
    """Predict the largest run's loss from the smaller ones; commit `prediction.json` before you go on."""

    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")


@dataclass(frozen=True)
class ReportArgs:
    """Make the tables of a page, one HTML page and the figures from the kept JSON."""

    page: Path = setting(Path("docs/evidence.md"), "page whose results are replaced", metavar="FILE")
    figures: Path = setting(Path("docs/evidence"), "folder of the HTML page and the figures", metavar="DIR")
    open_closed: bool = setting(False, "first read the closed third of the real sets with all finished runs, once")
    results: Path = setting(RESULTS, "folder of what is kept", metavar="DIR")
    scratch: Path = setting(SCRATCH, "folder of crops and final weights", metavar="DIR")


@dataclass(frozen=True)
class ReproduceArgs:
    """Everything, from drawing the crops to the page."""

    quick: bool = setting(False, "tiny settings, in a temporary folder; the page goes there too")
    jobs: int = setting(2, "runs at a time, one thread each")
    blocks: str = setting(",".join(BLOCK_NAMES), "blocks of the protocol, with commas between")
    out: Path | None = setting(None, "with --quick: folder to write to instead of a temporary one", metavar="DIR")


def prepare(argv: Sequence[str] | None) -> None:
    from .analysis import main_records
    from .crops import prepare_crops
    from .plan import keep_plan, plan_named
    from .real import DEVELOPMENT, REAL_SETS, prepare_real, read_again

    args = parse(PrepareArgs, "benchmarks/evidence prepare", argv)
    changes = {name: value for name in ("minutes", "seeds") if (value := getattr(args, name))}
    if any(value < 0 for value in changes.values()):
        raise PixWordError(f"--minutes and --seeds must be positive, got {args.minutes:g} and {args.seeds}")
    plan = plan_named(args.plan, **changes)
    keep_plan(plan, args.results)
    prepare_crops(plan, args.results, args.scratch)
    notice(f"crops in {args.scratch}, plan and test set in {args.results}")
    missing: Sequence[str] = REAL_SETS
    if args.real is not None:
        missing = prepare_real(args.real, plan, args.results, args.scratch)
        if lost := read_again(main_records(args.results), plan, DEVELOPMENT, args.results, args.scratch):
            notice(f"no final weights of {len(lost)} finished runs, which read no real set: {', '.join(lost)}")
    if missing:
        notice(f"without the real sets {', '.join(missing)}: no claim can be supported")


def timing(argv: Sequence[str] | None) -> None:
    from mlx_pixword.common.blas import keep_memory

    from .plan import kept_plan
    from .timing import measure, variants_of

    args = parse(TimingArgs, "benchmarks/evidence timing", argv)
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # the library reads it once, when it is loaded
        os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    keep_memory()  # as runs do
    names = variants_of(blocks_of(args.blocks))
    measure(kept_plan(args.results), args.results, args.scratch, args.rounds, args.steps, names)
    notice(f"kept in {args.results / 'timing.json'}")


def run(argv: Sequence[str] | None) -> None:
    from .runner import run_jobs

    args = parse(RunArgs, "benchmarks/evidence run", argv)
    if args.jobs < 1 or args.minutes < 0:
        raise PixWordError(f"--jobs must be at least 1 and --minutes not negative, got {args.jobs} and {args.minutes}")
    left = run_jobs(args.results, args.scratch, blocks_of(args.blocks), args.jobs, args.minutes)
    notice(f"{left} runs left of those known" if left else f"blocks {args.blocks}: all runs are done")


def work(argv: Sequence[str] | None) -> None:
    from .runner import Stop
    from .runner import work as go

    args = parse(WorkArgs, "benchmarks/evidence work", argv)
    stop = Stop(args.deadline)
    with stop.listening():
        go(args.results, args.scratch, blocks_of(args.blocks), stop)


def status(argv: Sequence[str] | None) -> None:
    from .manifest import core_seconds, manifest, unnamed
    from .records import known

    args = parse(StatusArgs, "benchmarks/evidence status", argv)
    state, blocks = known(args.results), blocks_of(args.blocks)
    left = dict.fromkeys(blocks, 0.0)
    for spec in [*manifest(state, blocks), *unnamed(state, blocks)]:
        done, seconds = state.nats.get(spec.id), core_seconds(state, spec)
        told = ", ".join(f"{name} {nats:.3f}" for name, nats in done.items()) if done is not None else "to do"
        left[spec.block] = left.get(spec.block, 0.0) + (seconds if done is None else 0.0)
        print(f"{spec.id:<44}{max(spec.points.values()):>9,} crops{seconds / 60:7.1f} min  {told}")
    each = ", ".join(f"{block} {seconds / 60:.0f}" for block, seconds in left.items() if seconds)
    print(
        f"left: about {sum(left.values()) / 60:.0f} core-minutes{f' ({each})' if each else ''}, by the timing, with "
        "evaluation; further learning rates are not counted, nor what follows from others in blocks iv to vi"
    )


def predict(argv: Sequence[str] | None) -> None:
    from .analysis import largest_size, read_records
    from .plan import kept_plan
    from .scaling import keep_prediction

    args = parse(PredictArgs, "benchmarks/evidence predict", argv)
    plan = kept_plan(args.results)
    path = args.results / "prediction.json"
    if path.exists():
        raise PixWordError(f"{path} is there already; a prediction is made once, before the run")
    records = read_records(args.results)
    keep_prediction(records, (largest_size(plan), plan.scaling_crops), path, plan.replicates // 10)
    notice(f"kept in {path}; commit it before `run --blocks vi`")


def report(argv: Sequence[str] | None) -> None:
    from .pages import write_pages
    from .real import take_engines

    args = parse(ReportArgs, "benchmarks/evidence report", argv)
    if args.open_closed:
        from .analysis import main_records
        from .plan import kept_plan
        from .real import open_closed
        from .records import commit, now

        stamp = {"opened": now(), "commit": commit()}
        records, plan = main_records(args.results), kept_plan(args.results)
        if lost := open_closed(records, plan, args.results, args.scratch, stamp):
            notice(f"no final weights of {len(lost)} finished runs, which read no real set: {', '.join(lost)}")
    take_engines(Path(__file__).parents[1] / "results", args.results)
    write_pages(args.results, args.page, args.figures)
    notice(f"results in {args.page}, figures and page in {args.figures}")


def reproduce(argv: Sequence[str] | None) -> None:
    """Each part as its own process: what a user would type."""
    import subprocess
    import tempfile

    args = parse(ReproduceArgs, "benchmarks/evidence reproduce", argv)
    blocks = blocks_of(args.blocks)
    folder = (args.out or Path(tempfile.mkdtemp(prefix="evidence-"))) if args.quick else None
    results, scratch = (folder / "results", folder / "scratch") if folder else (RESULTS, SCRATCH)
    page = ["--page", str(folder / "evidence.md"), "--figures", str(folder / "evidence")] if folder else []
    places = ["--results", str(results), "--scratch", str(scratch)]
    run_all = ["run", "--jobs", str(args.jobs), *places, "--blocks"]
    timed, predicted = (results / "timing.json").exists(), (results / "prediction.json").exists()
    steps = [
        [] if (results / "plan.json").exists() else ["prepare", "--plan", "quick" if args.quick else "full", *places],
        [] if timed else ["timing", *(["--rounds", "1", "--steps", "1"] * args.quick), *places],
        [*run_all, ",".join(blocks)],
        ["predict", "--results", str(results)] if "vi" in blocks and not predicted else [],
        [*run_all, "vi"] if "vi" in blocks else [],
        ["report", "--results", str(results), *page],
    ]  # fmt: skip
    for step in filter(None, steps):
        notice(f"python benchmarks/evidence {' '.join(step)}")
        if subprocess.run([sys.executable, str(Path(__file__).parent), *step]).returncode:
            raise PixWordError(f"{step[0]} failed; the same command goes on")


COMMANDS: dict[str, Callable[[Sequence[str] | None], None]] = {
    "prepare": prepare, "timing": timing, "run": run, "status": status, "predict": predict, "report": report,
    "reproduce": reproduce, "work": work,
}  # fmt: skip
_HELP = {"prepare": PrepareArgs, "timing": TimingArgs, "run": RunArgs, "status": StatusArgs, "predict": PredictArgs,
         "report": ReportArgs, "reproduce": ReproduceArgs}  # fmt: skip


def blocks_of(text: str) -> list[str]:
    """Blocks by their names."""
    blocks = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [block for block in blocks if block not in BLOCK_NAMES]:
        raise PixWordError(f"--blocks: unknown block {unknown[0]!r}; blocks are {', '.join(BLOCK_NAMES)}")
    return blocks


def main(argv: Sequence[str] | None = None) -> None:
    """One command with its arguments."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        for name, settings in _HELP.items():
            print(f"python benchmarks/evidence {name:<9}{' '.join((settings.__doc__ or '').split())}")
        return
    if argv[0] not in COMMANDS:
        raise PixWordError(f"unknown command {argv[0]!r}; commands are {', '.join(_HELP)}")
    COMMANDS[argv[0]](argv[1:])


def console() -> None:
    """The process's own arguments."""
    run_command(main)
