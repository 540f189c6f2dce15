"""Calibration of readings: two numbers fitted to readings that are known to be right or wrong."""

import math
from collections.abc import Sequence

import numpy as np

from ..common.errors import PixWordError
from ..model.calibration import Calibration, log_odds

LEAST = 20  # readings; fewer say nothing
_RIDGE = 1e-3  # keeps the line finite where all readings above some probability are right
_STEPS = 100


def fit_calibration(log_probabilities: Sequence[float], right: Sequence[bool]) -> Calibration:
    """The line through log-odds that makes these readings likeliest: logistic regression on one feature.

    A slope below 0 would turn the order of readings around, and becomes 0: all get the share that is right.

    Args:
        log_probabilities: of the readings, natural logs, as the model gives them.
        right: whether each is right.

    Raises:
        PixWordError: fewer than `LEAST` readings.

    Source: Platt 1999, with his targets a little inside 0 and 1.
    """
    if len(right) < LEAST or len(right) != len(log_probabilities):
        raise PixWordError(f"a calibration needs at least {LEAST} readings, got {len(right)}")
    x = np.array([log_odds(value) for value in log_probabilities])
    good = np.asarray(right, bool)
    y = np.where(good, (good.sum() + 1) / (good.sum() + 2), 1 / ((~good).sum() + 2))
    slope, offset = _newton(np.stack([x, np.ones_like(x)], axis=1), y)
    if slope < 0:
        return Calibration(0.0, math.log(y.mean() / (1 - y.mean())))
    return Calibration(slope, offset)


def _newton(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Weights ``[2]`` of features ``x [N, 2]`` that make targets ``y [N]`` likeliest; steps are halved where needed."""
    weights = np.zeros(2)
    for _ in range(_STEPS):
        p = _sigmoid(x @ weights)
        slope = x.T @ (p - y) + _RIDGE * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(2)
        step, size = np.linalg.solve(curve, slope), 1.0
        while size > 1e-6 and _loss(x, y, weights - size * step) > _loss(x, y, weights):
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def _loss(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    odds = x @ weights
    return float((np.logaddexp(0, odds) - y * odds).sum() + _RIDGE / 2 * (weights**2).sum())


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -odds))
