"""Checkpoints: what is saved comes back, a crash anywhere in the writing leaves a good one, old versions are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.common import files
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.random_state import random_state, set_random_state
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training import checkpoint as module
from mlx_pixword.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from mlx_pixword.training.optimizer import make_optimizer
from mlx_pixword.training.state import Progress

Build = Callable[..., PixWordModel]
STORED = Path(__file__).parent / "stored" / "checkpoint-1"
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "num_kv_heads": 1, "num_layers": 1, "vocab_size": 6}


class Killed(BaseException):
    """Stands for the end of the process."""


def parts(build: Build, **changes: Any) -> tuple[PixWordModel, optim.Optimizer]:
    model = build(**TINY | changes)
    optimizer = make_optimizer(TrainArgs(optimizer="muon"))
    optimizer.init(model.trainable_parameters())
    mx.eval(optimizer.state)
    return model, optimizer


def save(folder: Path, build: Build, step: int, keep: int = 0) -> Path:
    return save_checkpoint(folder, Progress(step=step), {}, *parts(build), keep=keep)


def newest(folder: Path) -> int:
    found = newest_checkpoint(folder)
    return found.progress.step if found else 0


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_everything_comes_back(small_model: Build, tmp_path: Path) -> None:
    model, optimizer = parts(small_model)
    optimizer.update(model, model.trainable_parameters())
    progress = Progress(7, 3, 2, [0.1, 2.0, 1 / 3, 4.0, 5.0, 6.0], 99, 1.5, 12, 340, 5, 0.25, random_state())
    identity = {"config": {"steps": 9}, "data": [], "tokenizer": None}
    save_checkpoint(tmp_path, progress, identity, model, optimizer)
    found = newest_checkpoint(tmp_path)
    assert found == Checkpoint(tmp_path / "step-7", progress, identity)
    other, fresh = parts(small_model)
    load_checkpoint(found, other, fresh)
    for one, two in ((model.parameters(), other.parameters()), (optimizer.state, fresh.state)):
        one, two = dict(tree_flatten(one)), dict(tree_flatten(two))
        assert one.keys() == two.keys()
        assert all(mx.array_equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def test_the_random_state_goes_on_where_it_was() -> None:
    mx.random.seed(123456789012345)
    mx.eval(mx.random.normal((3,)))
    words = random_state()
    expected = mx.random.normal((5,)).tolist()
    mx.random.seed(0)
    set_random_state(words)
    assert mx.random.normal((5,)).tolist() == expected


def test_equal_states_give_equal_bytes_without_times_or_paths(small_model: Build, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mx.random.seed(0)
        save(tmp_path / name, small_model, 5)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        one, two = ((tmp_path / name / "step-5" / file).read_bytes() for name in ("a", "b"))
        assert one == two and str(tmp_path).encode() not in one


def test_the_newest_are_kept(small_model: Build, tmp_path: Path) -> None:
    for step in range(1, 13):
        save(tmp_path, small_model, step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11", "step-12"]


# --- what was cut short -----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_an_incomplete_checkpoint_is_named_and_passed_over(
    small_model: Build, tmp_path: Path, file: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, small_model, 1)
    save(tmp_path, small_model, 2)
    damage(tmp_path / "step-2" / file)
    if file == "manifest.json" and damage is not Path.unlink:
        (tmp_path / "step-2" / file).write_text('{"files": {')
    before = sorted(tmp_path.rglob("*"))
    assert newest(tmp_path) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "step-2" in message and file in message
    assert sorted(tmp_path.rglob("*")) == before  # never deleted


@pytest.mark.parametrize("content", [{"version": 3}, {}, [], {"version": 1, "step": "2"}])
def test_a_state_of_another_version_is_passed_over(
    small_model: Build, tmp_path: Path, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, small_model, 1)
    (tmp_path / "step-1/state.json").write_text(json.dumps(content))
    assert newest_checkpoint(tmp_path) is None
    assert "state.json" in capsys.readouterr().err


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int, failure: BaseException) -> list[str]:
    """Let ``count`` operations on files pass and stop at the next; half of what it writes is written."""
    done: list[str] = []
    perform = files.perform

    def stopping(verb: str, path: Path, action: Callable[[], Any]) -> Any:
        if len(done) == count:
            monkeypatch.setattr(files, "perform", perform)
            if path.is_file():
                cut(path) if path.stat().st_size else path.write_bytes(b"{")
            if isinstance(failure, OSError):
                raise files.trouble(verb, path, failure)
            raise failure
        done.append(f"{verb} {path.name}")
        return perform(verb, path, action)

    monkeypatch.setattr(files, "perform", stopping)
    return done


def operations(build: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    done = stop_at(monkeypatch, -1, Killed())
    save(folder, build, 3, keep=2)
    monkeypatch.undo()
    return len(done)


def test_a_crash_at_any_operation_leaves_a_checkpoint_to_go_on_from(
    small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path / "start", small_model, step)
    shutil.copytree(tmp_path / "start", tmp_path / "dry")
    total = operations(small_model, tmp_path / "dry", monkeypatch)
    assert total >= 20
    reached = set()
    for count in range(total):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "start", folder)
        stop_at(monkeypatch, count, Killed())
        with pytest.raises(Killed):
            save(folder, small_model, 3, keep=2)
        monkeypatch.undo()
        reached.add(newest(folder))
        save(folder, small_model, 3, keep=2)  # the run that goes on
        assert newest(folder) == 3
        assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-3"]
    assert reached == {2, 3}


def test_writing_over_a_damaged_checkpoint_survives_a_crash_too(
    small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "start", small_model, step)
    cut(tmp_path / "start/step-3/model.safetensors")
    shutil.copytree(tmp_path / "start", tmp_path / "dry")
    for count in range(operations(small_model, tmp_path / "dry", monkeypatch)):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "start", folder)
        stop_at(monkeypatch, count, Killed())
        with pytest.raises(Killed):
            save(folder, small_model, 3, keep=2)
        monkeypatch.undo()
        assert newest(folder) in (2, 3)
        save(folder, small_model, 3, keep=2)
        assert newest(folder) == 3


def test_a_full_disk_at_any_operation_is_one_line_and_frees_the_draft(
    small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "start", small_model, 2)
    shutil.copytree(tmp_path / "start", tmp_path / "dry")
    for count in range(operations(small_model, tmp_path / "dry", monkeypatch)):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "start", folder)
        stop_at(monkeypatch, count, OSError(28, "No space left on device"))
        with pytest.raises(PixWordError, match=r"^cannot \w+ .*No space left .*bytes free\); make room") as caught:
            save(folder, small_model, 3)
        monkeypatch.undo()
        assert "\n" not in str(caught.value)
        assert newest(folder) in (2, 3)
        assert not list(folder.glob("*.draft"))


# --- old versions -----------------------------------------------------------------------------------------------------


def test_a_stored_checkpoint_of_version_1_is_read() -> None:
    found = newest_checkpoint(STORED)
    assert found is not None
    assert found.progress == Progress(2, 3, 1) and found.identity == {}
    weights = files.sha256(found.path / "model.safetensors")
    assert weights == "8a003c08e9c98e14d6c1193e647a65badb5ddbb8bbcc345cf92ec90f48d5a7d0"


def test_versions_are_a_number_that_is_written(small_model: Build, tmp_path: Path) -> None:
    state = json.loads((save(tmp_path, small_model, 1) / "state.json").read_text())
    assert state["version"] == module.VERSION == 2


def test_a_checkpoint_of_another_shape_is_refused(small_model: Build, tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path, small_model, 1))
    with pytest.raises(PixWordError, match="another shape"):
        load_checkpoint(found, *parts(small_model, num_layers=2))
