"""Where a run stands, and what it consists of while it goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.optimizers as optim
import numpy as np

from ..common.random_state import random_state
from ..config.run import RunConfig
from ..data.loader import Loader
from ..data.skips import SkipLog
from ..inputs.tokenizer import Tokenizer
from ..model.document import Document
from ..model.losses import LossSums
from ..model.network import PixWordModel
from .distributed import Ranks
from .loss_scale import LossScale

Place = tuple[int, int]  # a group of documents, and the number of a batch in it


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
    """What a run consists of while it goes on, and the only place where its progress changes.

    Attributes:
        progress: where it stands now.
        last_saved_state: where it stood after its last update, which is what a checkpoint says. Steps without an
            update are counted in ``progress`` alone, so that a resume tries them again.
    """

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
    last_saved_state: Progress
    scale: LossScale
    ranks: Ranks

    def record_update(self, place: Place, tokens: int, sums: LossSums) -> None:
        """Count a step that updated the model.

        Args:
            place: group and number of the last batch that it took.
            tokens: words and pixels of its micro-batches, on all ranks.
            sums: of the objective.
        """
        self._advance(place, tokens)
        self.scale.after(True)
        self.progress.sums = (np.array(self.progress.sums) + np.array([value.item() for value in sums])).tolist()
        self.progress.in_a_row = 0

    def record_skip(self, place: Place, tokens: int) -> bool:
        """Count a step without an update; False if an overflow of float16 explains it: the next has half the scale."""
        self._advance(place, tokens)
        self.progress.nonfinite += 1
        if self.scale.after(False):
            return False
        self.progress.in_a_row += 1
        return True

    def snapshot(self) -> None:
        """Keep where the run stands as what a checkpoint will say; not while steps go without an update."""
        progress, scale = self.progress, self.scale
        if progress.in_a_row:
            return
        progress.tried, progress.skipped_bytes, progress.random = self.skips.tries, self.skips.size, random_state()
        progress.scale, progress.scale_age = (scale.value, scale.good) if scale.dynamic else (None, 0)
        self.last_saved_state = replace(progress)

    def recount(self, tried: int, skipped_bytes: int) -> None:
        """Let a checkpoint say no more images tried, and no more of them left out, than these."""
        saved = self.last_saved_state
        saved.tried = min(saved.tried, tried)
        saved.skipped_bytes = min(saved.skipped_bytes or 0, skipped_bytes)

    def _advance(self, place: Place, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.group, progress.batch = place[0], place[1] + 1  # of the next batch
        progress.tokens += tokens


class Stopwatch:
    """Seconds of training since the last line of metrics; evaluating and saving are no part of its speed.

    Args:
        seconds: that a resumed run had spent on the line it goes on with.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.restart(seconds)

    def restart(self, seconds: float = 0.0) -> None:
        self._since = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = self.seconds
        try:
            yield
        finally:
            self.restart(before)
