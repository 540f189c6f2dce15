"""Calibration: from the probability that a model gives a reading to how often such readings are right."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import shown

MOST_MARGINS = 8  # of an image, for one reading
KEY = "_calibration"  # of config.json; an underscore key is no part of a model's shape


@dataclass(frozen=True)
class Calibration:
    """A straight line through log-odds, ``sigmoid(slope * logit(p) + offset)``; as it stands, ``p`` itself.

    The two numbers are fitted on held-out readings, known to be right or wrong. A slope that is not negative keeps the
    order of readings. They hold for readings of an image in so many ``margins``, which is how many there are where
    nothing else is said.

    Source: Platt 1999, with the logit of the probability as the score.
    """

    slope: float = 1.0
    offset: float = 0.0
    margins: int = 1

    def __call__(self, log_probability: float) -> float:
        """A confidence, 0..1, from a natural-log probability."""
        odds = self.slope * log_odds(log_probability) + self.offset
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Calibration":
        """Read a `config.json`; raises `PixWordError` for anything but finite numbers and a slope from 0."""
        values = config.get(KEY, {})
        names = {f.name for f in fields(cls)}
        known = isinstance(values, dict) and set(values) <= names
        if not known or not all(_is_number(value) for value in values.values()) or values.get("slope", 1) < 0:
            raise PixWordError(
                f"config.json: {KEY} must be a finite slope from 0 and a finite offset, got {shown(values)}"
            )
        margins = values.get("margins", 1)
        if not isinstance(margins, int) or not 1 <= margins <= MOST_MARGINS:
            raise PixWordError(f"config.json: margins of {KEY} must be 1 to {MOST_MARGINS}, got {shown(margins)}")
        return cls(float(values.get("slope", cls.slope)), float(values.get("offset", cls.offset)), margins)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def log_odds(log_probability: float) -> float:
    """``ln(p / (1 - p))``, bounded where a float's ``p`` is 0 or 1."""
    p = min(max(math.exp(log_probability), 1e-300), 1 - 1e-16)
    return math.log(p) - math.log1p(-p)
