"""The arms: one language block, decoder and data order; only what turns an image into states differs.

Numbers and names are those of docs/evidence.md. Widths of the front ends are such that all arms have the same number of
parameters within 5%, colour tables apart; arm 8 has more, because it is matched in operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.args import ModelArgs

from .characters import CharacterTokenizer
from .colors import RAW


@dataclass(frozen=True)
class Shape:
    """The language block, the same for all arms, and S."""

    hidden_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4
    num_layers: int = 3
    intermediate_size: int = 256
    image_size: int = 64


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: of the protocol.
        title: what a reader is told.
        front: "pixels", "linear", "mlp" or "conv"; in ablations that predict words alone "rgb", "both" or "whole", see
            `pixel_fronts`.
        window: side of a window or patch in pixels of the image, after upsampling.
        width: of the front end: what makes parameters equal; 0: a single matrix.
        upsample: factor by which the image is enlarged first.
        fold: fold factor; `RAW` keeps all bits.
        options: of the model, pixel arms only.
        objective: of pixel arms: "mean", the mean word loss and ``pixel_weight`` times the mean pixel loss; "sum", the
            plain sum over all targets, as published; "words", words alone.
        pixel_weight: see ``objective``.
        pixel_queries: query pixels a window; 0 is the boundary loss.
        pretraining: "", "dense" or "masked": how a run begins.
        dense_every: pixels are predicted in one step of so many, and words alone in the others, where the objective is
            "mean": they cost as much again as the words.
    """

    name: str
    title: str
    front: str
    window: int
    width: int = 0
    upsample: int = 1
    fold: int = RAW
    options: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "words"
    pixel_weight: float = 0.0
    pixel_queries: int = 0
    pretraining: str = ""
    dense_every: int = 1

    def reads_alone(self, step: int) -> bool:
        """Whether a step predicts words alone."""
        return not self.is_pixel or self.objective == "words" or step % self.dense_every > 0

    @property
    def sees_images(self) -> bool:
        """Whether the front end is given whole images beside their windows."""
        return self.front in ("conv", "whole")

    @property
    def is_pixel(self) -> bool:
        """Whether every pixel is a token."""
        return self.front == "pixels"


THETA = 100.0  # of grid positions, for every arm that has them: an image has few windows to tell apart
_PUBLISHED = {
    "positions": "sequence", "rope_theta": 500_000.0, "summary": "last", "factored_colors": False,
    "image_layers": 2, "image_hidden_size": 64, "image_num_heads": 4, "image_num_kv_heads": 4,
    "image_intermediate_size": 128,
}  # fmt: skip
_OPTIONS = {
    "positions": "grid", "summary": "concat", "factored_colors": True, "linear_color_scale": 0.5,
    "sine_color_scale": 0.0, "image_layers": 1, "image_hidden_size": 40, "image_num_heads": 2,
    "image_num_kv_heads": 2, "image_intermediate_size": 64,
}  # fmt: skip

ARMS = {arm.name: arm for arm in (
    Arm("1", "pixel tokens as published, w 4", "pixels", 4, fold=16, options=_PUBLISHED, objective="sum"),
    Arm("1a", "pixel tokens as published, w 16", "pixels", 16, fold=16, options=_PUBLISHED, objective="sum"),
    Arm("1b", "pixel tokens, the project's options, w 4", "pixels", 4, fold=32, options=_OPTIONS,
        objective="mean", pixel_weight=0.5, pixel_queries=1, dense_every=8),
    Arm("2", "ViT, 16 px patches", "linear", 16),
    Arm("3", "ViT, 8 px patches", "linear", 8, width=288),
    Arm("4", "ViT, 4 px patches", "linear", 4, width=512),
    Arm("5", "ViT, 4 px patches of folded colours", "linear", 4, width=512, fold=16),
    Arm("6", "ViT, 16 px patches of the image enlarged 4 times", "linear", 16, upsample=4),
    Arm("7", "convolutional stem, stride 4", "conv", 4, width=120),
    Arm("8", "ViT, 4 px patches, an MLP each", "mlp", 4, width=2048),
)}  # fmt: skip

BLOCKS = {"i": ("1b", "4", "2", "7"), "ii": ("8", "6", "1", "1a"), "iii": ("3", "5")}


def arm_of(name: str, changes: Mapping[str, Any] | None = None) -> Arm:
    """An arm with changes: its own fields, or options of the model by their names."""
    if name not in ARMS:
        raise PixWordError(f"unknown arm {name!r}; arms are {', '.join(ARMS)}")
    arm, own, options = ARMS[name], dict[str, Any](), dict[str, Any]()
    for key, value in (changes or {}).items():
        (own if key in Arm.__dataclass_fields__ else options)[key] = value
    return replace(arm, **own, options={**arm.options, **options})


def model_args(arm: Arm, shape: Shape) -> ModelArgs:
    """The model's shape; of a patch arm, what its batches and its language block need of it."""
    side = shape.image_size * arm.upsample
    if side % arm.window:
        raise PixWordError(f"image_size {side} of arm {arm.name} is no multiple of its windows of {arm.window} px")
    options: dict[str, Any] = {"positions": "grid", "rope_theta": THETA, **arm.options}
    return ModelArgs(
        vocab_size=CharacterTokenizer().vocab_size, fold_factor=arm.fold if arm.is_pixel else RAW, image_size=side,
        window_size=arm.window, hidden_size=shape.hidden_size, num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads, num_layers=shape.num_layers, intermediate_size=shape.intermediate_size,
        max_seq_len=(side // arm.window) ** 2 + 64, qk_norm=True, dtype="float32",
        **({"image_layers": 1} | options),
    )  # fmt: skip
