"""The tables of docs/evidence.md, as rows of text; what was not run says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, isnan

import numpy as np

from .analysis import Evidence
from .arms import ARMS, BLOCKS
from .learning import ADAM, FRONT, MUON
from .manifest import ABLATIONS, factors_tried, rate_of, trial_id
from .plan import TEST_KINDS
from .real import CLOSED, PARTS, REAL_SETS, REFERENCES
from .scaling import LOSSES, ScalingLaw, fit_law, points_of_runs
from .statistics import Estimate, detectable, power
from .verdicts import CLAIMS, PIXEL_ARMS

NOT_RUN = "not run"


@dataclass(frozen=True)
class Table:
    """A table with its title, a sentence or two before it, and rows of text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def all_tables(evidence: Evidence) -> list[Table]:
    """Every table, in the order of the page."""
    makers: Sequence[Callable[[Evidence], Table]] = (
        verdict_table, cost_table, arm_table, difference_table, real_table, height_table, power_table, mixed_table,
        rate_table, ablation_table, label_table, scaling_table,
    )  # fmt: skip
    return [make(evidence) for make in makers]


def points(value: float) -> str:
    """A share as points of 100."""
    return f"{100 * value:.1f}"


def interval(value: Estimate, scale: float = 100, digits: int = 1) -> str:
    """A figure with its interval."""
    number = [f"{scale * x:.{digits}f}" if isfinite(x) else "none" for x in (value.value, value.low, value.high)]
    return f"{number[0]} ({number[1]} to {number[2]})"


def verdict_table(evidence: Evidence) -> Table:
    """Claims and verdicts."""
    rows = [
        (f"{name}: {ARMS[name.split()[0]].title}, against arm{'s' if len(CLAIMS[name.split()[1]]) > 1 else ''} "
         f"{', '.join(CLAIMS[name.split()[1]])}", f"**{verdict.name}**", verdict.reason, f"{verdict.p:.4f}")
        for name, verdict in evidence.verdicts.items()
    ]  # fmt: skip
    pretraining = evidence.pretraining_verdict()
    rows.append(("dense pretraining saves labels", f"**{pretraining.name}**", pretraining.reason, ""))
    for loss, unit in zip(LOSSES, ("nats a character", "nats a pixel"), strict=True):
        verdict = evidence.scaling_verdict(loss)
        rows.append((f"loss scales: {unit}", f"**{verdict.name}**", verdict.reason, ""))
    note = (
        "By the rules above, with five seeds. p is that of the weakest comparison that a claim needs, adjusted by Holm "
        "for six claims."
    )
    return Table("Verdicts", note, ("Claim", "Verdict", "Reason", "p"), rows)


def cost_table(evidence: Evidence) -> Table:
    """Core-hours by block."""
    content = {**{name: f"arms {', '.join(arms)}" for name, arms in BLOCKS.items()},
               "iv": "ablations", "v": "pretraining", "vi": "scaling"}  # fmt: skip
    rows = list[tuple[str, ...]]()
    for block, what in content.items():
        runs = sum(record["spec"]["block"] == block for record in evidence.records.values())
        rows.append((block, what, str(runs) if runs else NOT_RUN, f"{evidence.seconds(block) / 3600:.2f}"))
    plan = evidence.plan
    note = (
        f"Plan `{plan.name}`: {plan.minutes:g} minutes of one core a run, {plan.seeds} seeds. Core-hours are processor "
        "time of training and evaluation."
    )
    return Table("What was run", note, ("Block", "Content", "Runs", "Core-hours"), rows)


def arm_table(evidence: Evidence) -> Table:
    """What each arm costs and reads at equal time."""
    rows = list[tuple[str, ...]]()
    for arm in ARMS:
        timing = evidence.known.timing.get(arm, {})
        told = (f"{timing['parameters_without_tables'] / 1e6:.3f}", f"{timing['flops'] / 1e6:.1f}",
                f"{1e3 * timing['seconds']:.2f}") if timing else (NOT_RUN,) * 3  # fmt: skip
        runs = evidence.main_runs(arm)
        if not runs:
            rows.append((arm, ARMS[arm].title, *told, "", "", "", NOT_RUN, NOT_RUN))
            continue
        nats = np.array([run["points"][evidence.last]["nats"] for run in runs.values()])
        crops = next(iter(runs.values()))["points"][evidence.last]["crops"]
        exact = [interval(evidence.accuracy(arm, kind)) for kind in TEST_KINDS]
        rows.append((arm, ARMS[arm].title, *told, f"{crops:,}", str(len(runs)), f"{nats.mean():.3f}", *exact))
    header = ("Arm", "Front end", "Parameters, M", "MFLOP a crop", "ms a crop", "Crops", "Seeds", "Nats a character",
              "Numbers, %", "Words, %")  # fmt: skip
    note = (
        "At equal time. Parameters without colour tables; operations of a training step; milliseconds of one core. "
        "Exact match averaged over ink heights 4 to 8 px, with 95% intervals; nats on development crops."
    )
    return Table("Arms", note, header, rows)


