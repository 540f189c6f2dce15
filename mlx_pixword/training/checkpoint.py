"""Checkpoints: all that decides how a run goes on, published by rename so that a half-written one is never seen.

``step-N`` holds `model.safetensors`, `optimizer.safetensors`, `state.json` and, written last, `manifest.json` with the
size and SHA-256 of the other three. Version 1 had no manifest, and in its state the position alone.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from ..common import files
from ..common.cli import notice
from ..common.errors import PixWordError
from ..common.random_state import set_random_state
from ..model.network import PixWordModel
from ..weights.safetensors import read_safetensors
from .state import Progress

VERSION = 2
STATE, MANIFEST, WEIGHTS, OPTIMIZER = "state.json", "manifest.json", "model.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found complete; ``identity`` is empty in one of version 1."""

    path: Path
    progress: Progress
    identity: dict[str, Any]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    identity: dict[str, Any],
    model: PixWordModel,
    optimizer: optim.Optimizer,
    keep: int = 0,
) -> Path:
    """Write ``folder/step-N``, then remove all but the newest ``keep`` checkpoints (0 keeps all).

    Raises:
        PixWordError: the disk is full, or closed to writing; checkpoints that were there before are untouched.
    """
    target = folder / f"step-{progress.step}"
    draft = folder / f".{target.name}.draft"
    weights, state = _sorted(model.parameters()), _sorted(optimizer.state)
    contents = {"version": VERSION, "progress": asdict(progress), "identity": identity}
    try:
        files.make_folder(folder)
        files.remove(draft)
        files.make_folder(draft)
        files.write_file(draft / WEIGHTS, lambda file: mx.save_safetensors(file, weights))
        files.write_file(draft / OPTIMIZER, lambda file: mx.save_safetensors(file, state))
        files.write_file(draft / STATE, lambda file: file.write(_json(contents)))
        manifest = {name: _entry(draft / name) for name in (WEIGHTS, OPTIMIZER, STATE)}
        files.write_file(draft / MANIFEST, lambda file: file.write(_json({"version": 1, "files": manifest})))
        files.publish(draft, target)
    except files.DiskTrouble as error:
        needed = sum(array.nbytes for array in (*weights.values(), *state.values()))
        _discard(draft)
        raise files.DiskTrouble(f"{error}; a checkpoint needs about {needed:,} bytes") from error
    _prune(folder, target, keep)
    return target


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the most steps, or None; incomplete ones are named and passed over."""
    for path in _steps(folder):
        try:
            return read_checkpoint(path)
        except PixWordError as error:
            notice(f"passing over {path}: {error}")
    for path in sorted(folder.glob(".step-*.draft")):
        notice(f"passing over {path}: writing it was cut short")
    return None


def newest_path(folder: Path) -> Path | None:
    """The checkpoint with the most steps, which nobody has looked into yet."""
    return next(iter(_steps(folder)), None)


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint, bytes included, and read its state; raises `PixWordError` if it cannot be used."""
    state = _read_json(path / STATE)
    version = state.get("version")
    if version == 1:
        position = [state.get(name) for name in ("step", "group", "batch")]
        if any(type(value) is not int for value in position):
            raise PixWordError(f"{STATE} holds no position")
        for name in (WEIGHTS, OPTIMIZER):
            read_safetensors(path / name)
        return Checkpoint(path, Progress(*position), {})  # type: ignore[arg-type]
    if version != VERSION:
        raise PixWordError(f"{STATE} has version {version!r}, this program reads 1 to {VERSION}; update it")
    _check_manifest(path)
    known = {f.name for f in fields(Progress)}
    progress = Progress(**{name: value for name, value in state["progress"].items() if name in known})
    return Checkpoint(path, progress, state["identity"])


def load_checkpoint(checkpoint: Checkpoint, model: PixWordModel, optimizer: optim.Optimizer) -> None:
    """Put weights, optimiser state and random state back; model and optimiser are of the same configuration."""
    weights = read_safetensors(checkpoint.path / WEIGHTS)
    expected = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    if expected != {name: array.shape for name, array in weights.items()}:
        raise PixWordError(
            f"checkpoint {checkpoint.path} belongs to a model of another shape; resume with the run's own settings"
        )
    model.load_weights(list(weights.items()))
    optimizer.state = tree_unflatten(list(read_safetensors(checkpoint.path / OPTIMIZER).items()))
    mx.eval(model.parameters(), optimizer.state)
    if checkpoint.progress.random is not None:
        set_random_state(checkpoint.progress.random)


def _sorted(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by name; a file has them in this order, whatever happened to the run before."""
    return dict(sorted(dict(tree_flatten(tree)).items()))


def _steps(folder: Path) -> list[Path]:
    """Folders of checkpoints, the most steps first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _check_manifest(path: Path) -> None:
    manifest = _read_json(path / MANIFEST).get("files")
    if not isinstance(manifest, dict) or not {WEIGHTS, OPTIMIZER, STATE} <= set(manifest):
        raise PixWordError(f"{MANIFEST} does not list the files of a checkpoint")
    for name in (WEIGHTS, OPTIMIZER, STATE):
        size = (path / name).stat().st_size if (path / name).exists() else 0
        if size != manifest[name]["bytes"]:
            raise PixWordError(f"{name} has {size:,} of {manifest[name]['bytes']:,} bytes")
        if files.sha256(path / name) != manifest[name]["sha256"]:
            raise PixWordError(f"{name} is damaged: its SHA-256 is not that of {MANIFEST}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PixWordError(f"{path.name}: {error.strerror}") from error
    except ValueError as error:
        raise PixWordError(f"{path.name} is not JSON") from error
    if not isinstance(values, dict):
        raise PixWordError(f"{path.name} holds no JSON object")
    return values


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _discard(draft: Path) -> None:
    """Free the space of a draft that could not be finished."""
    try:
        files.remove(draft)
    except files.DiskTrouble as error:
        notice(str(error))


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Keep the newest checkpoints, counted from the one just written; drafts and asides of crashes go."""
    older = [path for path in _steps(folder) if int(path.name[5:]) < int(newest.name[5:])]
    for path in older[keep - 1 :] if keep else []:
        files.retire(path)
    for path in [*folder.glob(".step-*.draft"), *folder.glob(".step-*.old")]:
        files.remove(path)
