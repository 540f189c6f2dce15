"""Counts and estimates of a run on an Apple chip, as plain values.

Counts follow from the model's shape (`costs`). Times are a roofline of the chip's published figures (`chips`) and of
fractions of them that `PlanArgs` assumes: nothing has ever been measured on Apple hardware. See docs/plan.md.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import setting
from ..config.run import PRESETS, RunConfig, make_config, read_yaml
from ..model.args import parameters
from .chips import CHIPS, Chip, Rates, find_chip
from .costs import Load, attention_pairs, forward_flops, image_load
from .footprint import drawing_work, optimizer_work, training_memory, training_work

TOGETHER = (1, 16)  # images drawn at once


Plan = dict[str, Any]  # plain values, as JSON has them


@dataclass(frozen=True)
class PlanArgs:
    """Count what a model computes, moves and holds, and estimate its times on an Apple chip. Nothing is run."""

    preset: str | None = setting(None, "model and training settings to start from (default tiny)", choices=[*PRESETS])
    config: Path | None = setting(None, "settings in YAML, over the preset", metavar="F.yaml")
    chip: str = setting("", f"one of {', '.join(CHIPS)}", metavar="CHIP")
    images: int = setting(1_000_000, "images that a training run sees")
    image_size: int | None = setting(None, "side of the square images, instead of the preset's")
    max_seq_len: int | None = setting(None, "elements of the longest sequence, instead of the preset's")
    pixel_queries: int | None = setting(None, "query pixels a window in training, instead of the preset's")
    words: int = setting(0, "words of text that go with an image")
    draw_size: str | None = setting(None, "size of the drawn image in pixels (default: the image size)", metavar="WxH")
    efficiency: float = setting(0.4, "assumed fraction of the chip's peak operations that is reached")
    bandwidth_efficiency: float = setting(0.7, "assumed fraction of the chip's memory bandwidth that is reached")
    kernel_us: float = setting(5.0, "assumed microseconds that starting a kernel takes")

    def __post_init__(self) -> None:
        if self.images < 1 or self.words < 0:
            raise PixWordError(
                f"--images must be positive and --words not negative, got {self.images} and {self.words}"
            )
        fractions = self.efficiency, self.bandwidth_efficiency
        if not all(0 < fraction <= 1 for fraction in fractions) or not 0 <= self.kernel_us < math.inf:
            raise PixWordError(
                "--efficiency and --bandwidth-efficiency must be above 0 and at most 1, and --kernel-us not negative, "
                f"got {self.efficiency}, {self.bandwidth_efficiency} and {self.kernel_us}"
            )

    @property
    def rates(self) -> Rates:
        return Rates(self.efficiency, self.bandwidth_efficiency, self.kernel_us * 1e-6)

    def run_config(self) -> RunConfig:
        """The preset, the YAML file and the settings given, as pretrain merges them."""
        names = ("preset", "image_size", "max_seq_len", "pixel_queries")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return make_config((read_yaml(self.config) if self.config else {}) | given, where="command line")

    def drawing_size(self, image_size: int) -> tuple[int, int]:
        """``(height, width)`` of ``--draw-size WxH``; raises `PixWordError`."""
        if self.draw_size is None:
            return image_size, image_size
        sides = self.draw_size.lower().split("x")
        positive = [int(side) for side in sides if side.isascii() and side.isdigit() and int(side) > 0]
        if not len(sides) == len(positive) == 2 or sum(positive) == 2:
            raise PixWordError(
                "--draw-size must be two positive integers such as 28x12 and more than one pixel, "
                f"got {self.draw_size!r}"
            )
        return positive[1], positive[0]


def plan(args: PlanArgs) -> Plan:
    """Counts and estimates by name, as plain values.

    Returns:
        Counts an image (``*_flops``, ``training_bytes``), bytes held in training (``memory``), and estimates whose
        names start with ``estimated``: seconds and pixels a second, with the bound behind each.

    Raises:
        PixWordError: an unknown chip, or sizes that do not fit together.
    """
    chip, config = find_chip(args.chip), args.run_config()
    names = ("efficiency", "bandwidth_efficiency", "kernel_us")
    assumed = {"assumed": {name: getattr(args, name) for name in names}}
    return _counts(config, args) | assumed | _training(config, chip, args) | _drawing(config, chip, args)


def training_load(config: RunConfig, words: int, *, plain: bool = False) -> Load:
    """The micro-batch of a run on squares of the largest size; ``plain``: with nothing chunked or recomputed."""
    size, train = config.model.image_size, config.train
    elements = image_load(config.model, size, size, words=words).elements
    return image_load(
        config.model, size, size, words=words, pixel_queries=train.pixel_queries,
        rows=max(1, config.data.batch_tokens // elements), chunk=0 if plain else train.window_chunk,
        recompute=train.grad_checkpoint and not plain,
    )  # fmt: skip


def _counts(config: RunConfig, args: PlanArgs) -> Plan:
    model, size = config.model, config.model.image_size
    load = training_load(config, args.words)
    pairs, full = attention_pairs(model, size, size, config.train.pixel_queries)
    flops = forward_flops(model, load)
    return {
        "preset": config.preset, "chip": args.chip.lower(), "image_size": size, "pixels": size**2,
        "windows": load.windows // load.rows, "words": args.words, "elements": load.elements,
        "query_pixels": load.queries,
        "parameters": parameters(model), "model_bytes": 4 * parameters(model, stored=True),
        "attention_pairs": pairs, "full_attention_pairs": full, "forward_flops": sum(flops) / load.rows,
        **{f"{part}_flops": count / load.rows for part, count in flops._asdict().items()},
    }  # fmt: skip


def _training(config: RunConfig, chip: Chip, args: PlanArgs) -> Plan:
    model, train = config.model, config.train
    load, muon = training_load(config, args.words), train.optimizer == "muon"
    images = load.rows * train.accumulate
    step = optimizer_work(model, muon, train.accumulate).plus(training_work(model, load), train.accumulate)
    seconds, bound = chip.seconds(step, args.rates)
    memory = training_memory(model, load, muon, train.accumulate)
    plain = training_memory(model, training_load(config, args.words, plain=True), muon, train.accumulate)
    return {
        "images_a_step": images, "optimizer": train.optimizer, "recomputes": load.recompute or load.chunks > 1,
        "training_flops": step.flops / images, "training_bytes": step.bytes / images,
        "memory": memory._asdict() | {"total": sum(memory), "without_recomputation": sum(plain)},
        "fits": sum(memory) <= chip.gpu_bytes, "images": args.images,
        "estimated_training_seconds_an_image": seconds / images,
        "estimated_training_seconds": seconds / images * args.images, "estimated_training_bound": bound,
    }  # fmt: skip


def _drawing(config: RunConfig, chip: Chip, args: PlanArgs) -> Plan:
    from ..inference.draw import check_size  # loads the network, which --help does not need

    model, before = config.model, 2 + args.words  # <s>, the words and <|image|>
    height, width = args.drawing_size(model.image_size)
    check_size(model, (height, width), 1, before)
    rows = []
    for count in TOGETHER:
        work = drawing_work(model, height, width, before, count)
        seconds, bound = chip.seconds(work, args.rates)
        speed = count * height * width / seconds
        rows.append({"at_once": count, "pixels_a_second": speed, "seconds": seconds, "bound": bound})
    return {"draw_width": width, "draw_height": height, "estimated_drawing": rows}
