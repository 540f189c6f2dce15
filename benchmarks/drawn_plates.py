"""Plates drawn after a prompt, and read by another model: the share that says what was asked for.

    python -m mlx_pixword.pretrain --caption-first 0.5 --out runs/prompted
    python benchmarks/drawn_plates.py --model runs/prompted/final

Prompts are the strings of held-out plates, which no run has seen. The reader is the one that comes with the library, or
--reader. It also reads the held-out plates themselves: no drawing can be expected to be read more often than these.
Spaces do not count.
"""

import mlx_pixword as pw  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from shared.record import keep, with_machine

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.plates import HEIGHT, WIDTH, PlateSource
from mlx_pixword.evaluation.scores import wilson
from mlx_pixword.inference.read import read_batch

AT_ONCE = 50  # plates that are drawn, or read, together


@dataclass(frozen=True)
class DrawnPlatesArgs:
    """Draw plates after prompts, and tell how many a reader reads as prompted."""

    model: str = setting("", "model trained with --caption-first, which draws", metavar="DIR_OR_REPO", path=True)
    reader: str | None = setting(
        None, "model that reads (default: the one that comes with the library)", metavar="DIR_OR_REPO"
    )
    count: int = setting(200, "plates to draw")
    temp: float = setting(1.0, "temperature of the drawing")
    seed: int = setting(1, "seed of the held-out plates and of the drawing")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the two shares and a line of JSON."""
    args = parse(DrawnPlatesArgs, "benchmarks/drawn_plates.py", argv, required=("model",))
    if args.count < 1:
        raise PixWordError(f"--count must be positive, got {args.count}")
    source = PlateSource(args.seed, reserved=True)
    plates = [source.plate(n) for n in range(args.count)]
    prompts = [plate.text for plate in plates]
    reader = pw.load(args.reader)
    shares = {
        "drawn": share(reader, draw_plates(args, prompts), prompts),
        "held_out": share(reader, [Image.fromarray(plate.draw()) for plate in plates], prompts),
    }
    for name, (value, low, high) in shares.items():
        print(f"{name:<9} {value:.3f}  ({low:.3f} to {high:.3f}) of {args.count} read as prompted")
    result = {"benchmark": "drawn_plates", "plates": args.count, "temp": args.temp, "seed": args.seed, **shares}
    print(json.dumps(result))
    if args.save:
        keep(with_machine(result), args.save)


def draw_plates(args: DrawnPlatesArgs, prompts: Sequence[str]) -> list[Image.Image]:
    """A plate after each prompt."""
    model, processor = pw.load(args.model)
    found = list[Image.Image]()
    for n in range(0, len(prompts), AT_ONCE):
        found += pw.generate_images(
            model, processor, prompts=prompts[n : n + AT_ONCE], size=(HEIGHT, WIDTH), temp=args.temp, seed=args.seed + n
        )
    return found


def share(reader: Any, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[float, float, float]:
    """Share of pictures that are read as these texts, and its 95% interval."""
    model, processor = reader
    right = 0
    for n in range(0, len(pictures), AT_ONCE):
        batch = processor.batch([[picture] for picture in pictures[n : n + AT_ONCE]])
        readings = read_batch(model, processor, batch, max_tokens=max(map(len, texts)) + 4)
        pairs = zip(readings, texts[n : n + AT_ONCE], strict=True)
        right += sum(reading.text.replace(" ", "") == text.replace(" ", "") for reading, text in pairs)
    low, high = wilson(right, len(pictures))
    return right / len(pictures), low, high


if __name__ == "__main__":
    run_command(main)
