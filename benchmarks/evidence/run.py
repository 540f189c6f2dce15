"""One run: a trunk at a constant rate, and from it a cooldown to each point, where the model is evaluated.

A run can be stopped after any step and goes on to the same numbers: its state is one file, and data follow from
(seed, step). The cooldown to a point begins at 80% of its crops; afterwards the trunk goes on from there.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import make_folder, move
from mlx_pixword.data.text_file import TextFile
from mlx_pixword.model.batch import Batch
from mlx_pixword.model.document import Document

from .batches import Order, augmented, batch_of, document_of, documents_of, order_of
from .crops import CLIMB, PARTS, open_crops
from .files import pack_texts
from .learning import Learner
from .manifest import RunSpec
from .plan import Plan
from .timing import parameter_counts

SAVE_SECONDS = 120.0
CURVE = 60  # values of a run's training loss that are kept
LEAST_RATE = 0.02  # of a cooldown's end


class Paused(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass
class Progress:
    """Where a run stands: points that are done, and the step of the trunk, or of the cooldown to the next point.

    Attributes:
        step: steps of the trunk.
        branch: steps since the trunk, of the cooldown under way; None on the trunk.
        seconds: of training so far, processor time.
        curve: ``[crops, mean loss]`` along the trunk.
        losses: since the last line of the curve.
        points: results by name.
        diverged: the loss became infinite or not a number.
    """

    step: int = 0
    branch: int | None = None
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    points: dict[str, Any] = field(default_factory=dict)
    diverged: bool = False


class Training:
    """A run under way.

    Args:
        spec: what to run.
        plan: with its sizes.
        scratch: the folder of crops, where the state is kept too.
        stop: asked before every step.
    """

    def __init__(self, spec: RunSpec, plan: Plan, scratch: Path, stop: Callable[[], bool]) -> None:
        self.spec, self.plan, self._scratch, self._stop = spec, plan, scratch, stop
        shape = replace(plan.shape, **spec.shape)
        self.learner = Learner.new(plan.arm(spec.arm, spec.changes), shape, spec.seed)
        self.crops = open_crops(scratch, "train")
        curriculum = 0 if spec.task != "read" or spec.labels else plan.curriculum
        self.order: Order = order_of(self.crops, plan.batch, curriculum, spec.seed, spec.labels)
        self.progress, self._trunk = Progress(), dict[str, mx.array]()
        self._state = scratch / "state" / f"{spec.id}.safetensors"
        steps = {name: max(1, round(crops / plan.batch)) for name, crops in spec.points.items()}
        self.ends = sorted(set(steps.values()))
        self.names = {end: [name for name, step in steps.items() if step == end] for end in self.ends}
        self._load()

    # --- the trunk and its cooldowns ----------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the last point; returns the results. Raises `Paused` if asked to stop."""
        for end in self.ends:
            if self.names[end][0] in self.progress.points:
                continue
            begin = end - max(1, round(self.plan.cooldown * end))
            self._advance(begin)
            if self.progress.branch is None:
                self._trunk, self.progress.branch = self.learner.state(), 0
            self._cool(begin, end)
            if self.spec.read:
                self._save()  # reading takes a while, and may be stopped
            result = self._evaluate(end)
            self.progress.points |= dict.fromkeys(self.names[end], result)
            self.learner.restore(self._trunk)
            self._trunk, self.progress.branch = {}, None
            self._save()
        return {
            "seconds": self.progress.seconds, "curve": self.progress.curve, "points": self.progress.points,
            "diverged": self.progress.diverged, **parameter_counts(self.learner),
        }  # fmt: skip

    def _warm(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, min(self.plan.warmup, self.ends[-1] // 10)))

    def _advance(self, end: int) -> None:
        """The trunk to a step."""
        progress, every = self.progress, max(1, self.ends[-1] // CURVE)
        if progress.branch is not None:
            return
        while progress.step < end:
            progress.losses.append(self._step(progress.step, self._warm(progress.step)))
            progress.step += 1
            if progress.step % every == 0:
                progress.curve.append([progress.step * self.plan.batch, round(float(np.mean(progress.losses)), 5)])
                progress.losses = []
            self._save_if_due()

    def _cool(self, begin: int, end: int) -> None:
        progress = self.progress
        assert progress.branch is not None
        while begin + progress.branch < end:
            share = 1 - (progress.branch + 0.5) / (end - begin)
            self._step(begin + progress.branch, max(LEAST_RATE, share))
            progress.branch += 1
            self._save_if_due()

    def _step(self, step: int, rate: float) -> float:
        if self._stop():
            self._save()
            raise Paused
        if self.progress.diverged:
            return math.inf
        start = time.process_time()
        batch, rng = self._batch(step)
        rate *= self.spec.rate
        if self.spec.task == "masked":
            loss = self.learner.masked_step(batch, rng, rate)
        else:
            loss = self.learner.step(batch, rate, self.spec.task)
        self.progress.seconds += time.process_time() - start
        self.progress.diverged = not math.isfinite(loss)
        return loss

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _batch(self, step: int) -> tuple[Batch, np.random.Generator]:
        arm, args = self.learner.arm, self.learner.args
        rng = np.random.default_rng((self.spec.seed, 2, step))
        left, top = self.crops.columns["left"], self.crops.columns["top"]
        documents = []
        for n in map(int, self.order.crops(step)):
            pixels = augmented(self.crops.crop(n), float(left[n]), float(top[n]), rng)
            text = self.crops.text(n) if self.spec.task == "read" else None
            documents.append(document_of(arm, args, pixels, text))
        words = self.spec.task == "read" and arm.reads_alone(step)
        return batch_of(arm, args, documents, (self.spec.seed, 3, step), words=words), rng

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate(self, end: int) -> dict[str, Any]:
        result: dict[str, Any] = {"crops": end * self.plan.batch, "seconds": self.progress.seconds}
        if self.progress.diverged:
            return result | {"nats": math.inf}
        if self.spec.kind == "pretrain":
            self._keep_weights()
            return result | {"nats": 0.0}
        start = time.process_time()
        dev = self._trial_documents(end) if self.spec.kind == "trial" else self._documents("dev")
        result["nats"] = self.learner.nats_per_character(dev)
        if self.learner.arm.is_pixel and self.learner.arm.objective != "words":
            result["pixel_nats"] = self.learner.nats_per_pixel(dev)
        if self.spec.kind == "main" and end == self.ends[-1]:
            self._keep_weights()  # for the real sets
        if self.spec.read:
            every = 1 if end == self.ends[-1] else self.plan.seldom
            readings = self.learner.read(self._documents("test", every))
            result |= {"every": every, "readings": pack_texts(readings)}
        return result | {"evaluation_seconds": time.process_time() - start}

    def _documents(self, name: str, every: int = 1) -> list[Document]:
        return self._some(open_crops(self._scratch, name), slice(None, None, every))

    def _trial_documents(self, end: int) -> list[Document]:
        """Development crops of the variety that training has at a step: most trials end within the curriculum."""
        share = self.order.share(end * self.plan.batch)
        if share >= 1:
            return self._documents("dev")
        crops = open_crops(self._scratch, CLIMB)
        last = max(1, round(share * len(crops)))
        return self._some(crops, slice(max(0, last - len(crops) // PARTS), last))

    def _some(self, crops: TextFile, chosen: slice) -> list[Document]:
        return documents_of(self.learner.arm, self.learner.args, crops, range(len(crops))[chosen])

    # --- state --------------------------------------------------------------------------------------------------------

    def _keep_weights(self) -> None:
        path = weights_path(self._scratch, self.spec.id)
        make_folder(path.parent)
        weights = {k: v for k, v in self.learner.state().items() if k.startswith("model.")}
        _write_arrays(path, weights, {})

    def _save(self) -> None:
        make_folder(self._state.parent)
        arrays = {f"now.{k}": v for k, v in self.learner.state().items()}
        arrays |= {f"trunk.{k}": v for k, v in self._trunk.items()}
        _write_arrays(self._state, arrays, {"progress": json.dumps(vars(self.progress))})
        self._saved = time.monotonic()

    def _load(self) -> None:
        self._saved = time.monotonic()
        if self._state.exists():
            arrays, metadata = _read_arrays(self._state)
            self.progress = Progress(**json.loads(metadata["progress"]))
            self.learner.restore({k[4:]: v for k, v in arrays.items() if k.startswith("now.")})
            self._trunk = {k[6:]: v for k, v in arrays.items() if k.startswith("trunk.")}
        elif self.spec.start:
            path = weights_path(self._scratch, self.spec.start)
            if not path.exists():
                raise PixWordError(f"{path} is missing: run {self.spec.start} was done with another --scratch folder")
            load_weights(self.learner, path)

    def clear(self) -> None:
        """Remove the state of a run whose result is kept."""
        self._state.unlink(missing_ok=True)


def weights_path(scratch: Path, run: str) -> Path:
    """Where a run of pretraining or of the main comparison leaves its final weights."""
    return scratch / "weights" / f"{run}.safetensors"


def load_weights(learner: Learner, path: Path) -> None:
    """Put final weights that were kept into a learner."""
    weights, _ = _read_arrays(path)
    learner.model.load_weights([(k[6:], v) for k, v in weights.items()])
    mx.eval(learner.model.parameters())


def _write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    draft = path.with_name(f".{path.stem}.{os.getpid()}.safetensors")
    mx.save_safetensors(str(draft), arrays, metadata)
    move(draft, path)


def _read_arrays(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    found: Any = mx.load(str(path), return_metadata=True)
    return found[0], found[1]
