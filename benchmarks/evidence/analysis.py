"""From kept JSON to figures with intervals; nothing else is read, and a second analysis gives the same digits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .arms import ARMS
from .crops import TestSet, kept_test_set
from .files import read_json, unpack_texts
from .learning import Learner
from .manifest import ABLATIONS, Known, block_of, rate_of, scaled_shape, slug
from .mixed_model import Effect, fit_mixed_model
from .plan import MAIN_HEIGHTS, TEST_KINDS, Plan, kept_plan
from .real import CLOSED, PARTS, REAL_SETS, RealSet, kept_engines, kept_readings, kept_real_sets, opened
from .records import known
from .scaling import kept_prediction, points_of_runs
from .statistics import (
    Estimate,
    estimate,
    height_interval,
    mean_of_finite,
    paired_differences,
    plain_mean,
    replicate_means,
    seed_deviation,
    stratified_means,
)
from .timing import parameter_counts
from .verdicts import CLAIMS, PIXEL_ARMS, Verdict, decide_all, decide_pretraining, decide_scaling

SEED = 20260514  # of every bootstrap
FEW = 0.05  # exact match below which labels are compared by nats a character


def read_records(results: Path) -> list[dict[str, Any]]:
    """All records of runs, by id."""
    return [read_json(path) for path in sorted((results / "runs").glob("*.json"))]


def main_records(results: Path) -> list[dict[str, Any]]:
    """Finished runs of the main comparison that have final weights: those that diverged have not."""
    return [r for r in read_records(results) if r["spec"]["kind"] == "main" and not r["diverged"]]


def largest_size(plan: Plan) -> int:
    """Parameters without colour tables of the run that is predicted."""
    shape = replace(plan.shape, **scaled_shape(plan.widths[-1]))
    return int(parameter_counts(Learner.new(plan.arm("1b"), shape, 0))["parameters_without_tables"])


@dataclass(frozen=True)
class Label:
    """A comparison at a point, such as "time 1": our arm, the other arm, and which crops."""

    ours: str
    other: str
    point: str
    kind: str


class Evidence:
    """What a folder of results holds, and what follows from it."""

    def __init__(self, results: Path) -> None:
        self.results, self.plan = results, kept_plan(results)
        self.known: Known = known(results, self.plan)
        self.records = {record["id"]: record for record in read_records(results)}
        self.tests: TestSet = kept_test_set(results)
        self.real = {part: kept_real_sets(results, part) for part in PARTS}
        self.engines, self.opened = kept_engines(results), opened(results)
        self.last = f"time {max(self.plan.time_points):g}"
        self._written = np.array(self.tests.texts)

    # --- runs ---------------------------------------------------------------------------------------------------------

    def main_runs(self, arm: str) -> dict[int, dict[str, Any]]:
        """Finished runs of the main comparison at the arm's rate, by seed."""
        rate = rate_of(self.known, arm)
        if rate is None:
            return {}
        names = {seed: f"{block_of(arm)}-main-{arm}-r{rate:g}-s{seed}" for seed in range(self.plan.seeds)}
        return {seed: self.records[name] for seed, name in names.items() if name in self.records}

    def correct(self, record: Mapping[str, Any], point: str) -> np.ndarray | None:
        """Which test crops a run read exactly at a point, ``[images]``; none if it diverged; None without that point.

        Crops that were not read at that point have NaN.
        """
        if (found := record["points"].get(point)) is None:
            return None
        if "readings" not in found:
            return np.zeros(len(self._written), np.float32)
        right = np.full(len(self._written), np.nan, np.float32)
        right[:: found["every"]] = np.array(unpack_texts(found["readings"])) == self._written[:: found["every"]]
        return right

    def matrix(self, runs: Mapping[int, Mapping[str, Any]], point: str) -> dict[int, np.ndarray]:
        """Exact matches by seed, of runs that have the point."""
        found = {seed: self.correct(run, point) for seed, run in runs.items()}
        return {seed: line for seed, line in found.items() if line is not None}

    @cached_property
    def arms(self) -> list[str]:
        """Arms with at least one finished run of the main comparison."""
        return [arm for arm in ARMS if self.main_runs(arm)]

    def seconds(self, block: str) -> float:
        """Core-seconds of training and evaluation that the finished runs of a block took."""
        chosen = [record for record in self.records.values() if record["spec"]["block"] == block]
        points = [point for record in chosen for point in {id(p): p for p in record["points"].values()}.values()]
        return sum(record["seconds"] + record.get("real_seconds", 0.0) for record in chosen) + sum(
            p.get("evaluation_seconds", 0.0) for p in points
        )

    # --- crops --------------------------------------------------------------------------------------------------------

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Kinds of text and names of the real sets that are here."""
        return (*TEST_KINDS, *self.real[CLOSED])

    def chosen(self, kind: str, *, main: bool) -> np.ndarray:
        """Indices of the crops of a kind; with ``main`` of the heights of the main endpoint."""
        found = self.tests.kinds == kind
        if main:
            found &= np.isin(self.tests.heights, MAIN_HEIGHTS)
        return np.flatnonzero(found)

    # --- the main endpoint --------------------------------------------------------------------------------------------

    @cached_property
    def comparisons(self) -> dict[Label, Estimate]:
        """Differences of exact match between pixel arms and all others, at every point that both have."""
        found = dict[Label, Estimate]()
        for kind, all_read in product(TEST_KINDS, (True, False)):
            images = self.chosen(kind, main=True)
            images = images if all_read else images[images % self.plan.seldom == 0]
            if not len(images):
                continue
            found_pairs = [pair for pair in self._pairs(kind) if (pair[0].point == self.last) == all_read]
            pairs = {label: (ours[:, images], theirs[:, images]) for label, ours, theirs in found_pairs}
            named = {str(n): pair for n, pair in enumerate(pairs.values())}
            estimates = paired_differences(
                named, self.tests.families[images], self.tests.heights[images], seed=SEED,
                replicates=self.plan.replicates,
            )  # fmt: skip
            found |= dict(zip(pairs, estimates.values(), strict=True))
        for crops in self.real[CLOSED].values():
            found |= self._real_comparisons(crops)
        return found

    def _pairs(self, kind: str) -> Iterator[tuple[Label, np.ndarray, np.ndarray]]:
        for ours, other in self.pairs_of_arms():
            for point in (self.last, "images", "flops"):
                mine, theirs = (self.matrix(self.main_runs(arm), point) for arm in (ours, other))
                if both := paired(mine, theirs):
                    yield Label(ours, other, point, kind), *both

    def pairs_of_arms(self) -> list[tuple[str, str]]:
        """Pixel arms with all others, of those that have runs."""
        return [(ours, other) for ours in PIXEL_ARMS for other in self.arms if ours in self.arms and other != ours]

    def _real_comparisons(self, known: RealSet) -> dict[Label, Estimate]:
        pairs = dict[Label, tuple[np.ndarray, np.ndarray]]()
        for ours, other in self.pairs_of_arms():
            if both := paired(self.real_lines(ours, known), self.real_lines(other, known)):
                pairs[Label(ours, other, self.last, known.name)] = both
        named = {str(n): pair for n, pair in enumerate(pairs.values())}
        estimates = paired_differences(
            named, known.documents, np.zeros(len(known)), seed=SEED, replicates=self.plan.replicates
        )
        return dict(zip(pairs, estimates.values(), strict=True))

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Claims A and B of every pixel arm."""
        by_arm = {
            ours: {(label.other, label.kind): value for label, value in self.comparisons.items()
                   if label.ours == ours and label.point == self.last}
            for ours in PIXEL_ARMS
        }  # fmt: skip
        best = {
            (label.ours, label.other, label.kind): max(
                self.accuracy(arm, label.kind).value for arm in (label.ours, label.other)
            )
            for label in self.comparisons if label.point == self.last
        }  # fmt: skip
        seeds = {pair: len(set(self.main_runs(pair[0])) & set(self.main_runs(pair[1])))
                 for pair in self.pairs_of_arms()}  # fmt: skip
        return decide_all(by_arm, (*TEST_KINDS, *REAL_SETS), best, seeds)

    @cached_property
    def accuracies(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By arm and kind, at equal time: heights, exact match at each, and replicates ``[n, heights]``."""
        found = {}
        for kind in TEST_KINDS:
            images = self.chosen(kind, main=False)
            heights, families = self.tests.heights[images], self.tests.families[images]
            lines = {arm: self.matrix(self.main_runs(arm), self.last) for arm in self.arms}
            values = {arm: np.stack(list(each.values()))[:, images] for arm, each in lines.items() if each}
            drawn = replicate_means(values, families, heights, seed=SEED, replicates=self.plan.replicates)
            for arm, value in values.items():
                point = stratified_means(value, heights, np.ones((1, len(images)), np.float32))[0].mean(0)
                found[arm, kind] = (np.unique(heights), point, drawn[arm])
        return found

    def accuracy(self, arm: str, kind: str) -> Estimate:
        """Exact match of an arm, averaged over the heights of the main endpoint; of a real set its closed third."""
        if kind not in TEST_KINDS:
            found = self.real_accuracy(arm, self.real[CLOSED][kind])
            assert found is not None
            return found
        heights, point, drawn = self.accuracies[arm, kind]
        chosen = np.isin(heights, MAIN_HEIGHTS)
        return estimate(float(point[chosen].mean()), mean_of_finite(drawn[:, chosen]))

    def real_lines(self, arm: str, known: RealSet) -> dict[int, np.ndarray]:
        """Which crops of a real set an arm's runs read, by seed; none where a run diverged."""
        found = dict[int, np.ndarray]()
        for seed, run in self.main_runs(arm).items():
            if run["diverged"]:
                found[seed] = np.zeros(len(known), np.float32)
            elif (line := kept_readings(self.results, run["id"], known.part).get(known.name)) is not None:
                found[seed] = line.astype(np.float32)
        return found

    def real_accuracy(self, arm: str, known: RealSet) -> Estimate | None:
        """Exact match of an arm on a real set; None where no run read it."""
        lines = self.real_lines(arm, known)
        return self._mean(np.stack(list(lines.values())), known) if lines else None

    def engine_accuracy(self, engine: str, known: RealSet) -> Estimate | None:
        """The same of a reference engine."""
        line = self.engines.get((engine, known.name, known.part))
        return None if line is None else self._mean(line[None].astype(np.float32), known)

    def _mean(self, values: np.ndarray, known: RealSet) -> Estimate:
        one = np.zeros(len(known))
        drawn = replicate_means({"": values}, known.documents, one, seed=SEED, replicates=self.plan.replicates)
        return estimate(plain_mean(values, one), drawn[""][:, 0])

    def height(self, arm: str, kind: str) -> Estimate:
        """The ink height that an arm reads 75% of the time."""
        return height_interval(*self.accuracies[arm, kind])

    def deviation(self, ours: str, other: str, kind: str) -> tuple[int, float]:
        """Seeds that both arms have, and the s.d. over them of the difference, in points."""
        images = self.chosen(kind, main=True)
        mine, theirs = (self.matrix(self.main_runs(arm), self.last) for arm in (ours, other))
        seeds = sorted(set(mine) & set(theirs))
        if not seeds:
            return 0, float("nan")
        first, second = (np.stack([side[s][images] for s in seeds]) for side in (mine, theirs))
        return len(seeds), seed_deviation(first, second, self.tests.heights[images])

    def mixed_model(self, kind: str) -> dict[str, Effect]:
        """Effects against arm 4 (or the first patch arm), on the heights of the main endpoint; {} with one arm."""
        patches = [arm for arm in self.arms if not ARMS[arm].is_pixel]
        if len(self.arms) < 2 or not patches:
            return {}
        reference, images = ("4" if "4" in patches else patches[0]), self.chosen(kind, main=True)
        lines = {arm: np.stack(list(self.matrix(self.main_runs(arm), self.last).values())) for arm in self.arms}
        correct = {arm: line[:, images] for arm, line in lines.items()}
        if not 0 < np.mean([line.mean() for line in correct.values()]) < 1:
            return {}
        covariates = {"contrast": self.tests.contrasts[images], "clutter": self.tests.clutter[images].astype(float)}
        return fit_mixed_model(
            correct, reference, self.tests.families[images], self.tests.heights[images], covariates, seed=SEED
        )

    # --- the other blocks ---------------------------------------------------------------------------------------------

    def runs_of(self, kind: str, prefix: str) -> dict[int, dict[str, Any]]:
        """Finished runs of a kind whose id begins in a way, by seed."""
        return {record["spec"]["seed"]: record for name, record in self.records.items()
                if record["spec"]["kind"] == kind and name.startswith(prefix)}  # fmt: skip

    @cached_property
    def ablations(self) -> dict[str, dict[str, Any]]:
        """By name: mean nats a character and the difference of exact match to arm 1b as it is, by kind of text."""
        rate, found = rate_of(self.known, "1b"), dict[str, dict[str, Any]]()
        runs = {name: self.runs_of("ablation", f"iv-{slug(name)}-r{rate or 0:g}-s") for name in ABLATIONS}
        base = self.matrix(runs["as it is"], "time")
        for name, each in runs.items():
            lines = self.matrix(each, "time")
            if seeds := sorted(set(lines) & set(base)):
                found[name] = {"seeds": len(seeds), "nats": float(np.mean([
                    each[seed]["points"]["time"]["nats"] for seed in seeds])),
                    "parameters": each[seeds[0]]["parameters_without_tables"]}  # fmt: skip
                for kind in TEST_KINDS:
                    images = self.chosen(kind, main=True)
                    pair = [np.stack([side[s][images] for s in seeds]) for side in (lines, base)]
                    found[name][kind] = paired_differences(
                        {"": (pair[0], pair[1])}, self.tests.families[images], self.tests.heights[images], seed=SEED,
                        replicates=self.plan.replicates,
                    )[""]  # fmt: skip
                    found[name][f"{kind} exact"] = plain_mean(pair[0], self.tests.heights[images])
        return found

    @cached_property
    def tuned(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """By arm, start and labels: exact match with replicates, and nats a character by seed."""
        found, values = dict[tuple[str, str, int], dict[str, Any]](), dict[str, np.ndarray]()
        images = np.concatenate([self.chosen(kind, main=True) for kind in TEST_KINDS])
        for arm in ARMS:
            for start in ("scratch", "pretrained"):
                for labels in self.plan.labels:
                    runs = self.runs_of("tune", f"v-tune-{arm}-{start}-{labels}-")
                    lines = self.matrix(runs, "tune")
                    if lines:
                        key = (arm, start, labels)
                        values[repr(key)] = np.stack(list(lines.values()))[:, images]
                        nats = np.array([run["points"]["tune"]["nats"] for run in runs.values()])
                        seconds = float(np.mean([run["seconds"] for run in runs.values()]))
                        found[key] = {"nats": nats, "seeds": len(lines), "seconds": seconds}
        heights, families = self.tests.heights[images], self.tests.families[images]
        drawn = replicate_means(values, families, heights, seed=SEED, replicates=self.plan.replicates)
        for key, entry in found.items():
            entry["exact"] = plain_mean(values[repr(key)], heights)
            entry["drawn"] = mean_of_finite(drawn[repr(key)])
        return found

    def label_factor(self, arm: str, labels: int) -> tuple[Estimate, str] | None:
        """How many times the labels scratch needs for what pretraining reaches with ``labels``; by which measure."""
        starts = {start: [(n, self.tuned.get((arm, start, n))) for n in self.plan.labels]
                  for start in ("scratch", "pretrained")}  # fmt: skip
        if any(entry is None for each in starts.values() for _, entry in each) or labels not in self.plan.labels:
            return None
        counts, at = np.array(self.plan.labels, float), self.plan.labels.index(labels)
        entries = {start: [entry for _, entry in each if entry] for start, each in starts.items()}
        if entries["pretrained"][at]["exact"] < FEW:
            rng, measure = np.random.default_rng(SEED), "nats a character"
            curves = {s: np.stack([-_drawn_means(e["nats"], rng, self.plan.replicates) for e in each], axis=1)
                      for s, each in entries.items()}  # fmt: skip
            points = {s: np.array([-e["nats"].mean() for e in each]) for s, each in entries.items()}
        else:
            measure = "exact match"
            curves = {s: np.stack([e["drawn"] for e in each], axis=1) for s, each in entries.items()}
            points = {s: np.array([e["exact"] for e in each]) for s, each in entries.items()}
        point = labels_needed(counts, points["scratch"], points["pretrained"][at]) / labels
        drawn = [labels_needed(counts, line, wanted) / labels
                 for line, wanted in zip(curves["scratch"], curves["pretrained"][:, at], strict=True)]  # fmt: skip
        return estimate(point, np.array(drawn), null=1.0), measure

    def pretraining_verdict(self) -> Verdict:
        """The claim on labels, at the largest number of labels up to 1,000."""
        usable = [n for n in self.plan.labels if n <= 1000]
        found = self.label_factor("1b", max(usable)) if usable else None
        return decide_pretraining(found[0] if found else None, max(usable, default=0))

    def scaling_verdict(self, loss: str) -> Verdict:
        """The largest run against its prediction."""
        points = points_of_runs(list(self.records.values()), "largest", loss)
        measured = float(points[-1, 2]) if len(points) else None
        return decide_scaling(kept_prediction(self.results / "prediction.json", loss), measured)


def paired(ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Lines ``[images]`` by seed as ``[seeds, images]`` of the seeds that both have; None without any."""
    seeds = sorted(set(ours) & set(theirs))
    return (np.stack([ours[s] for s in seeds]), np.stack([theirs[s] for s in seeds])) if seeds else None


def labels_needed(counts: np.ndarray, scores: np.ndarray, wanted: float) -> float:
    """Labels at which rising ``scores [n]`` reach ``wanted``, interpolated in the logarithm; clipped to the range."""
    rising = np.maximum.accumulate(scores)
    if wanted <= rising[0]:
        return float(counts[0])
    if wanted >= rising[-1]:
        return float(counts[-1])
    n = int(np.flatnonzero(rising >= wanted)[0])
    share = (wanted - rising[n - 1]) / (rising[n] - rising[n - 1])
    return float(np.exp(np.log(counts[n - 1]) + share * np.log(counts[n] / counts[n - 1])))


def _drawn_means(values: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    return np.asarray(rng.choice(values, (count, len(values))).mean(1))


def claim_arms(claim: str) -> Sequence[str]:
    """The arms that a claim such as "1b A" names."""
    return CLAIMS[claim.split()[1]]
