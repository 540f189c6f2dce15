"""The first minutes of the reader's recipe, from scratch: does a run learn as the kept record did?

python benchmarks/reader_start.py          # trains for ten minutes, prints its curve beside the kept one; status 1: no
python benchmarks/reader_start.py --save   # keeps its curve as the record

Runs are compared at equal steps, as machines differ in minutes. The rate has not fallen and strings still grow, so
exact match says little yet; the loss of held-out words says how far a run has come.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.record import with_machine

from mlx_pixword.apps.run_files import held_out_curve
from mlx_pixword.common import files
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "reader-start.json"
TOLERANCE = 0.1  # of the word loss at the last step that both have

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class ReaderStartArgs:
    """Train the reader from scratch for some minutes, and compare with the kept record."""

    minutes: float = setting(10.0, "minutes to train")
    out: Path = setting(Path("runs/reader_start"), "folder of the run; one that is there goes on", metavar="DIR")
    train: bool = setting(True, "train; or compare what lies in --out")
    save: bool = setting(False, "keep the curve as the record, in place of comparing")
    record: Path = setting(RECORD, "file of the record", metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then keep or compare; the exit status is 1 where a run learns less than the record."""
    args = parse(ReaderStartArgs, "benchmarks/reader_start.py", argv)
    if args.minutes <= 0:
        raise PixWordError(f"--minutes must be positive, got {args.minutes}")
    if not args.save and not args.record.is_file():
        raise PixWordError(f"there is no record {args.record} to compare with; --save keeps one")
    if args.train:
        script = [sys.executable, str(ROOT / "scripts" / "train_reader.py"), "--out", str(args.out), "--no-ship"]
        subprocess.run([*script, "--minutes", f"{args.minutes}", "--set", "eval_every=250"], check=True)
    curve = read_curve(args.out)
    if args.save:
        result = with_machine({"benchmark": "reader_start", "curve": curve})
        files.make_folder(args.record.parent)
        files.replace_file(args.record, (json.dumps(result, indent=1) + "\n").encode())
        print(f"kept in {args.record}")
    elif not compare(curve, json.loads(args.record.read_text(encoding="utf-8"))["curve"]):
        sys.exit(1)


def read_curve(out: Path) -> Curve:
    """`held_out_curve` of a run that has read something."""
    if not (out / "metrics.jsonl").is_file():
        raise PixWordError(f"--out {out} holds no run")
    curve, _ = held_out_curve(out)
    if not curve:
        raise PixWordError(f"the run in {out} has read no held-out crops yet; give it more --minutes")
    return curve


def compare(curve: Curve, record: Curve) -> bool:
    """Print both at equal steps; whether the run's word loss is no more than a tenth above the record's at the last."""
    kept = {point["step"]: point for point in record}
    pairs = [(point, kept[point["step"]]) for point in curve if point["step"] in kept]
    if not pairs:
        raise PixWordError(f"the run and the record have no step in common; the record has {sorted(kept)}")
    print("step     word loss   record   exact match   record")
    for now, then in pairs:
        losses, shares = (f"{now[name]:9.4f}{then[name]:9.4f}" for name in ("word_loss", "exact_match"))
        print(f"{now['step']:<9}{losses}     {shares}")
    now, then = pairs[-1]
    good = now["word_loss"] <= (1 + TOLERANCE) * then["word_loss"]
    print("it learns as the record did" if good else f"it learns less than the record: more than {TOLERANCE:.0%} above")
    return good


if __name__ == "__main__":
    run_command(main)