def difference_table(evidence: Evidence) -> Table:
    """The main endpoint and its companions."""
    names = {evidence.last: "equal time", "images": "equal images", "flops": "equal FLOPs"}
    found = {(label.ours, label.other, label.point, label.kind): v for label, v in evidence.comparisons.items()}
    rows = list[tuple[str, ...]]()
    for ours in PIXEL_ARMS:
        for other in (arm for arms in CLAIMS.values() for arm in arms):
            for point, name in names.items():
                values = [found.get((ours, other, point, kind)) for kind in evidence.sets]
                if point == evidence.last or any(values):
                    told = (interval(v) if v else NOT_RUN for v in values)
                    rows.append((f"{ours} - {other}", name, *told))
    note = (
        "Points of exact match at 4 to 8 px, pixel arm minus other arm, paired by image and seed. Equal time decides. "
        "Equal images are those of arm 1b, equal FLOPs the fewest of an arm in its time."
    )
    return Table("Differences", note, ("Arms", "At", *evidence.sets), rows)


def real_table(evidence: Evidence) -> Table:
    """What arms and reference engines read of real sets, by third."""
    rows = list[tuple[str, ...]]()
    for name, part in product(REAL_SETS, PARTS):
        known = evidence.real[part].get(name)
        if known is None:
            rows.append((name, part, NOT_RUN, *[""] * (1 + len(evidence.arms) + len(REFERENCES))))
            continue
        closed = "closed" if part == CLOSED and evidence.opened is None else NOT_RUN
        read = [evidence.real_accuracy(arm, known) for arm in evidence.arms]
        told = [interval(value) if value else closed for value in read]
        engines = [evidence.engine_accuracy(engine, known) for engine in REFERENCES]
        told += [interval(value) if value else NOT_RUN for value in engines]
        left_out = ", ".join(f"{count} {reason}" for reason, count in known.left_out.items()) or "none"
        rows.append((name, part, f"{len(known):,}", left_out, *told))
    opened = evidence.opened
    note = (
        "Exact match in % at equal time, documents in place of families. The closed third decides"
        + (f"; it was opened at {opened['opened']}." if opened else ", and is not opened yet.")
        + " Engines read the same crops, as `benchmarks/real_text.py` kept it. Of a thousand crops those are left out "
        "that no arm could read."
    )
    arms = (f"Arm {arm}" for arm in evidence.arms)
    return Table("Real sets", note, ("Set", "Third", "Crops", "Left out", *arms, *REFERENCES), rows)


def height_table(evidence: Evidence) -> Table:
    """The ink height that is read 75% of the time."""
    rows = [
        (arm, *(interval(evidence.height(arm, kind), 1, 1) for kind in TEST_KINDS)) for arm in evidence.arms
    ] or [(NOT_RUN, *(NOT_RUN for _ in TEST_KINDS))]  # fmt: skip
    note = 'Pixels of ink height from which exact match is 75%; "none" where no height reaches it.'
    return Table("Height that is read", note, ("Arm", *TEST_KINDS), rows)


def power_table(evidence: Evidence) -> Table:
    """What the seeds could have found."""
    rows = list[tuple[str, ...]]()
    for ours in PIXEL_ARMS:
        for other in (arm for arms in CLAIMS.values() for arm in arms):
            if ours in evidence.arms and other in evidence.arms:
                for kind in TEST_KINDS:
                    seeds, spread = evidence.deviation(ours, other, kind)
                    if not isnan(spread):
                        told = (f"{spread:.2f}", f"{detectable(seeds, spread):.1f}", f"{power(seeds, spread, 3.0):.2f}")
                        rows.append((f"{ours} - {other}", kind, str(seeds), *told))
    note = "S.d. of the difference over seeds, in points; the difference found in 80% of cases; the power to find 3."
    header = ("Arms", "Text", "Seeds", "S.d.", "Found at 80%", "Power at 3")
    return Table("Power", note, header, rows or [(NOT_RUN, "", "", "", "", "")])


def mixed_table(evidence: Evidence) -> Table:
    """The logistic mixed model."""
    rows = list[tuple[str, ...]]()
    for kind in TEST_KINDS:
        for name, effect in evidence.mixed_model(kind).items():
            low, high = effect.mean - 1.96 * effect.deviation, effect.mean + 1.96 * effect.deviation
            label = f"arm {name}" if name in ARMS else name
            rows.append((kind, label, f"{effect.mean:.2f} ({low:.2f} to {high:.2f})"))
    note = (
        "Log odds of exact match against arm 4, with runs, font families and images as random effects; covariates are "
        "standardised. 95% posterior intervals."
    )
    return Table("Mixed model", note, ("Text", "Effect", "Log odds"), rows or [(NOT_RUN, "", "")])


