"""Fine-tuning on few pictures of another kind, against the model before, the same from scratch, and adapters.

    python benchmarks/finetune.py --model runs/pretrain/final

The other kind: plates in six pairs of colours that no training plate has. Held-out ones have reserved strings, too.
Minutes are those of one process; the run from scratch gets as many steps of the same batches.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shared.record import keep, with_machine

import mlx_pixword as pw
from mlx_pixword import finetune, pretrain
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.plates import FONT_SIZES, SCHEMES, Plate, PlateSource
from mlx_pixword.evaluation.scores import wilson
from mlx_pixword.inference.words import generate_batch

OTHERS = (  # ink, background
    ((140, 40, 120), (190, 235, 190)),
    ((20, 90, 100), (255, 205, 160)),
    ((235, 240, 170), (70, 30, 90)),
    ((60, 60, 60), (170, 190, 230)),
    ((160, 240, 240), (120, 50, 20)),
    ((0, 70, 160), (230, 170, 190)),
)


@dataclass(frozen=True)
class FinetuneArgs:
    """Exact match on another kind of plates: before, fine-tuned, with adapters, and trained from scratch."""

    model: str = setting("", "model folder that reads plates", metavar="DIR_OR_REPO")
    count: int = setting(300, "pictures to adapt to")
    heldout: int = setting(500, "held-out pictures to read")
    steps: int = setting(300, "optimiser steps at most")
    seed: int = setting(0, "seed of the pictures")
    lora: int = setting(16, "rank of the adapters")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if min(self.count, self.heldout, self.steps, self.lora) < 1:
            raise PixWordError("--count, --heldout, --steps and --lora must be positive")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and a line of JSON."""
    args = parse(FinetuneArgs, "benchmarks/finetune.py", argv, required=("model",))
    heldout = plates(args.seed + 1, args.heldout, reserved=True)
    with tempfile.TemporaryDirectory() as folder:
        data = write(plates(args.seed, args.count, reserved=False), Path(folder) / "data")
        sides = {"before": {"exact_match": read(heldout, args.model), "minutes": 0.0}}
        for name in ("finetune", "lora", "scratch"):
            start = time.perf_counter()
            final = _train(name, args, data, Path(folder) / name)
            minutes = (time.perf_counter() - start) / 60
            adapters = final if name == "lora" else None
            score = read(heldout, args.model if adapters else final, adapters)
            sides[name] = {"exact_match": score, "minutes": round(minutes, 2)}
    for name, side in sides.items():
        low, high = wilson(round(side["exact_match"] * args.heldout), args.heldout)
        print(f"{name:<10}{side['exact_match']:8.1%}  ({low:.1%} to {high:.1%})  {side['minutes']:6.2f} min")
    asked = {"pictures": args.count, "heldout": args.heldout, "steps": args.steps, "seed": args.seed, "rank": args.lora}
    result = with_machine({"benchmark": "finetune", "sides": sides, **asked})
    print(json.dumps(result))
    if args.save:
        keep(result, args.save)


def plates(seed: int, count: int, *, reserved: bool) -> list[Plate]:
    """Plates in the other colours."""
    assert not set(OTHERS) & set(SCHEMES)
    source, made = PlateSource(seed, reserved=reserved), []
    for n in range(count):
        plate, rng = source.plate(n), np.random.default_rng((seed, int(reserved), n, 1))
        (ink, background), size = OTHERS[rng.integers(len(OTHERS))], int(rng.choice(FONT_SIZES))
        made.append(Plate(plate.text, ink, background, size, rng.random(), rng.random(), name=f"plate {n}"))
    return made


def write(made: Sequence[Plate], folder: Path) -> Path:
    """PNG files and `labels.jsonl`, whose path is returned."""
    folder.mkdir()
    lines = []
    for n, plate in enumerate(made):
        Image.fromarray(plate.draw()).save(folder / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "caption": plate.text}))
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return folder / "labels.jsonl"


def read(made: Sequence[Plate], model: str | Path, adapters: Path | None = None) -> float:
    """The share of plates that a model reads exactly."""
    network, processor = pw.load(model, adapter_path=adapters)
    right = 0
    for n in range(0, len(made), 64):
        some = made[n : n + 64]
        texts = generate_batch(network, processor, processor.batch([[Image.fromarray(p.draw())] for p in some]))
        right += sum(text == plate.text for text, plate in zip(texts, some, strict=True))
    return round(right / len(made), 4)


def _train(name: str, args: FinetuneArgs, data: Path, out: Path) -> Path:
    shared = ["--data", str(data), "--out", str(out), "--steps", str(args.steps), "--sample-images", "0"]
    if name == "scratch":
        pretrain.main([*shared, "--eval-every", str(args.steps), "--draw-images", "0"])
        return out / "final"
    adapters: list[Any] = ["--lora", args.lora, "--lora-image-block"] if name == "lora" else []
    finetune.main([*shared, "--model", args.model, *map(str, adapters)])
    return out / "final"


if __name__ == "__main__":
    run_command(main)
