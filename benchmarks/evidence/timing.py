"""Seconds and operations a crop of every arm and variant, in interleaved rounds.

What the runs' lengths are computed from. A step is timed as it is trained: crops laid out, gradients, update. Time is
processor time, which other work on the machine changes little; the time that passed is kept beside it.
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

from .arms import BLOCKS, Arm
from .batches import batch_of, document_of, documents_of, order_of
from .crops import open_crops
from .files import read_json, write_json
from .flops import muon_step_flops, step_flops
from .learning import Learner
from .manifest import ABLATIONS
from .plan import Plan

SEED = 7  # of the crops that are timed
READ = 512  # test crops, at most, whose reading is timed


def variants_of(blocks: Sequence[str]) -> list[str]:
    """Arms, and variants of arm 1b, that the runs of blocks have; those of the first block always."""
    arms = [arm for block in BLOCKS for arm in BLOCKS[block] if block in {"i", *blocks}]
    return arms + ([f"1b, {name}" for name in ABLATIONS] if "iv" in blocks else [])


def measure(plan: Plan, results: Path, scratch: Path, rounds: int, steps: int, variants: Sequence[str]) -> None:
    """Time arms and variants, each `rounds` times `steps` steps, in turns; in `timing.json` others stay as they are."""
    crops = open_crops(scratch, "train")
    found: dict[str, dict[str, Any]] = {}
    for name in variants:
        arm, _, change = name.partition(", ")
        changes = dict(ABLATIONS[change]) if change else {}
        if arm == "8":
            changes = {"width": matched_width(plan, crops, steps, found["1b"]["flops"])}
        counts = _counts(plan, crops, steps, arm, changes)
        found[name] = {"arm": arm, "changes": changes, "rounds": [], "passed": [], "read_rounds": [], **counts}
    test = open_crops(scratch, "test")
    for _ in range(rounds):
        for entry in found.values():
            learner = Learner.new(plan.arm(entry["arm"], entry["changes"]), plan.shape, SEED)
            seconds, passed = _step_seconds(learner, plan, crops, steps)
            entry["rounds"].append(seconds)
            entry["passed"].append(passed)
            entry["read_rounds"].append(_read_seconds(learner, test))
    for entry in found.values():
        entry["seconds"], entry["read_seconds"] = median(entry["rounds"]), median(entry["read_rounds"])
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    path = results / "timing.json"
    former = read_json(path)["arms"] if path.exists() else {}
    write_json(path, with_machine({"threads": threads, "steps": steps, "arms": former | found}))


def matched_width(plan: Plan, crops: TextFile, steps: int, wanted: float) -> int:
    """The width of arm 8's MLP at which its operations are those of arm 1b: they are linear in the width."""
    narrow, wide = (_counts(plan, crops, steps, "8", {"width": width})["flops"] for width in (64, 1088))
    return max(8, round(64 + (wanted - narrow) * 1024 / (wide - narrow)))


def _batches(learner: Learner, plan: Plan, crops: TextFile, steps: int) -> Any:
    order = order_of(crops, plan.batch, 0, SEED)
    for step in range(steps):
        pairs = [(crops.crop(int(n)), crops.text(int(n))) for n in order.crops(step)]
        documents = [document_of(learner.arm, learner.args, *pair) for pair in pairs]
        yield batch_of(learner.arm, learner.args, documents, (SEED, step), words=learner.arm.reads_alone(step))


def _counts(plan: Plan, crops: TextFile, steps: int, arm: str, changes: dict[str, Any]) -> dict[str, float]:
    """Operations a crop, and parameters with and without colour tables."""
    learner = Learner.new(plan.arm(arm, changes), plan.shape, SEED)
    batches: list[Batch] = list(
        _batches(learner, plan, crops, 2)
    )  # where pixels are predicted seldom, the first is one
    flops = np.average([step_flops(learner, batch) for batch in batches], weights=_weights(learner.arm))
    flops += muon_step_flops(learner)
    return {"flops": float(flops) / plan.batch, **parameter_counts(learner)}


def _weights(arm: Arm) -> tuple[float, float]:
    """How much the first two steps stand for."""
    return (1.0, arm.dense_every - 1.0) if arm.dense_every > 1 else (0.5, 0.5)


def parameter_counts(learner: Learner) -> dict[str, float]:
    """Trainable numbers: all, and without the rows of colours in embedding and head."""
    weights = dict(tree_flatten(learner.model.parameters()))
    total = sum(weight.size for weight in weights.values())
    tables = sum(weight.size for name, weight in weights.items() if ".embed_pixels." in f".{name}")
    if learner.arm.is_pixel:
        tables += learner.args.num_pix * learner.args.hidden_size
    return {"parameters": total, "parameters_without_tables": total - tables}


def _step_seconds(learner: Learner, plan: Plan, crops: TextFile, steps: int) -> tuple[float, float]:
    """Seconds a crop, after one step that is not timed: processor time, and what passed."""
    start, passed = 0.0, 0.0
    steps = -(-steps // learner.arm.dense_every) * learner.arm.dense_every  # as many of each kind as in a run
    for n, batch in enumerate(_batches(learner, plan, crops, steps + 1)):
        learner.step(batch, 1.0)
        if n == 0:
            start, passed = time.process_time(), time.perf_counter()
    count = steps * plan.batch
    return (time.process_time() - start) / count, (time.perf_counter() - passed) / count


def _read_seconds(learner: Learner, test: TextFile) -> float:
    """Processor seconds to read a test crop."""
    chosen = range(0, len(test), -(-len(test) // READ))
    start = time.process_time()
    learner.read(documents_of(learner.arm, learner.args, test, chosen))
    return (time.process_time() - start) / len(chosen)
