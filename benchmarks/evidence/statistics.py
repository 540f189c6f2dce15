"""Statistics of readings: paired hierarchical bootstrap, Holm's correction, power, and the height that is read.

All functions are pure; those that draw take a seed, so that a second analysis gives the same digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

REPLICATES = 2000
_CHUNK = 50  # replicates whose weights are held at once


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, and the two-sided p-value of its being ``null``."""

    value: float
    low: float
    high: float
    p: float = float("nan")


def bootstrap_weights(clusters: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image is drawn: clusters with replacement, then images within each drawn cluster.

    Args:
        clusters: ``[images]``, the font family or document of each image.
        count: replicates.
        rng: of the draws.

    Returns:
        float32 ``[count, images]``.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]
    weights = np.zeros((count, len(clusters)), np.float32)
    for line in weights:
        for c, times in enumerate(np.bincount(rng.integers(len(members), size=len(members)), minlength=len(members))):
            if times:
                size = len(members[c])
                line[members[c]] = np.bincount(rng.integers(size, size=times * size), minlength=size)
    return weights


def stratified_means(values: np.ndarray, strata: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means of ``values [seeds, images]`` by stratum, ``[n, seeds, heights]``, for ``weights [n, images]``.

    NaN where a replicate drew no image of a stratum.
    """
    means = []
    for stratum in np.unique(strata):
        chosen = np.flatnonzero(strata == stratum)
        part = weights[:, chosen]
        total = part.sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((part @ values[:, chosen].T.astype(np.float32)) / total)
    return np.stack(means, axis=-1)


def replicate_means(
    values: Mapping[str, np.ndarray], clusters: np.ndarray, strata: np.ndarray, *, seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Bootstrap replicates of means by stratum: seeds, then clusters, then images, the same draws for all.

    Args:
        values: ``[seeds, images]`` by name, each of the same images; their numbers of seeds may differ.
        clusters, strata: ``[images]``.
        seed: of the draws.
        replicates: how many.

    Returns:
        ``[replicates, heights]`` by name, strata in ascending order.
    """
    rng, found = np.random.default_rng(seed), {name: list[np.ndarray]() for name in values}
    for start in range(0, replicates, _CHUNK):
        count = min(_CHUNK, replicates - start)
        weights, draws = bootstrap_weights(clusters, count, rng), rng.random((count, 64))
        for name, value in values.items():
            size = len(value)
            seeds = (draws[:, :size] * size).astype(int)  # [count, seeds]: equal numbers of seeds draw the same ones
            means = stratified_means(value, strata, weights)  # [count, seeds, heights]
            found[name].append(np.take_along_axis(means, seeds[..., None], axis=1).mean(1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def estimate(point: float, replicates: np.ndarray, null: float = 0.0) -> Estimate:
    """Percentile interval of replicates, and the p-value of ``null`` by their signs (never 0)."""
    kept = replicates[np.isfinite(replicates)]
    if not len(kept):
        return Estimate(point, float("nan"), float("nan"), 1.0)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(float(point), float(low), float(high), sign_p(kept, null))


def sign_p(replicates: np.ndarray, null: float) -> float:
    """Two-sided p-value of ``null`` by the share of replicates beyond it."""
    below, above = int((replicates <= null).sum()), int((replicates >= null).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(replicates) + 1))


def paired_differences(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], clusters: np.ndarray, strata: np.ndarray, *, seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[str, Estimate]:  # fmt: skip
    """Differences of exact match averaged over strata, paired by image and seed.

    Args:
        pairs: ``(ours, theirs)``, each 0 or 1, ``[seeds, images]``; seeds that one of them lacks are left out before.
        clusters: ``[images]``, font families or documents.
        strata: ``[images]``, ink heights, each of which counts as much as the others.
        seed: of the draws.
        replicates: how many.
    """
    values = {name: ours.astype(np.float32) - theirs.astype(np.float32) for name, (ours, theirs) in pairs.items()}
    drawn = replicate_means(values, clusters, strata, seed=seed, replicates=replicates)
    return {name: estimate(plain_mean(value, strata), mean_of_finite(drawn[name])) for name, value in values.items()}


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(finite, values, 0).sum(-1) / finite.sum(-1)
    return means


def limits(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals ``[heights]`` of replicates ``[n, heights]``; NaN where nothing is finite."""
    columns = [column[np.isfinite(column)] for column in replicates.T]
    bounds = np.array([np.quantile(c, [0.025, 0.975]) if len(c) else [np.nan, np.nan] for c in columns])
    return bounds[:, 0], bounds[:, 1]


def plain_mean(values: np.ndarray, strata: np.ndarray) -> float:
    """Mean over seeds and images, strata counting alike."""
    return float(np.mean([values[:, strata == stratum].mean() for stratum in np.unique(strata)]))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number (Holm 1979)."""
    adjusted, largest = dict[str, float](), 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


# --- what is read -----------------------------------------------------------------------------------------------------


def height_read(heights: np.ndarray, accuracies: np.ndarray, level: float = 0.75) -> float:
    """The ink height from which accuracy is ``level``: interpolated in log height, after an isotonic fit.

    Infinity where it is never reached; the lowest height where that is read already.
    """
    from scipy.optimize import isotonic_regression

    fitted = isotonic_regression(accuracies).x
    if fitted[0] >= level:
        return float(heights[0])
    above = np.flatnonzero(fitted >= level)
    if not len(above):
        return float("inf")
    n = int(above[0])
    share = (level - fitted[n - 1]) / (fitted[n] - fitted[n - 1])
    return float(np.exp(np.log(heights[n - 1]) + share * (np.log(heights[n]) - np.log(heights[n - 1]))))


def height_interval(heights: np.ndarray, point: np.ndarray, replicates: np.ndarray) -> Estimate:
    """`height_read` of accuracies ``[heights]`` and its interval over replicates ``[n, heights]``."""
    complete = replicates[np.isfinite(replicates).all(1)]
    found = np.sort([height_read(heights, line) for line in complete])
    if not len(found):
        return Estimate(height_read(heights, point), float("nan"), float("nan"))
    at = (np.array([0.025, 0.975]) * (len(found) - 1)).round().astype(int)
    return Estimate(height_read(heights, point), float(found[at[0]]), float(found[at[1]]))


# --- power ------------------------------------------------------------------------------------------------------------


def power(seeds: int, deviation: float, effect: float) -> float:
    """Chance that a paired t-test over seeds at 5% finds ``effect``; both in points of exact match.

    Args:
        seeds: pairs.
        deviation: s.d. of the difference over seeds.
        effect: the true difference.
    """
    from statsmodels.stats.power import TTestPower

    if seeds < 2 or deviation <= 0:
        return float("nan")
    return float(TTestPower().power(effect_size=effect / deviation, nobs=seeds, alpha=0.05))


def detectable(seeds: int, deviation: float, wanted: float = 0.8) -> float:
    """The smallest difference that is found with the chance ``wanted``, in points."""
    from statsmodels.stats.power import TTestPower

    if seeds < 2 or deviation <= 0:
        return float("nan")
    return deviation * float(TTestPower().solve_power(nobs=seeds, alpha=0.05, power=wanted))


def seed_deviation(ours: np.ndarray, theirs: np.ndarray, strata: np.ndarray) -> float:
    """S.d. over seeds of the paired difference, in points; NaN with one seed."""
    if len(ours) < 2:
        return float("nan")
    each = [plain_mean(a[None].astype(float) - b[None], strata) for a, b in zip(ours, theirs, strict=True)]
    return 100 * float(np.std(each, ddof=1))


def as_matrix(lines: Sequence[np.ndarray]) -> np.ndarray:
    """``[seeds, images]`` of 0 and 1."""
    return np.stack(lines).astype(np.float32)
