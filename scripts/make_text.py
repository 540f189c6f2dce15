"""Write small text as PNG files and `labels.jsonl`, for `python -m mlx_pixword.evaluate`, or as one `.pwtext` file.

python scripts/make_text.py --heights 4,6,8,10 --kinds numbers --count 400 --out text
python scripts/make_text.py --split train --heights 4.5-13 --count 100000 --pack train.pwtext
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.data import (
    MORE_TEXT_KINDS,
    TEXT_CONTRAST,
    TEXT_HEIGHTS,
    TEXT_KINDS,
    TEXT_LENGTH,
    check_kinds,
    limits,
)  # fmt: skip
from mlx_pixword.data.fonts import Face, find_faces
from mlx_pixword.data.strings import read_words
from mlx_pixword.data.text_file import SUFFIX, write_text_file
from mlx_pixword.data.text_images import TextCrop, TextSource, TextStyle
from mlx_pixword.data.text_pixels import KERNELS

NUMBERED = ("kind", "face", "family", "kernel")  # facts that a file of crops keeps as numbers


@dataclass(frozen=True)
class TextArgs:
    """Write small text with its labels: crops take turns through all combinations of the lists given."""

    count: int = setting(500, "crops to write")
    seed: int = setting(1, "seed of the crops")
    out: Path = setting(Path("text"), "folder to write to; must not hold anything", metavar="DIR")
    pack: Path | None = setting(None, f"write one file of this name instead, which ends in {SUFFIX}", metavar="FILE")
    split: str = setting("heldout", "strings and families of faces", choices=("heldout", "train"))
    heights: str = setting("4-32", "ink heights in pixels: a range such as 4-32, or a list such as 4,5,6")
    kinds: str = setting(",".join(TEXT_KINDS), "kinds of text, with commas between")
    contrast: str = setting("0.2-1", "a range such as 0.2-1, or a list such as 0.1,0.3,1; 1 is black on white")
    clutter: str = setting("0.2", "share of crops at whose edges other text intrudes, or a list such as 0,1")
    distort: bool = setting(True, "noise, blur, JPEG and small turns, as in training")
    wear: float = setting(0.0, "share that is worn: cut close, spaced, bold, broken, unevenly lit")
    length: int = setting(TEXT_LENGTH, "characters of the longest string")
    curriculum: int = setting(0, "crops over which text goes from one plain face and 2 characters to everything")
    words: Path | None = setting(None, "words, one a line (default: some hundred built in)", metavar="FILE")
    fonts: list[str] = setting([], "more faces, from a folder; may be repeated", metavar="DIR")
    image_size: int = setting(128, "longest side of a crop")


class Crops:
    """The crops that the settings ask for, by number."""

    def __init__(self, args: TextArgs) -> None:
        self.faces, unusable = find_faces(args.fonts)
        words, foreign = read_words(args.words) if args.words else (None, 0)
        for name, reason in [*unusable, *([(str(args.words), f"{foreign} words left out")] if foreign else [])]:
            print(f"{name}: {reason}", file=sys.stderr)
        cells = product(
            _ranges("--heights", args.heights, TEXT_HEIGHTS),
            _ranges("--contrast", args.contrast, TEXT_CONTRAST),
            _ranges("--clutter", args.clutter, (0, 1)),
        )
        kinds = check_kinds(args.kinds, "--kinds")
        self._sources = [
            _source(args, self.faces, words, TextStyle(
                kinds, heights, contrast, clutter[0], float(args.distort), args.length,
                curriculum=args.curriculum, wear=args.wear,
            ))
            for heights, contrast, clutter in cells
        ]  # fmt: skip

    def __getitem__(self, number: int) -> TextCrop:
        return self._sources[number % len(self._sources)].crop(number)


def _source(args: TextArgs, faces: list[Face], words: list[str] | None, style: TextStyle) -> TextSource:
    return TextSource(args.seed, args.split == "heldout", style, args.image_size, faces, words)


def _ranges(name: str, text: str, within: tuple[float, float]) -> list[tuple[float, float]]:
    """The cells of a factor: one range, or single values."""
    return [limits(name, part, within) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the crops."""
    args = parse(TextArgs, "scripts/make_text.py", argv)
    if args.count < 1 or args.seed < 0 or args.length < 2:
        raise PixWordError(
            f"--count must be positive, --seed not negative and --length at least 2, got {args.count}, {args.seed} "
            f"and {args.length}"
        )
    crops = Crops(args)
    start = time.process_time()
    if args.pack is not None:
        _pack(args, args.pack, crops)
    else:
        _write_folder(args, crops)
    each = (time.process_time() - start) / args.count
    print(f"{args.count} texts in {args.pack or args.out}, {1e3 * each:.2f} ms of processor time each", file=sys.stderr)


def _write_folder(args: TextArgs, crops: Crops) -> None:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise PixWordError(f"--out {args.out} holds something already; choose another folder")
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "labels.jsonl").open("w", encoding="utf-8") as labels:
        for n in _counted(args.count):
            crop, name = crops[n], f"{n:06d}.png"
            Image.fromarray(crop.draw()).save(args.out / name)
            labels.write(json.dumps({"image": name, "caption": crop.text, **crop.facts()}) + "\n")


def _pack(args: TextArgs, path: Path, crops: Crops) -> None:
    if path.suffix != SUFFIX or path.exists():
        raise PixWordError(f"--pack {path} must be a new file whose name ends in {SUFFIX}")
    names: dict[str, list[str]] = {
        "kind": [*TEXT_KINDS, *MORE_TEXT_KINDS], "face": [face.name for face in crops.faces],
        "family": sorted({face.family for face in crops.faces}), "kernel": list(KERNELS),
    }  # fmt: skip
    digests = [face.digest for face in crops.faces]
    settings = {name: str(value) for name, value in vars(args).items()}
    write_text_file(path, _rows(args.count, crops, names), {**names, "digest": digests, "settings": settings})


def _rows(count: int, crops: Crops, names: dict[str, list[str]]) -> Iterator[tuple[np.ndarray, str, dict[str, Any]]]:
    numbers = {key: {name: n for n, name in reversed(list(enumerate(known)))} for key, known in names.items()}
    for n in _counted(count):
        crop = crops[n]
        facts = crop.facts()
        yield crop.draw(), crop.text, facts | {key: numbers[key][facts[key]] for key in NUMBERED}


def _counted(count: int) -> Iterator[int]:
    return iter(tqdm(range(count), disable=None))


if __name__ == "__main__":
    run_command(main)