def rate_table(evidence: Evidence) -> Table:
    """Learning-rate trials."""
    factors = factors_tried(evidence.known, [arm for arms in BLOCKS.values() for arm in arms])
    tried = {f for arm in ARMS for f in (*factors, *evidence.plan.factors)
             if trial_id(arm, f) in evidence.known.nats}  # fmt: skip
    columns = sorted(tried | set(evidence.plan.factors))
    rows = list[tuple[str, ...]]()
    for arm in ARMS:
        nats = [evidence.known.nats.get(trial_id(arm, f), {}).get("trial") for f in columns]
        best = rate_of(evidence.known, arm)
        told = (NOT_RUN if value is None else f"{value:.3f}" for value in nats)
        rows.append((arm, *told, NOT_RUN if best is None else f"{best:g}"))
    note = (
        "Development nats a character after a fifth of the length, one seed, on crops of the variety that the "
        "curriculum has reached there, by learning rate relative to "
        f"Muon {MUON:g} ({FRONT * MUON:g} in front ends) and AdamW {ADAM:g}."
    )
    return Table("Learning rates", note, ("Arm", *(f"{f:g}" for f in columns), "Chosen"), rows)


def ablation_table(evidence: Evidence) -> Table:
    """What each part of arm 1b is worth, at equal time."""
    rows = list[tuple[str, ...]]()
    for name in ABLATIONS:
        found = evidence.ablations.get(name)
        if found is None:
            rows.append((name, NOT_RUN, "", "", ""))
        else:
            told = (f"{points(found[f'{kind} exact'])}, {interval(found[kind])}" for kind in TEST_KINDS)
            rows.append((name, f"{found['nats']:.3f}", str(found["seeds"]), *told))
    note = (
        "Arm 1b with one thing changed, half of a run's time: exact match in %, and the difference to the first line."
    )
    return Table("Ablations", note, ("Change", "Nats a character", "Seeds", *TEST_KINDS), rows)


def label_table(evidence: Evidence) -> Table:
    """Labels that pretraining saves."""
    rows = list[tuple[str, ...]]()
    for arm in [arm for arm in ARMS if any(key[0] == arm for key in evidence.tuned)]:
        for labels in evidence.plan.labels:
            cells = [evidence.tuned.get((arm, start, labels)) for start in ("scratch", "pretrained")]
            told = [f"{points(c['exact'])}, {c['nats'].mean():.3f}" if c else NOT_RUN for c in cells]
            factor = evidence.label_factor(arm, labels)
            factors = f"{interval(factor[0], 1, 2)}, by {factor[1]}" if factor else NOT_RUN
            minutes = evidence.runs_of("pretrain", f"v-pretrain-{arm}-")
            cost = np.mean([run["seconds"] for run in minutes.values()]) / 60 if minutes else float("nan")
            rows.append((arm, f"{labels:,}", *told, factors, f"{cost:.1f}"))
    note = (
        "Exact match in % and nats a character. The factor says how many times the labels scratch needs for the same, "
        "within the range tried; minutes are those of pretraining, which scratch does not have."
    )
    header = ("Arm", "Labels", "From scratch", "Pretrained", "Factor", "Minutes before")
    return Table("Pretraining", note, header, rows or [(NOT_RUN, "", "", "", "", "")])


def scaling_table(evidence: Evidence) -> Table:
    """Losses of the scaling runs and the law through them."""
    rows, laws = list[tuple[str, ...]](), list[str]()
    records = list(evidence.records.values())
    for loss in LOSSES:
        fitted = points_of_runs(records, "scaling", loss)
        if len(fitted) >= 5:
            laws.append(f"{loss}: {law_text(fit_law(*fitted.T))}")
    for kind in ("scaling", "largest"):
        for line in points_of_runs(records, kind, "nats").tolist():
            pixel = [p[2] for p in points_of_runs(records, kind, "pixel_nats").tolist() if p[:2] == line[:2]]
            told = f"{pixel[0]:.4f}" if pixel else NOT_RUN
            rows.append((kind, f"{line[0] / 1e6:.3f}", f"{line[1]:,.0f}", f"{line[2]:.4f}", told))
    note = f"L = E + A N^-a + B D^-b. {'; '.join(laws) or 'Not fitted'}."
    header = ("Run", "Parameters, M", "Crops", "Nats a character", "Nats a pixel")
    return Table("Scaling", note, header, rows or [(NOT_RUN, "", "", "", "")])


def law_text(law: ScalingLaw) -> str:
    return (
        f"E {np.exp(law.log_e):.3f}, A {np.exp(law.log_a):.3g}, a {law.alpha:.3f}, "
        f"B {np.exp(law.log_b):.3g}, b {law.beta:.3f}"
    )
