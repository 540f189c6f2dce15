"""Checkpoints: weights, optimiser state and position, published by rename so that a half-written one is never seen."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import PixWordError
from ..hub import read_safetensors
from ..model import PixWordModel

STATE = "state.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps done, and the next batch as (group, batch in the group)."""

    step: int = 0
    group: int = 0
    batch: int = 0


def save_checkpoint(folder: Path, position: Position, model: PixWordModel, optimizer: optim.Optimizer) -> Path:
    """Write ``folder/step-N``: `model.safetensors`, `optimizer.safetensors` and `state.json`."""
    target = folder / f"step-{position.step}"
    draft = folder / f".{target.name}.{os.getpid()}"
    draft.mkdir(parents=True, exist_ok=True)
    try:
        mx.save_safetensors(str(draft / "model.safetensors"), dict(tree_flatten(model.parameters())))
        mx.save_safetensors(str(draft / "optimizer.safetensors"), dict(tree_flatten(optimizer.state)))
        (draft / STATE).write_text(json.dumps({"version": 1, **asdict(position)}) + "\n")
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    steps = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and (path / STATE).exists()]
    return max(steps, key=lambda path: int(path.name[5:]), default=None)


def load_checkpoint(path: Path, model: PixWordModel, optimizer: optim.Optimizer) -> Position:
    """Put a checkpoint back into a model and an optimiser of the same configuration; gives the position."""
    weights = read_safetensors(path / "model.safetensors")
    expected = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    if expected != {name: array.shape for name, array in weights.items()}:
        raise PixWordError(f"checkpoint {path} belongs to a model of another shape; resume with the run's own settings")
    model.load_weights(list(weights.items()))
    optimizer.state = tree_unflatten(list(read_safetensors(path / "optimizer.safetensors").items()))
    state = json.loads((path / STATE).read_text())
    return Position(state["step"], state["group"], state["batch"])
