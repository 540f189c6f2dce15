"""What README's first command has learnt when it ends: numbers by ink height, in faces and strings that it never saw.

python benchmarks/default_run.py                               # runs the command, then reads
python benchmarks/default_run.py --set steps=2600              # for longer
python benchmarks/default_run.py --model runs/pretrain/final   # reads with a model that is there

Numbers of two and three digits, of reserved strings in the held-out families of the bundled faces, in any colours,
with neighbours, noise, blur and turns as the training has them.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared.record import keep, with_machine

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import assigned, setting
from mlx_pixword.config.run import make_config
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.text_images import TextSource, TextStyle
from mlx_pixword.evaluation.readings import read_documents
from mlx_pixword.evaluation.scores import wilson
from mlx_pixword.model.document import Document
from mlx_pixword.training.checkpoint import newest_checkpoint
from mlx_pixword.weights.directory import load

RESULTS = Path(__file__).parent / "results"
BANDS = (
    (4.5, 7.0),
    (7.0, 10.0),
    (10.0, 12.0),
    (12.0, 14.0),
    (14.0, 16.0),
)  # ink heights in pixels; it learns from 10 on
ELEMENTS = 4096  # of a batch that is read


@dataclass(frozen=True)
class DefaultRunArgs:
    """Run README's first command, and read numbers of each height with what it leaves."""

    model: Path | None = setting(None, "a model of that command; none: run it", metavar="DIR")
    count: int = setting(500, "crops a band of heights")
    seed: int = setting(1, "of the crops")
    set: list[str] = setting(
        [], "a setting of the run instead of the preset's, NAME=VALUE; may be repeated", metavar="NAME=VALUE"
    )
    out: Path = setting(RESULTS, "folder for the result", metavar="DIR")
    run: Path = setting(Path("runs/default_run"), "folder for the run", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Train if there is no model, read, and keep the figures."""
    args = parse(DefaultRunArgs, "benchmarks/default_run.py", argv)
    changes = assigned(args.set, "--set")
    cost = {} if args.model else train(args.run, changes)
    model, processor = load(args.model or args.run / "final", dtype="float32")
    encoder = Encoder(model.args, processor.tokenizer, SkipLog())
    figures, inside = dict[str, Any](), list[bool]()
    for low, high in BANDS:
        documents = crops(encoder, args.seed, (low, high), args.count, model.args.image_size)
        right = [read == written for read, written in read_documents(model, processor, documents, ELEMENTS)]
        inside += right if low >= 10 else []
        figures[f"{low:g} to {high:g} px"] = report(f"{low:g} to {high:g} px", right)
    figures["10 to 16 px"] = report("10 to 16 px", inside)
    about = {"benchmark": "default_run", **cost, "changes": changes}
    keep(with_machine({**about, "exact_match": figures}), args.out)


def train(folder: Path, changes: Mapping[str, Any]) -> dict[str, float]:
    """Run README's first command, perhaps with changes; minutes that it took, of all cores too, and to draw crops."""
    start, before = time.monotonic(), processor_seconds()
    command = [sys.executable, "-m", "mlx_pixword.pretrain", "--preset", "numbers", "--out", str(folder)]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    subprocess.run([*command, *flags], check=True)
    minutes, processor = (time.monotonic() - start) / 60, (processor_seconds() - before) / 60
    drawing = drawn_crops(folder, changes) * seconds_a_crop() / 60
    print(f"{minutes:.2f} minutes, {processor:.2f} of the cores together; {drawing / processor:.1%} drew the crops")
    found = {"minutes": minutes, "processor_minutes": processor, "drawing": drawing / processor}
    return {name: round(value, 4) for name, value in found.items()}


def processor_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def drawn_crops(folder: Path, changes: Mapping[str, Any]) -> int:
    """Crops that a run has drawn at most: all of the group that it ended in."""
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise PixWordError(f"{folder} has no checkpoint")
    return (checkpoint.progress.group + 1) * make_config({"preset": "numbers", **changes}).data.group_size


def seconds_a_crop(count: int = 1000) -> float:
    """Processor time of drawing a crop of that run."""
    source = TextSource(0, False, TextStyle(kinds=("numbers",), heights=(10.0, 16.0), length=3))
    source.crop(0).draw()
    start = time.process_time()
    for index in range(count):
        source.crop(index).draw()
    return (time.process_time() - start) / count


def crops(encoder: Encoder, seed: int, heights: tuple[float, float], count: int, size: int) -> list[Document]:
    """Held-out numbers of two and three digits."""
    source = TextSource(seed, True, TextStyle(kinds=("numbers",), heights=heights, length=3), size)
    chosen = (n for n in range(20 * count) if len(source.crop(n).text) > 1)
    return [document for _, n in zip(range(count), chosen, strict=False) for document in encoder(source.parts(n), True)]


def report(name: str, right: Sequence[bool]) -> dict[str, Any]:
    """Exact match with its 95% interval."""
    low, high = wilson(sum(right), len(right))
    print(f"{name:<12} exact match {np.mean(right):.3f} ({low:.3f} to {high:.3f}) of {len(right)}")
    return {
        "exact_match": round(float(np.mean(right)), 4),
        "interval": [round(low, 4), round(high, 4)],
        "n": len(right),
    }


if __name__ == "__main__":
    run_command(main)
