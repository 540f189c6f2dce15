"""Numbers that are none: float16's loss scale, and when steps without an update end a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..model.batch import Batch

FIRST_SCALE = 2.0**16
GROW_AFTER = 1000  # good steps in a row


@dataclass
class LossScale:
    """The factor of the loss that keeps small gradients above float16's smallest number; 1 for other types.

    Attributes:
        value: the factor, a power of two, so that scaling rounds nothing.
        good: steps since it changed last.
        dynamic: halve it when gradients overflow, double it after ``GROW_AFTER`` good steps.

    Source: Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740.
    """

    value: float = 1.0
    good: int = 0
    dynamic: bool = False

    @classmethod
    def of(cls, dtype: mx.Dtype, value: float | None, good: int) -> "LossScale":
        """For a compute type; ``value`` and ``good`` are those of a resumed run, or None and 0."""
        if dtype != mx.float16:
            return cls()
        return cls(FIRST_SCALE if value is None else value, good, dynamic=True)

    def after(self, finite: bool) -> bool:
        """Take note of a step; True if an overflow of the scaled gradients may be all that was wrong with it."""
        overflowed = self.dynamic and not finite and self.value > 1
        self.good = self.good + 1 if finite else 0
        if overflowed:
            self.value /= 2
        elif self.dynamic and self.good == GROW_AFTER:
            self.value, self.good = min(self.value * 2, 2.0**24), 0
        return overflowed


def names_of(batches: Sequence[Batch]) -> list[str]:
    """Names of the documents in micro-batches, each once."""
    return list(dict.fromkeys(d.name for batch in batches for row in batch.documents for d in row))


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
