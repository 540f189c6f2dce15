"""Seconds and operations a crop of every arm and variant, in interleaved rounds; meant for an idle machine.

What the runs' lengths are computed from. A step is timed as it is trained: crops laid out, gradients, update.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from mlx.utils import tree_flatten
from shared.record import with_machine

from mlx_pixword.data.text_file import TextFile
from mlx_pixword.model.batch import Batch

from .arms import ARMS
from .batches import batch_of, document_of, order_of
from .crops import open_crops
from .files import write_json
from .flops import muon_step_flops, step_flops
from .learning import Learner
from .manifest import ABLATIONS
from .plan import Plan

SEED = 7  # of the crops that are timed


def measure(plan: Plan, results: Path, scratch: Path, rounds: int, steps: int, arms: Sequence[str] = ()) -> None:
    """Time all arms and variants, each `rounds` times `steps` steps, in turns; writes `timing.json`."""
    crops = open_crops(scratch, "train")
    variants: dict[str, tuple[str, dict[str, Any]]] = {arm: (arm, {}) for arm in arms or ARMS}
    if not arms:
        variants |= {f"1b, {name}": ("1b", changes) for name, changes in ABLATIONS.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, (arm, changes) in variants.items():
        if arm == "8" and "1b" in found:
            changes = {"width": matched_width(plan, crops, steps, found["1b"]["flops"])}
        found[name] = {"arm": arm, "changes": changes, "rounds": [], **_counts(plan, crops, steps, arm, changes)}
    for _ in range(rounds):
        for entry in found.values():
            entry["rounds"].append(_seconds(plan, crops, steps, entry["arm"], entry["changes"]))
    for entry in found.values():
        entry["seconds"] = median(entry["rounds"])
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    write_json(results / "timing.json", with_machine({"threads": threads, "steps": steps, "arms": found}))


def matched_width(plan: Plan, crops: TextFile, steps: int, wanted: float) -> int:
    """The width of arm 8's MLP at which its operations are those of arm 1b: they are linear in the width."""
    narrow, wide = (_counts(plan, crops, steps, "8", {"width": width})["flops"] for width in (64, 1088))
    return max(8, round(64 + (wanted - narrow) * 1024 / (wide - narrow)))


def _batches(learner: Learner, plan: Plan, crops: TextFile, steps: int) -> Any:
    order = order_of(crops, plan.batch, 0, SEED)
    for step in range(steps):
        pairs = [(crops.crop(int(n)), crops.text(int(n))) for n in order.crops(step)]
        documents = [document_of(learner.arm, learner.args, *pair) for pair in pairs]
        yield batch_of(learner.arm, learner.args, documents, (SEED, step))


def _counts(plan: Plan, crops: TextFile, steps: int, arm: str, changes: dict[str, Any]) -> dict[str, float]:
    """Operations a crop, and parameters with and without colour tables."""
    learner = Learner.new(plan.arm(arm, changes), plan.shape, SEED)
    batches: list[Batch] = list(_batches(learner, plan, crops, min(steps, 2)))
    flops = np.mean([step_flops(learner, batch) for batch in batches]) + muon_step_flops(learner)
    return {"flops": float(flops) / plan.batch, **parameter_counts(learner)}


def parameter_counts(learner: Learner) -> dict[str, float]:
    """Trainable numbers: all, and without the rows of colours in embedding and head."""
    weights = dict(tree_flatten(learner.model.parameters()))
    total = sum(weight.size for weight in weights.values())
    tables = sum(weight.size for name, weight in weights.items() if ".embed_pixels." in f".{name}")
    if learner.arm.is_pixel:
        tables += learner.args.num_pix * learner.args.hidden_size
    return {"parameters": total, "parameters_without_tables": total - tables}


def _seconds(plan: Plan, crops: TextFile, steps: int, arm: str, changes: dict[str, Any]) -> float:
    """Seconds a crop, after one step that is not timed."""
    learner = Learner.new(plan.arm(arm, changes), plan.shape, SEED)
    start = 0.0
    for n, batch in enumerate(_batches(learner, plan, crops, steps + 1)):
        learner.step(batch, 1.0)
        start = start or (time.perf_counter() if n == 0 else 0.0)
    return (time.perf_counter() - start) / (steps * plan.batch)
