"""Bits a held-out plate: the model, an order-0 histogram of training plates, and PNG.

    python benchmarks/bits.py --model runs/dense/final

PNG gets every advantage: all plates tiled into one picture, folded colours, palette mode, the image data (IDAT) alone.
"""

import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from shared.record import keep, with_machine

import mlx_pixword as pw
from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.data import COLORS
from mlx_pixword.data.plates import HEIGHT, WIDTH, PlateSource
from mlx_pixword.inference.likelihood import score_document
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, make_document

COLUMNS = 20  # plates a row of the picture that PNG gets


@dataclass(frozen=True)
class BitsArgs:
    """Bits a held-out plate, of a model, an order-0 histogram and PNG."""

    model: str = setting("", "model folder that was trained with --pixel-queries", metavar="DIR_OR_REPO")
    count: int = setting(500, "held-out plates")
    training: int = setting(5000, "training plates that the histogram counts")
    seed: int = setting(1, "seed of the held-out plates")
    colors: str = setting("schemes", "colours of the plates", choices=COLORS)
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and a line of JSON."""
    args = parse(BitsArgs, "benchmarks/bits.py", argv, required=("model",))
    if args.count < 1 or args.training < 1:
        raise PixWordError(f"--count and --training must be positive, got {args.count} and {args.training}")
    model, processor = pw.load(args.model)
    fold = model.args.fold_factor
    heldout = fold_plates(PlateSource(args.seed, reserved=True, colors=args.colors), args.count, fold)
    training = fold_plates(PlateSource(args.seed, colors=args.colors), args.training, fold)
    bits = {
        "model": model_bits(model, processor, heldout),
        "histogram": histogram_bits(training, heldout, model.args.num_pix),
        "png": png_bits(heldout, fold),
    }
    for name, value in bits.items():
        print(f"{name:<10}{value:10.1f} bits a plate   {value / (3 * HEIGHT * WIDTH):.4f} bits a dimension")
    shown = {"plates": args.count, "seed": args.seed, "colors": args.colors, "fold_factor": fold}
    result = with_machine({"benchmark": "bits", "bits_a_plate": {k: round(v, 1) for k, v in bits.items()}, **shown})
    print(json.dumps(result))
    if args.save:
        keep(result, args.save)


def fold_plates(source: PlateSource, count: int, fold_factor: int) -> np.ndarray:
    """Pix tokens of the first plates, int32 ``[count, HEIGHT, WIDTH]``."""
    return pw.fold_colors(np.stack([source.plate(n).draw() for n in range(count)]), fold_factor)


def model_bits(model: pw.PixWordModel, processor: pw.Processor, plates: np.ndarray) -> float:
    """Mean bits of a plate by the model's exact likelihood, without its text."""
    total = 0.0
    for tokens in plates:
        image = processor.image(pw.unfold_colors(tokens, model.args.fold_factor))
        total -= float(score_document(model, make_document([[BOS, IMAGE], image, [END_IMAGE]]))[1].sum(dtype=float))
    return total / math.log(2) / len(plates)


def histogram_bits(training: np.ndarray, plates: np.ndarray, classes: int) -> float:
    """Mean bits of a plate if every pixel were drawn from the training plates' colours (plus one count each)."""
    counts = np.bincount(training.ravel(), minlength=classes) + 1
    return float(-np.log2(counts / counts.sum())[plates].sum() / len(plates))


def png_bits(plates: np.ndarray, fold_factor: int) -> float:
    """Mean bits of a plate in the IDAT chunks of one PNG of all plates."""
    rows = -(-len(plates) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, HEIGHT, WIDTH), np.int32)
    sheet[: len(plates)] = plates
    tokens = sheet.reshape(rows, COLUMNS, HEIGHT, WIDTH).swapaxes(1, 2).reshape(rows * HEIGHT, COLUMNS * WIDTH)
    modes = [Image.fromarray(pw.unfold_colors(tokens, fold_factor))]
    colors, index = np.unique(tokens, return_inverse=True)
    if len(colors) <= 256:
        modes.append(Image.fromarray(index.reshape(tokens.shape).astype(np.uint8)))
        modes[-1].putpalette(pw.unfold_colors(colors, fold_factor).ravel().tolist())
    return min(8 * idat_bytes(image) for image in modes) / len(plates)


def idat_bytes(image: Image.Image) -> int:
    """Bytes of a PNG's image data, as small as Pillow makes it."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data, place, total = file.getvalue(), 8, 0
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        total += length if kind == b"IDAT" else 0
        place += length + 12
    return total


if __name__ == "__main__":
    run_command(main)
