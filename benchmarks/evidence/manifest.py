"""Which runs there are, in the order of the protocol's blocks: a function of the plan, the timing and what is done.

Later runs depend on earlier ones: rates come from trials, tuning from pretraining, the largest run from its prediction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mlx_pixword.common.errors import PixWordError

from .arms import ARMS, BLOCKS
from .plan import Plan

WORDS_ALONE = {"objective": "words", "pixel_queries": 0}
ABLATIONS: dict[str, dict[str, Any]] = {  # changes of arm 1b
    "as it is": {},
    "fold 8": {"fold": 8}, "fold 16": {"fold": 16}, "fold 64": {"fold": 64},
    "free colours": {"factored_colors": False, "linear_color_scale": 0.02, "sine_color_scale": 0.02},
    "window 2": {"window": 2}, "window 8": {"window": 8}, "window 16": {"window": 16, "summary_rank": 64},
    "summary of the last pixel": {"summary": "last"},
    "sequence positions": {"positions": "sequence"},
    "words alone": WORDS_ALONE, "linear RGB in place of tokens (words alone)": {"front": "rgb"},
    "full attention (words alone)": {"front": "whole"},
    "two image layers (words alone)": {**WORDS_ALONE, "image_layers": 2},
    "two image layers, windows seen both ways (words alone)": {"front": "both", "image_layers": 2},
    "boundary loss (no conditional attention)": {"pixel_queries": 0},
}  # fmt: skip
TRIAL_SEED, MAX_EXTENSIONS = 100, 2
SAME = 0.03  # points of a run this close to each other are one


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        id: its name, which says all that decides it.
        block, kind: "i" to "vi"; "trial", "main", "ablation", "pretrain", "tune", "scaling" or "largest".
        arm, changes, shape: what is trained.
        seed: of weights, data order and augmentation.
        rate: learning rate relative to the base rates.
        points: crops at which a cooldown ends, by name.
        task: "read", "pixels" or "masked".
        read: whether the test set is read at the points.
        labels: captions that may be used; 0 for all.
        start: the run whose weights it begins with, or "".
    """

    id: str
    block: str
    kind: str
    arm: str
    seed: int
    rate: float
    points: dict[str, int]
    changes: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, int] = field(default_factory=dict)
    task: str = "read"
    read: bool = True
    labels: int = 0
    start: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Known:
    """What the manifest depends on.

    Attributes:
        plan: sizes and lengths.
        timing: by arm or variant: seconds and operations a crop, see `timing.py`.
        nats: development nats a character of finished runs, by id and point.
        predicted: whether the largest run's loss has been predicted.
    """

    plan: Plan
    timing: Mapping[str, Any]
    nats: Mapping[str, Mapping[str, float]]
    predicted: bool = False

    def timed(self, variant: str) -> Mapping[str, Any]:
        """The timing of an arm or variant."""
        if variant not in self.timing:
            raise PixWordError(f"{variant} was not timed; `python benchmarks/evidence timing --blocks ..` does it")
        found: Mapping[str, Any] = self.timing[variant]
        return found

    def cost(self, spec: RunSpec) -> Mapping[str, float]:
        """Seconds and operations a crop of a run's variant; of its arm where that was not timed."""
        same = [entry for entry in self.timing.values() if spec.changes and entry.get("changes") == spec.changes]
        found: Mapping[str, float] = next(iter(same), self.timed(spec.arm))
        return found

    def crops(self, variant: str, share: float = 1.0) -> int:
        """Crops of a share of the plan's minutes."""
        crops = round(60 * self.plan.minutes * share / self.timed(variant)["seconds"])
        return max(crops, self.plan.batch * self.plan.least_steps)


def manifest(known: Known, blocks: Sequence[str] = ("i", "ii", "iii", "iv", "v", "vi")) -> Iterator[RunSpec]:
    """All runs that can be named now, each once; more follow when these are finished."""
    named = set[str]()
    makers = {"iv": _ablations, "v": _pretraining, "vi": _scaling}
    for block in blocks:
        for spec in _comparison(known, block) if block in BLOCKS else makers[block](known):
            if spec.id not in named:
                named.add(spec.id)
                yield spec


