"""Scaling: the loss is E + A N^-a + B D^-b, of N parameters without colour tables and D crops; and a prediction.

By Huber's loss on logarithms from many starts (arXiv 2203.15556, its third approach).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .files import read_json, write_json
from .statistics import Estimate

HUBER = 1e-3
LOSSES = ("nats", "pixel_nats")


@dataclass(frozen=True)
class ScalingLaw:
    """``E + A N^-a + B D^-b``; A, B and E as logarithms, which keeps them positive."""

    log_e: float
    log_a: float
    log_b: float
    alpha: float
    beta: float

    def __call__(self, size: np.ndarray | float, data: np.ndarray | float) -> np.ndarray:
        """The loss of models of ``size`` parameters after ``data`` crops."""
        return np.exp(_log_loss(np.array([self.log_e, self.log_a, self.log_b, self.alpha, self.beta]), size, data))


def _log_loss(p: np.ndarray, size: np.ndarray | float, data: np.ndarray | float) -> np.ndarray:
    parts = [p[0] + 0 * np.log(size), p[1] - p[3] * np.log(size), p[2] - p[4] * np.log(data)]
    return np.asarray(np.logaddexp(np.logaddexp(parts[0], parts[1]), parts[2]))


def fit_law(size: np.ndarray, data: np.ndarray, loss: np.ndarray, starts: int = 48) -> ScalingLaw:
    """The law that fits ``loss [n]`` of runs with ``size [n]`` parameters and ``data [n]`` crops best."""
    from scipy.optimize import minimize

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = _log_loss(p, size, data)
        error = fitted - np.log(loss)
        far = np.abs(error)
        value = np.where(far <= HUBER, far**2 / 2, HUBER * (far - HUBER / 2)).sum() / HUBER
        shares = np.exp([p[0] - fitted, p[1] - p[3] * np.log(size) - fitted, p[2] - p[4] * np.log(data) - fitted])
        slopes = np.stack([*shares, -shares[1] * np.log(size), -shares[2] * np.log(data)])  # [5, n]
        return float(value), slopes @ np.clip(error / HUBER, -1, 1)

    low = float(np.log(loss.min()))
    grid = list(product((low - 3, low - 1, low - 0.2), (0.0, 3.0, 6.0), (0.0, 3.0, 6.0), (0.2, 0.6), (0.2, 0.6)))
    chosen = [grid[n] for n in np.linspace(0, len(grid) - 1, min(starts, len(grid))).astype(int)]
    bounds = [(None, low), (None, None), (None, None), (0.0, 3.0), (0.0, 3.0)]
    fits = [minimize(objective, np.array(start), jac=True, method="L-BFGS-B", bounds=bounds) for start in chosen]
    return ScalingLaw(*map(float, min(fits, key=lambda fit: fit.fun).x))


def predict(
    size: np.ndarray, data: np.ndarray, loss: np.ndarray, target: tuple[float, float], *, replicates: int = 100,
    seed: int = 0,
) -> tuple[ScalingLaw, Estimate]:  # fmt: skip
    """The law, and the loss it predicts for ``target`` parameters and crops, with a bootstrap over runs.

    The interval also holds the scatter of the runs about the law, which a new run has too.
    """
    law, rng = fit_law(size, data, loss), np.random.default_rng(seed)
    residuals = np.log(loss) - np.log(law(size, data))
    drawn = []
    for _ in range(replicates):
        chosen = rng.integers(len(loss), size=len(loss))
        again = fit_law(size[chosen], data[chosen], loss[chosen], starts=6)
        drawn.append(float(again(*target)) * float(np.exp(rng.choice(residuals))))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return law, Estimate(float(law(*target)), float(low), float(high))


def points_of_runs(records: Sequence[dict[str, Any]], kind: str, loss: str) -> np.ndarray:
    """``[n, 3]``: parameters, crops and loss at every point of runs of a kind."""
    found = [
        (record["parameters_without_tables"], point["crops"], point[loss])
        for record in records if record["spec"]["kind"] == kind
        for point in record["points"].values() if np.isfinite(point.get(loss, np.nan))
    ]  # fmt: skip
    return np.array(found, float).reshape(-1, 3)


def keep_prediction(
    records: Sequence[dict[str, Any]], target: tuple[float, float], path: Path, replicates: int
) -> None:
    """Predict the largest run's losses and write them down; to be committed before that run is started."""
    found: dict[str, Any] = {"parameters": target[0], "crops": target[1], "losses": {}}
    for loss in LOSSES:
        points = points_of_runs(records, "scaling", loss)
        if len(points) >= 5:
            law, value = predict(points[:, 0], points[:, 1], points[:, 2], target, replicates=replicates)
            nearest = float(points[np.lexsort((points[:, 0], points[:, 1]))[-1], 2])
            found["losses"][loss] = {"law": vars(law), "prediction": vars(value), "largest_fitted": nearest}
    write_json(path, found)


def kept_prediction(path: Path, loss: str) -> Estimate | None:
    """A prediction as it was written down."""
    if not path.exists() or loss not in (losses := read_json(path)["losses"]):
        return None
    return Estimate(**losses[loss]["prediction"])
