"""Scores of readings: exact match and character error rate, with intervals."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

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


def wilson(successes: int, trials: int) -> list[float]:
    """Wilson score interval, 95%, of a proportion (Wilson 1927): ``[low, high]``."""
    p, z2 = successes / trials, Z_95**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]
