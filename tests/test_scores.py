"""Scores of readings, and the intervals that they come with."""

import pytest

from mlx_pixword.evaluation.scores import reading_scores, wilson


def test_scores_of_readings() -> None:
    scores = reading_scores([("123", "123"), ("12", "123"), ("xyz", "abc"), ("", "ab")])
    assert scores["exact_match"] == 0.25
    assert scores["cer"] == pytest.approx((0 + 1 + 3 + 2) / (3 + 3 + 3 + 2))
    assert reading_scores([]) == {}


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # Wilson 95% intervals from published tables
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx([low, high], abs=5e-5)
