"""Write plates with reserved strings as PNG files and `labels.jsonl`, for `python -m mlx_pixword.evaluate`.

python scripts/make_plates.py --count 500 --seed 1 --out plates
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.data import COLORS
from mlx_pixword.data.plates import PlateSource


@dataclass(frozen=True)
class PlatesArgs:
    """Write number plates as PNG files with labels.jsonl."""

    count: int = setting(500, "plates to write")
    seed: int = setting(1, "seed of the plates")
    out: Path = setting(Path("plates"), "folder to write to; must not hold anything", metavar="DIR")
    colors: str = setting("schemes", "colours of the plates", choices=COLORS)
    training: bool = setting(False, "draw strings of the training part instead of reserved ones")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the plates."""
    args = parse(PlatesArgs, "scripts/make_plates.py", argv)
    if args.count < 1 or args.seed < 0:
        raise PixWordError(f"--count must be positive and --seed not negative, got {args.count} and {args.seed}")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise PixWordError(f"--out {args.out} holds something already; choose another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    source = PlateSource(args.seed, reserved=not args.training, colors=args.colors)
    lines = []
    for n in range(args.count):
        plate, name = source.plate(n), f"{n:05d}.png"
        Image.fromarray(plate.draw()).save(args.out / name)
        lines.append(json.dumps({"image": name, "caption": plate.text}) + "\n")
    (args.out / "labels.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{args.count} plates in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