def unnamed(known: Known, blocks: Sequence[str]) -> list[RunSpec]:
    """Runs of the main comparison that have no name yet: the trials that decide their rates are not finished."""
    arms = [arm for block in blocks for arm in BLOCKS.get(block, ()) if rate_of(known, arm) is None]
    return [RunSpec(f"{block_of(arm)}-main-{arm}-r?-s{seed}", block_of(arm), "main", arm, seed, 1.0,
                    points_of(known, arm), changes=changes_of(known, arm))
            for seed in range(known.plan.seeds) for arm in arms]  # fmt: skip


def core_seconds(known: Known, spec: RunSpec) -> float:
    """Processor seconds that a run takes: its trunk, its cooldowns, and what is read at its points."""
    plan, cost = known.plan, known.cost(spec)
    ends = sorted(set(spec.points.values()))
    crops = (1 - plan.cooldown) * ends[-1] + plan.cooldown * sum(ends)
    tests = plan.test_crops * (1 + (len(ends) - 1) / plan.seldom) if spec.read else 0.0
    reads = (0.0 if spec.kind == "pretrain" else plan.dev_crops * len(ends)) + tests
    return crops * cost["seconds"] + reads * cost.get("read_seconds", cost["seconds"] / 3)


# --- learning rates ---------------------------------------------------------------------------------------------------


def block_of(arm: str) -> str:
    return next(block for block, arms in BLOCKS.items() if arm in arms)


def trial_id(arm: str, factor: float) -> str:
    return f"{block_of(arm)}-trial-{arm}-r{factor:g}"


def factors_tried(known: Known, arms: Sequence[str]) -> list[float]:
    """Rates of the trials: extended, for all arms, while the best of one lies at an edge."""
    factors = sorted(known.plan.factors)
    step = factors[1] / factors[0] if len(factors) > 1 else 2.0
    for _ in range(MAX_EXTENSIONS):
        best = [_best(known, arm, factors) for arm in arms]
        if None in best or len(factors) < 3:
            break
        low, high = factors[0] in best, factors[-1] in best
        factors = ([factors[0] / step] if low else []) + factors + ([factors[-1] * step] if high else [])
        if not (low or high):
            break
    return factors


def _best(known: Known, arm: str, factors: Sequence[float]) -> float | None:
    """The rate with the fewest development nats a character; None until all are tried."""
    found = [known.nats.get(trial_id(arm, factor), {}).get("trial") for factor in factors]
    if any(value is None for value in found):
        return None
    values = [value for value in found if value is not None]
    return factors[int(np.argmin(values))]


def rate_of(known: Known, arm: str) -> float | None:
    """The rate of an arm's runs, once its trials are finished."""
    return _best(known, arm, factors_tried(known, _arms_up_to(block_of(arm))))


def _arms_up_to(block: str) -> list[str]:
    """Arms of a block and those before it: an extension is given to all of them."""
    names = list(BLOCKS)
    return [arm for name in names[: names.index(block) + 1] for arm in BLOCKS[name]]


# --- blocks -----------------------------------------------------------------------------------------------------------


def _comparison(known: Known, block: str) -> Iterator[RunSpec]:
    arms = _arms_up_to(block)
    for factor in factors_tried(known, arms):
        for arm in arms:
            points = {"trial": known.crops(arm, known.plan.trial_share)}
            yield RunSpec(trial_id(arm, factor), block_of(arm), "trial", arm, TRIAL_SEED, factor, points, read=False,
                          changes=changes_of(known, arm))  # fmt: skip
    for seed in range(known.plan.seeds):
        for arm in BLOCKS[block]:
            rate = _best(known, arm, factors_tried(known, arms))
            if rate is not None:
                name = f"{block}-main-{arm}-r{rate:g}-s{seed}"
                yield RunSpec(name, block, "main", arm, seed, rate, points_of(known, arm),
                              changes=changes_of(known, arm))  # fmt: skip


def changes_of(known: Known, arm: str) -> dict[str, Any]:
    """What the timing decides: the width that matches arm 8's operations to those of 1b."""
    return dict(known.timed(arm).get("changes", {}))


