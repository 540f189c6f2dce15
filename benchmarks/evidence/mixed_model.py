"""A logistic mixed model of exact match: arms and what is known of a crop fixed; runs, families and images random.

statsmodels' `BinomialBayesMixedGLM`, by variational Bayes. It asks the bootstrap's question in another way: whether a
difference between arms is larger than what runs, families and images explain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

IMAGES = 120  # of a fit: every image has an effect of its own, and the fit grows with them


@dataclass(frozen=True)
class Effect:
    """A fixed effect in log odds, and its posterior s.d."""

    mean: float
    deviation: float


def fit_mixed_model(
    correct: Mapping[str, np.ndarray], reference: str, families: np.ndarray, heights: np.ndarray,
    covariates: Mapping[str, np.ndarray], *, images: int = IMAGES, seed: int = 0,
) -> dict[str, Effect]:  # fmt: skip
    """Effects of arms against a reference arm.

    Args:
        correct: 0 or 1 by arm, ``[seeds, images]``.
        reference: the arm that the others are compared with.
        families: ``[images]``.
        heights: ``[images]``, ink heights in pixels; their logarithm is a covariate.
        covariates: ``[images]`` by name, such as contrast.
        images: how many take part, drawn evenly.
        seed: of the draw.

    Returns:
        Effects by name: each arm but the reference, then ``log height`` and the covariates.
    """
    import pandas as pd
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(heights), min(images, len(heights)), replace=False))
    columns = {"log height": np.log(heights), **covariates}
    names = [name for name, column in columns.items() if np.ptp(column[chosen]) > 0]
    arms = [arm for arm in correct if arm != reference]
    lines, outcomes, runs = list[list[float]](), list[np.ndarray](), list[np.ndarray]()
    for arm in [reference, *arms]:
        for n, line in enumerate(correct[arm]):
            outcomes.append(line[chosen])
            runs.append(np.full(len(chosen), f"{arm} {n}"))
            lines += [[1.0, *(float(arm == other) for other in arms)]] * len(chosen)
    count = len(outcomes)
    fixed = np.column_stack([np.array(lines), *(np.tile(_standard(columns[name][chosen]), count) for name in names)])
    frame = pd.DataFrame({
        "run": np.concatenate(runs), "family": np.tile(families[chosen], count), "image": np.tile(chosen, count),
    })  # fmt: skip
    groups, kinds = list[np.ndarray](), list[int]()
    for kind, name in enumerate(("run", "family", "image")):
        dummies = pd.get_dummies(frame[name]).to_numpy(float)
        groups.append(dummies)
        kinds += [kind] * dummies.shape[1]
    model = BinomialBayesMixedGLM(np.concatenate(outcomes), fixed, np.hstack(groups), np.array(kinds), vcp_p=1, fe_p=2)
    with np.errstate(over="ignore"):  # a step of the search may be far too long
        fit = model.fit_vb(rng=np.random.default_rng(seed))
    means, deviations = np.asarray(fit.fe_mean), np.asarray(fit.fe_sd)
    labels = [*arms, *names]
    return {label: Effect(float(means[n + 1]), float(deviations[n + 1])) for n, label in enumerate(labels)}


def _standard(column: np.ndarray) -> np.ndarray:
    spread = column.std()
    return (column - column.mean()) / (spread or 1.0)
