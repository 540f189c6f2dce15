"""Write the example's picture: a small receipt, as a phone shows it from afar; the boxes of its prices are printed.

python scripts/make_receipt.py --out docs/images/receipt.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.fonts import bundled_faces

SIZE, LARGE = (132, 96), 8  # width and height in pixels; how many times larger it is drawn
LINES = (("CORNER CAFE", "26/11/2026"), ("Tea", "2.40"), ("Soup", "5.80"), ("Bread", "1.15"), ("Total", "9.35"))
FIRST, STEP = 12, 18  # pixels from the top to the first line, and from line to line
EM = 10.5  # pixels
INK, PAPER = (52, 48, 60), (236, 231, 219)
FACE = "DejaVu Sans Book"


@dataclass(frozen=True)
class ReceiptArgs:
    """Write a picture of a small receipt."""

    out: Path = setting(Path("receipt.png"), "PNG file to write; must not exist", metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture, and print what stands in which box."""
    args = parse(ReceiptArgs, "scripts/make_receipt.py", argv)
    if args.out.exists():
        raise PixWordError(f"--out {args.out} exists; choose another name")
    picture, boxes = receipt()
    picture.save(args.out)
    for box, text in boxes:
        print(f"--box {','.join(map(str, box))}  {text}")


def receipt() -> tuple[Image.Image, list[tuple[tuple[int, int, int, int], str]]]:
    """The picture, and boxes ``(x, y, width, height)`` of its right column with their texts."""
    face = next(face for face in bundled_faces() if face.name == FACE)
    font = face.font.font_variant(size=round(EM * LARGE))
    picture = Image.new("RGB", (SIZE[0] * LARGE, SIZE[1] * LARGE), PAPER)
    draw, boxes = ImageDraw.Draw(picture), list[tuple[tuple[int, int, int, int], str]]()
    for number, (left, right) in enumerate(LINES):
        y = (FIRST + STEP * number) * LARGE
        small = font if number else font.font_variant(size=round(0.8 * EM * LARGE))
        draw.text((6 * LARGE, y), left, INK, small, anchor="ls")
        draw.text((SIZE[0] * LARGE - 6 * LARGE, y), right, INK, small, anchor="rs")
        boxes.append((_around(draw, (SIZE[0] * LARGE - 6 * LARGE, y), right, small), right))
    draw.line((6 * LARGE, 70 * LARGE, (SIZE[0] - 6) * LARGE, 70 * LARGE), INK, LARGE // 2)
    picture = picture.filter(ImageFilter.GaussianBlur(0.3 * LARGE)).resize(SIZE, Image.Resampling.BOX)
    noise = np.random.default_rng(0).normal(0, 3, (SIZE[1], SIZE[0], 1))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).round().astype(np.uint8)), boxes


def _around(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: ImageFont.FreeTypeFont
) -> tuple[int, int, int, int]:
    """A box in the small picture, some pixels around the ink."""
    left, top, right, bottom = draw.textbbox(place, text, font=font, anchor="rs")
    x, y = int(left // LARGE) - 3, int(top // LARGE) - 2
    return x, y, int(-(-right // LARGE)) + 3 - x, int(-(-bottom // LARGE)) + 2 - y


if __name__ == "__main__":
    run_command(main)
