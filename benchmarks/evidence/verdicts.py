"""The verdicts, by the rules of docs/evidence.md and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .statistics import Estimate, holm

PIXEL_ARMS = ("1", "1a", "1b")
CLAIMS = {"A": ("2",), "B": ("4", "6", "7", "8")}
MARGIN = 0.03  # points of exact match that a difference must have to matter
LEVEL = 0.05
KINDS = ("numbers", "words")
SEEDS = 5  # of the protocol; with fewer a claim is undecided
FLOOR = 0.05  # exact match that the better of two arms must have: where neither reads, no difference says anything

Comparisons = Mapping[tuple[str, str], Estimate]  # by (other arm, kind), at equal time and equal parameters


@dataclass(frozen=True)
class Verdict:
    """``supported``, ``refuted``, ``undecided`` or ``not run``, with the reason in words."""

    name: str
    reason: str
    p: float = 1.0


def decide(
    others: Sequence[str], comparisons: Comparisons, sets: Sequence[str], p: float,
    best: Mapping[tuple[str, str], float] | None = None,
) -> Verdict:  # fmt: skip
    """The verdict of one claim.

    Args:
        others: the arms that the claim names.
        comparisons: differences of exact match, pixel arm minus other arm; missing where a run is.
        sets: what must hold for support: `KINDS` and the real sets.
        p: of the claim, adjusted by Holm for the number of claims.
        best: exact match of the better of the two arms, by the same keys; missing means enough.
    """
    found = {key: value for key, value in comparisons.items() if key[0] in others and key[1] in sets}
    for (arm, kind), value in found.items():
        if kind in KINDS and value.high < MARGIN and (best or {}).get((arm, kind), 1.0) >= FLOOR:
            return Verdict("refuted", f"against arm {arm} on {kind} the upper limit is {_points(value.high)}", p)
    missing = [(arm, kind) for arm in others for kind in sets if (arm, kind) not in found]
    if not found:
        return Verdict("not run", "no run of the arms that the claim names", p)
    if missing:
        return Verdict("undecided", f"not run: {_lacking(others, sets, missing)}", p)
    for (arm, kind), value in found.items():
        if (best or {}).get((arm, kind), 1.0) < FLOOR:
            return Verdict("undecided", f"neither this arm nor arm {arm} reads {kind}: under {_points(FLOOR)}", p)
        if value.value < MARGIN:
            return Verdict("undecided", f"against arm {arm} on {kind} the difference is {_points(value.value)}", p)
        if value.low <= 0:
            return Verdict("undecided", f"against arm {arm} on {kind} the interval reaches {_points(value.low)}", p)
    if p >= LEVEL:
        return Verdict("undecided", f"adjusted for the number of claims, p is {p:.3f}", p)
    return Verdict("supported", f"at least {_points(MARGIN)} and an interval above 0 against every arm named", p)


def decide_all(
    comparisons: Mapping[str, Comparisons], sets: Sequence[str],
    best: Mapping[tuple[str, str, str], float] | None = None, seeds: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, Verdict]:  # fmt: skip
    """Verdicts of all claims, such as ``1b A``; p-values are those of the weakest comparison, adjusted together.

    A claim names every arm and every set, so its p-value is the largest of them: an intersection of rejections.
    ``best`` is that of `decide`, by (our arm, other arm, kind); ``seeds`` those that both of (our arm, other arm) have,
    enough where it is missing. With fewer than `SEEDS` a claim is undecided; the reason says what they alone would say.
    """
    p_values = dict[str, float]()
    for ours in PIXEL_ARMS:
        for claim, others in CLAIMS.items():
            each = [v.p for (arm, kind), v in comparisons.get(ours, {}).items() if arm in others and kind in sets]
            p_values[f"{ours} {claim}"] = max(each, default=1.0)
    adjusted, verdicts = holm(p_values), dict[str, Verdict]()
    for name in p_values:
        ours, claim = name.split()
        own = {(arm, kind): value for (mine, arm, kind), value in (best or {}).items() if mine == ours}
        verdict = decide(CLAIMS[claim], comparisons.get(ours, {}), sets, adjusted[name], own)
        finished = min((n for (mine, other), n in (seeds or {}).items() if mine == ours and other in CLAIMS[claim]),
                       default=SEEDS)  # fmt: skip
        verdicts[name] = with_few_seeds(verdict, finished) if finished < SEEDS else verdict
    return verdicts


def with_few_seeds(verdict: Verdict, seeds: int) -> Verdict:
    """Undecided, with what the seeds that are finished would say: an interval over so few says little of the others."""
    if verdict.name == "not run":
        return verdict
    so_far = "" if verdict.name == "undecided" else f"would be {verdict.name}: "
    return Verdict("undecided", f"{seeds} of {SEEDS} seeds; by these {so_far}{verdict.reason}", verdict.p)


def _lacking(others: Sequence[str], sets: Sequence[str], missing: Sequence[tuple[str, str]]) -> str:
    """Arms that lack all sets, sets that lack all arms, and what else is missing, in words."""
    arms = [arm for arm in others if all((arm, kind) in missing for kind in sets)]
    rest = [pair for pair in missing if pair[0] not in arms]
    here = [arm for arm in others if arm not in arms]
    whole = [kind for kind in sets if here and all((arm, kind) in rest for arm in here)]
    parts = [f"{kind} against arm {arm}" for arm, kind in rest if kind not in whole]
    return ", ".join([f"arm {arm}" for arm in arms] + whole + parts)


def decide_pretraining(ratio: Estimate | None, labels: int) -> Verdict:
    """Whether pretraining saves labels: scratch needs at least twice as many as ``labels``, interval above 1."""
    if ratio is None:
        return Verdict("not run", "no runs with and without pretraining")
    if labels > 1000:
        return Verdict("undecided", f"the saving was found at {labels:,} labels, the claim is about 1,000 or fewer")
    if ratio.value >= 2 and ratio.low > 1:
        return Verdict("supported", f"scratch needs {ratio.value:.1f} times the labels at {labels:,}")
    if ratio.high < 2:
        return Verdict("refuted", f"scratch needs at most {ratio.high:.1f} times the labels at {labels:,}")
    return Verdict("undecided", f"the factor is {ratio.value:.1f}, {ratio.low:.1f} to {ratio.high:.1f}")


def decide_scaling(predicted: Estimate | None, measured: float | None) -> Verdict:
    """Whether the held-out largest run's loss lies in its predicted interval and within 2% of the prediction."""
    if predicted is None or measured is None:
        return Verdict("not run", "no prediction" if predicted is None else "the run that was predicted is missing")
    miss = measured / predicted.value - 1
    inside = predicted.low <= measured <= predicted.high
    text = f"{measured:.4f} measured, {predicted.value:.4f} predicted ({predicted.low:.4f} to {predicted.high:.4f})"
    name = "supported" if inside and abs(miss) <= 0.02 else "refuted"
    return Verdict(name, f"{text}, {100 * miss:+.1f}%")


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