def points_of(known: Known, arm: str) -> dict[str, int]:
    """Crops at equal times, and where the arm gets there at the images of 1b and `least_flops`; near ones are one."""
    whole = known.crops(arm)
    points = {f"time {share:g}": known.crops(arm, share) for share in known.plan.time_points}
    for name, wanted in (("images", known.crops("1b")), ("flops", round(least_flops(known) / _flops(known, arm)))):
        if wanted <= whole * (1 + SAME):
            near = [p for p in points.values() if abs(p - wanted) <= SAME * wanted]
            points[name] = near[0] if near else max(1, wanted)
    return points


def least_flops(known: Known) -> float:
    """The fewest operations that an arm of the first block does in a whole run."""
    return min(known.crops(arm) * _flops(known, arm) for arm in BLOCKS["i"])


def _flops(known: Known, arm: str) -> float:
    return float(known.timed(arm)["flops"])


def _ablations(known: Known) -> Iterator[RunSpec]:
    rate = rate_of(known, "1b")
    if rate is None:
        return
    for seed in range(known.plan.ablation_seeds):
        for name, changes in ABLATIONS.items():
            variant = f"1b, {name}"
            points = {"time": known.crops(variant, 0.5)}
            yield RunSpec(f"iv-{slug(name)}-r{rate:g}-s{seed}", "iv", "ablation", "1b", seed, rate, points, changes)


def best_patch_arm(known: Known) -> str | None:
    """The patch arm with the fewest development nats a character at equal time, of those whose runs are finished."""
    found = dict[str, float]()
    for arm in ARMS:
        rate = None if ARMS[arm].is_pixel or ARMS[arm].front == "conv" else rate_of(known, arm)
        if rate is not None:
            each = [known.nats.get(f"{block_of(arm)}-main-{arm}-r{rate:g}-s{s}", {}) for s in range(known.plan.seeds)]
            values = [nats[f"time {max(known.plan.time_points):g}"] for nats in each if nats]
            if values:
                found[arm] = sum(values) / len(values)
    return min(found, key=lambda arm: found[arm]) if found else None


def _pretraining(known: Known) -> Iterator[RunSpec]:
    patch = best_patch_arm(known)
    for arm, task in (("1b", "pixels"), (patch, "masked")):
        rate = rate_of(known, arm) if arm else None
        if arm is None or rate is None:
            continue
        for seed in range(known.plan.ablation_seeds):
            changes = changes_of(known, arm)
            first = f"v-pretrain-{arm}-r{rate:g}-s{seed}"
            yield RunSpec(first, "v", "pretrain", arm, seed, rate, {"pretrain": known.plan.pretrain_crops}, changes,
                          task=task, read=False)  # fmt: skip
            for labels in known.plan.labels:
                for start in ("", first):
                    name = f"v-tune-{arm}-{'pretrained' if start else 'scratch'}-{labels}-r{rate:g}-s{seed}"
                    points = {"tune": known.plan.tune_crops}
                    if not start or first in known.nats:
                        yield RunSpec(name, "v", "tune", arm, seed, rate, points, changes, labels=labels, start=start)


def scaled_shape(width: int) -> dict[str, int]:
    """A language block of another width: heads of 16 to 32, feed-forward layers twice as wide."""
    heads = max(1, width // 32) if width % 32 == 0 else width // 16
    return {"hidden_size": width, "num_heads": heads, "num_kv_heads": heads, "intermediate_size": 2 * width}


def _scaling(known: Known) -> Iterator[RunSpec]:
    rate = rate_of(known, "1b")
    if rate is None:
        return
    plan = known.plan
    *fitted, largest = plan.widths
    points = {f"share {share:g}": max(1, round(share * plan.scaling_crops)) for share in plan.scaling_shares}
    for width in fitted:
        yield RunSpec(f"vi-width-{width}-r{rate:g}", "vi", "scaling", "1b", 0, rate, points, read=False,
                      shape=scaled_shape(width))  # fmt: skip
    if known.predicted:
        last = {f"share {max(plan.scaling_shares):g}": plan.scaling_crops}
        yield RunSpec(f"vi-largest-{largest}-r{rate:g}", "vi", "largest", "1b", 0, rate, last, read=False,
                      shape=scaled_shape(largest))  # fmt: skip


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
