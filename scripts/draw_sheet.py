"""Draw plates with a trained model and tile them into one picture, to look at.

python scripts/draw_sheet.py --model runs/pretrain/final --out sheet.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

import mlx_pixword as pw
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.plates import HEIGHT, WIDTH

SCALE, GAP = 4, 2  # screen pixels a pixel, pixels between plates


@dataclass(frozen=True)
class SheetArgs:
    """Draw plates and tile them into one picture."""

    model: Path = setting(Path("runs/pretrain/final"), "model directory", metavar="DIR")
    out: Path = setting(Path("sheet.png"), "PNG file to write; must not exist", metavar="FILE")
    rows: int = setting(4, "rows of plates")
    columns: int = setting(6, "plates a row")
    prompt: str = setting("", "text before each plate")
    temp: float = setting(1.0, "temperature")
    seed: int = setting(0, "seed of the first plate; the next ones follow")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw and write the sheet."""
    args = parse(SheetArgs, "scripts/draw_sheet.py", argv)
    if args.rows < 1 or args.columns < 1:
        raise PixWordError(f"--rows and --columns must be positive, got {args.rows} and {args.columns}")
    if args.out.exists():
        raise PixWordError(f"--out {args.out} exists; choose another name")
    model, processor = pw.load(str(args.model))
    count = args.rows * args.columns
    plates = pw.generate_images(
        model, processor, args.prompt, (HEIGHT, WIDTH), count, temp=args.temp, seed=args.seed
    )  # fmt: skip
    tile(plates, args.columns).save(args.out)
    print(f"{count} drawn plates in {args.out}", file=sys.stderr)


def tile(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows, enlarged, on white."""
    framed = [ImageOps.expand(picture, GAP // 2, "white") for picture in pictures]
    width, height = framed[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(framed) // columns)), "white")
    for n, picture in enumerate(framed):
        sheet.paste(picture, (n % columns * width, n // columns * height))
    return ImageOps.scale(sheet, SCALE, Image.Resampling.NEAREST)


if __name__ == "__main__":
    run_command(main)
