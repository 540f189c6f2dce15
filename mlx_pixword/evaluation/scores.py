"""Scores of readings: exact match and character error rate, with intervals."""

import math
from collections.abc import Sequence

CALIBRATION_BINS = 15
Z_95 = 1.959963984540054  # of a two-sided 95% interval


Scores = dict[str, float | int | list[float] | None]


def reading_scores(pairs: Sequence[tuple[str, str]]) -> Scores:
    """Scores of ``(read, written)`` pairs: ``exact_match`` with its Wilson interval, and the character error rate.

    ``cer`` is the edit distance over the characters written, all pairs together. Its interval is Wilson's too, taking
    characters as independent, so it is a little narrow; there is none above 1, where it is no proportion.
    """
    if not pairs:
        return {}
    from rapidfuzz.distance import Levenshtein

    exact = sum(read == written for read, written in pairs)
    errors = sum(Levenshtein.distance(read, written) for read, written in pairs)
    characters = sum(len(written) for _, written in pairs)
    scores: Scores = {
        "read": len(pairs),
        "exact_match": exact / len(pairs),
        "exact_match_95": wilson(exact, len(pairs)),
    }
    return scores | {"cer": errors / characters, "cer_95": wilson(errors, characters) if errors <= characters else None}


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: how far confidence and the share that is right lie apart, on average over readings.

    Readings go into ``bins`` of equal width by confidence, 1.0 into the last; a bin counts by its readings.

    Source: Naeini et al. 2015, Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    import numpy as np  # --help answers at once

    places = np.minimum((np.asarray(confidences, float) * bins).astype(int), bins - 1)
    gaps = np.bincount(places, np.asarray(confidences, float) - np.asarray(correct, float), bins)
    return float(np.abs(gaps).sum() / len(confidences))


def wilson(successes: int, trials: int) -> list[float]:
    """Wilson score interval, 95%, of a proportion (Wilson 1927): ``[low, high]``."""
    p, z2 = successes / trials, Z_95**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]
