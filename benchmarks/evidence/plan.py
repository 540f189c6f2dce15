"""What is fixed before the first run: sizes, lengths, test cells. Kept as `plan.json` beside the runs.

Lengths of runs are times: an arm's crops follow from its seconds a crop, measured on an idle machine (`timing.json`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_pixword.common.errors import PixWordError

from .arms import Arm, Shape, arm_of
from .files import read_json, write_json

MAIN_HEIGHTS = (4, 5, 6, 7, 8)  # of the main endpoint
OTHER_HEIGHTS = (10, 12, 16, 24, 32)
CONTRASTS = (0.1, 0.3, 1.0)
CLUTTER = (0, 1)
TEST_KINDS = ("numbers", "words")


@dataclass(frozen=True)
class Plan:
    """The settings of one set of runs.

    Attributes:
        minutes: of one thread, of an arm's whole run.
        seeds: of the main comparison; ``ablation_seeds`` of ablations and pretraining.
        time_points: shares of ``minutes`` at which a cooldown ends.
        cooldown: share of a cooldown in what it ends.
        trial_share: length of a learning-rate trial, relative to a whole run.
        factors: learning rates of the trials, relative to the base rates.
        batch: crops a step; a run has at least ``least_steps`` steps.
        warmup: steps over which the rate rises.
        curriculum: crops over which variety grows, from one plain face to everything.
        train_crops, dev_crops: drawn beforehand.
        main_cell, other_cell: test crops a cell of height, contrast, clutter and kind.
        labels: of the pretraining claim.
        pretrain_crops: without labels; ``tune_crops`` are seen with labels afterwards.
        widths: of the scaling runs' language blocks, the last of which is predicted.
        scaling_crops: of the largest amount of data; others are ``scaling_shares`` of it.
        seldom: at points other than the last time, one test crop of so many is read.
        fold: fold factor of pixel arms; 0: each arm's own.
        shape: the language block and S.
        replicates: of the bootstrap.
    """

    name: str = "full"
    minutes: float = 18.0
    seeds: int = 5
    ablation_seeds: int = 3
    time_points: tuple[float, ...] = (1.0,)
    cooldown: float = 0.2
    trial_share: float = 0.2
    factors: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    batch: int = 20
    least_steps: int = 1
    warmup: int = 100
    curriculum: int = 50_000
    train_crops: int = 200_000
    dev_crops: int = 1000
    main_cell: int = 250
    other_cell: int = 50
    labels: tuple[int, ...] = (100, 300, 1000, 3000, 10000)
    pretrain_crops: int = 60_000
    tune_crops: int = 30_000
    widths: tuple[int, ...] = (48, 64, 80, 96, 128, 256)
    scaling_crops: int = 60_000
    scaling_shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    seldom: int = 3
    fold: int = 0
    shape: Shape = field(default_factory=Shape)
    replicates: int = 2000

    @property
    def test_crops(self) -> int:
        """Crops of the test set, real ones apart."""
        cells = len(CONTRASTS) * len(CLUTTER) * len(TEST_KINDS)
        return cells * (len(MAIN_HEIGHTS) * self.main_cell + len(OTHER_HEIGHTS) * self.other_cell)

    def arm(self, name: str, changes: Mapping[str, Any] | None = None) -> Arm:
        """An arm of this plan."""
        arm = arm_of(name, changes)
        return replace(arm, fold=self.fold) if self.fold and arm.is_pixel and "fold" not in (changes or {}) else arm


PLANS = {
    "full": Plan(),
    "short": Plan(name="short", minutes=8.0, other_cell=10, curriculum=30_000),
    "quick": Plan(
        name="quick", minutes=0.001, seeds=2, ablation_seeds=1, factors=(0.5, 1.0), batch=8, least_steps=2,
        warmup=2, curriculum=64,
        train_crops=192, dev_crops=16, main_cell=2, other_cell=1, fold=64, seldom=2, labels=(8, 24),
        pretrain_crops=16, tune_crops=16,
        widths=(16, 24, 32, 48), scaling_crops=32, scaling_shares=(0.5, 1.0), replicates=100,
        shape=Shape(hidden_size=32, num_heads=2, num_kv_heads=2, num_layers=1, intermediate_size=48),
    ),
}  # fmt: skip


def plan_named(name: str, **changes: Any) -> Plan:
    """A plan by its name, with changes."""
    if name not in PLANS:
        raise PixWordError(f"unknown plan {name!r}; plans are {', '.join(PLANS)}")
    return replace(PLANS[name], **changes)


def to_json(plan: Plan) -> dict[str, Any]:
    return asdict(plan)


def from_json(values: dict[str, Any]) -> Plan:
    """A plan as it was kept."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "shape"}
    try:
        return Plan(**known, shape=Shape(**values["shape"]))
    except (TypeError, KeyError) as error:
        raise PixWordError(f"plan.json is of another version of this program: {error}") from error


def keep_plan(plan: Plan, folder: Path) -> None:
    """Write the plan, or refuse if the folder holds runs of another one."""
    path = folder / "plan.json"
    if path.exists() and (kept := from_json(read_json(path))) != plan:
        differing = [k for k, v in to_json(plan).items() if to_json(kept)[k] != v]
        raise PixWordError(f"{path} is another plan, in {', '.join(differing)}; use another --results folder")
    if not path.exists():
        write_json(path, to_json(plan))


def kept_plan(folder: Path) -> Plan:
    """The plan of a folder of results."""
    path = folder / "plan.json"
    if not path.exists():
        raise PixWordError(f"{folder} holds no plan.json; run `python benchmarks/evidence prepare` first")
    return from_json(read_json(path))
