"""Bits of held-out images with the options of small text and without, after equal times of one core.

python benchmarks/dense_bits.py --source plates --variant today --minutes 6
python benchmarks/dense_bits.py --source text --variant options --minutes 6 --fonts /usr/share/fonts
python benchmarks/dense_bits.py --table

All models predict words and pixels by the dense objective, and have the language block of the preset `tiny`. Bits are
those of an image without its text. Time is counted as in `small_text.py`. Plates are the built-in ones; text is the
numbers of `small_text.py` at all of their variety.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from shared.record import keep, with_machine
from small_text import RESULTS, TODAY, SmallTextArgs, Training, chosen

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.config.run import SMALL_TEXT, RunConfig
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.inference.likelihood import score_document
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, make_document
from mlx_pixword.model.image_block import Summary

GRID = {name: SMALL_TEXT[name] for name in ("positions", "rope_theta")}
COLORS = {name: SMALL_TEXT[name] for name in ("linear_color_scale", "sine_color_scale")}
NARROW = {name: value for name, value in SMALL_TEXT.items() if name.startswith("image_") and name != "image_lr_scale"}
OPTIONS = {**TODAY, **GRID, **COLORS, **NARROW, "summary": "concat", "image_lr_scale": SMALL_TEXT["image_lr_scale"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "today": TODAY,
    "options": OPTIONS,
    "no_partial_summary": OPTIONS,  # query pixels get their state alone, see `LastSummary`
    "two_image_layers": {**OPTIONS, "image_layers": 2},
}


@dataclass(frozen=True)
class DenseBitsArgs(SmallTextArgs):
    """Train variants by the dense objective, each for a time of one core, and score held-out images."""

    source: str = setting("plates", "what is learnt", choices=("plates", "text"))
    curriculum: bool = setting(False, "let the variety of text grow")
    minutes: float = setting(6.0, "minutes of one core")
    crops: int = setting(500, "held-out images that are scored at the end")
    readings: int = setting(6, "times that some of them are scored on the way")


def main(argv: Sequence[str] | None = None) -> None:
    """Train and score, or print the table."""
    args = parse(DenseBitsArgs, "benchmarks/dense_bits.py", argv)
    if args.table:
        print_table(args.out)
        return
    if "no_partial_summary" in args.variant and args.source != "plates":
        raise PixWordError("no_partial_summary is for plates, whose windows are all full; --source plates")
    if args.until < 1:
        raise PixWordError(f"--until is for what is read, and nothing is read here; got {args.until}")
    for name, values, config in chosen(args, VARIANTS):
        result = DenseTraining(args, name, config).run()
        about = {"benchmark": "dense_bits", "source": args.source, "variant": name, "changes": values}
        keep(with_machine(about | result), args.out)


class LastSummary(Summary):
    """A concatenated summary of whole windows alone: the states of pixels before the last get no partial sum."""

    def __call__(self, x: mx.array, reads: mx.array, numbers: mx.array) -> mx.array:
        return super().__call__(x, reads, numbers) * (reads == x.shape[1] - 1)[..., None]


class DenseTraining(Training):
    """One run; see `Training`."""

    args: DenseBitsArgs

    def __init__(self, args: DenseBitsArgs, name: str, config: RunConfig) -> None:
        super().__init__(replace(args, scratch=args.scratch / "dense" / args.source), args.name or name, config)
        if name == "no_partial_summary":
            self._without_partial_sums(self.model.args)

    def _without_partial_sums(self, args: ModelArgs) -> None:
        weights = self.model.image_block.summary.parameters()
        self.model.image_block.summary = LastSummary(args)
        self.model.image_block.summary.update(weights)

    def _source(self, seed: int, held_out: bool, share: float) -> Any:
        text = self.args.source == "text"
        return super()._source(seed, held_out, share) if text else PlateSource(seed, reserved=held_out)

    def _look(self, test: Sequence[Document]) -> None:
        minutes, images = self.state["seconds"] / 60, self.state["crops"]
        bits, pixels = self._bits(test[:100])
        self.state["curve"].append({"minutes": minutes, "images": images, "bits_a_pixel": sum(bits) / pixels})
        print(f"{self.name} {self.args.seed}: {minutes:.1f} min, {images:,} images, {np.mean(bits):.1f} bits an image, "
              f"{sum(bits) / pixels:.4f} a pixel", flush=True)  # fmt: skip
        self._save()

    def _bits(self, documents: Sequence[Document]) -> tuple[list[float], int]:
        """Bits of each document's image without its text, and the pixels of all."""
        images = [document.images[0] for document in documents]
        alone = [make_document([[BOS, IMAGE], image, [END_IMAGE]]) for image in images]
        bits = [-float(score_document(self.model, document)[1].sum(dtype=float)) / math.log(2) for document in alone]
        return bits, sum(image.height * image.width for image in images)

    def _result(self) -> dict[str, Any]:
        bits, pixels = self._bits(self._test(self.args.crops))
        return {
            "name": self.name, "seed": self.args.seed, "minutes": self.args.minutes, "steps": self.state["step"],
            "images": self.state["crops"], "scored": len(bits), "bits_an_image": float(np.mean(bits)),
            "standard_error": float(np.std(bits, ddof=1) / len(bits) ** 0.5), "bits_a_pixel": sum(bits) / pixels,
            "curve": self.state["curve"], "held_out": self.held_out.digest(), "settings": self.config.to_flat(),
        }  # fmt: skip


def print_table(folder: Path = RESULTS) -> None:
    """The results that are kept, a line each."""
    for path in sorted(folder.glob("dense_bits-*.json")):
        r = json.loads(path.read_text(encoding="utf-8"))
        print(f"{r['source']:<8}{r['name']:<24} seed {r['seed']}  {r['minutes']:>4.1f} min  {r['images']:>7,} images  "
              f"{r['bits_an_image']:>7.1f} bits an image  {r['bits_a_pixel']:.4f} a pixel")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
