"""Where a run stands, and what it consists of while it goes on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..config.run import RunConfig
from ..data.loader import Loader
from ..data.skips import SkipLog
from ..inputs.tokenizer import Tokenizer
from ..model.document import Document
from ..model.network import PixWordModel
from .distributed import Ranks
from .loss_scale import LossScale


@dataclass
class Progress:
    """Where a run stands, besides weights and optimiser state.

    Packing leaves no remainder: rows are formed inside a group of documents, and a group follows from its number.

    Attributes:
        step: optimiser steps done.
        group, batch: of the next batch, as the loader counts them.
        sums, tokens, seconds: since the last line of metrics: the objective's sums, words and pixels, duration.
        tried, skipped_bytes: images tried so far, and the size of `skipped.jsonl`.
        best_step, best_loss: of the evaluation with the lowest held-out loss.
        random: MLX's random state.
        scale, scale_age: float16's loss scale, and steps since it changed.
        nonfinite: steps without an update so far; ``in_a_row``: those that the last steps were.
    """

    step: int = 0
    group: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 6)
    tokens: int = 0
    seconds: float = 0.0
    tried: int = 0
    skipped_bytes: int | None = None
    best_step: int = 0
    best_loss: float | None = None
    random: list[int] | None = None
    scale: float | None = None
    scale_age: int = 0
    nonfinite: int = 0
    in_a_row: int = 0


@dataclass
class Run:
    """What a run consists of while it goes on; ``good`` is where it stood after its last update."""

    config: RunConfig
    folder: Path
    identity: dict[str, Any]
    model: PixWordModel
    optimizer: optim.Optimizer
    tokenizer: Tokenizer | None
    loader: Loader
    skips: SkipLog
    heldout: list[Document]
    progress: Progress
    good: Progress
    scale: LossScale
    ranks: Ranks


def random_state() -> list[int]:
    """MLX's random state, two words of 32 bits."""
    return [int(word) for word in mx.random.state[0].tolist()]  # type: ignore[index]


def set_random_state(words: list[int]) -> None:
    """Go on from a state: MLX makes the two words of a seed's upper and lower half."""
    mx.random.seed((words[0] << 32) | words[1])
