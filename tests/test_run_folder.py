"""The folder of a run: one owner at a time, a lock that no crash leaves stuck, and disks that are full or closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import FLAGS, train, untimed

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.training import run_folder as module
from mlx_pixword.training.run_folder import check_folder, owned, resume_command

HOLD = "import sys, time, pathlib; from mlx_pixword.training.run_folder import owned\n"
HOLD += "with owned(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def hold(folder: Path) -> None:
    with owned(folder):
        pass


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        with pytest.raises(PixWordError, match=rf"run is in use by process {os.getpid()}; wait"):
            hold(tmp_path / "run")
        with pytest.raises(PixWordError, match="in use by process"):
            train(tmp_path / "run", "--resume")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [module.LOCK]
    train(tmp_path / "run", steps=1)  # the lock's file alone is no run


def test_a_crash_leaves_no_lock(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(PixWordError, match=f"in use by process {process.pid};"), owned(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold(tmp_path)


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PixWordError, match="is a file; choose a folder"):
        check_folder(tmp_path / "file", False)
    with pytest.raises(PixWordError, match="holds something else already; choose another folder"):
        check_folder(tmp_path, False)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(PixWordError, match="holds no run; leave --resume out"):
            check_folder(folder, True)
    (tmp_path / "config.yaml").touch()
    check_folder(tmp_path, True)
    with pytest.raises(PixWordError, match="holds a run already; go on with --resume"):
        check_folder(tmp_path, False)

    def closed(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.os, "open", closed)
    with pytest.raises(PixWordError, match=r"cannot write .*\.lock: Read-only file system; make it writable or choose"):
        hold(tmp_path)


def test_what_systems_leave_in_folders_is_no_run(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._x", "lost+found"):
        (tmp_path / name).touch()
    check_folder(tmp_path, False)


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError), owned(tmp_path / "a/b"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "a/b"):
        (tmp_path / "a/b/config.yaml").touch()
    assert (tmp_path / "a/b/config.yaml").exists()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, times = module._lock, []

    def late(descriptor: int, folder: Path) -> None:
        lock(descriptor, folder)
        times.append(1)
        if len(times) == 1:  # as if the last owner had removed the folder after we opened the file
            (folder / module.LOCK).unlink()
            folder.rmdir()

    monkeypatch.setattr(module, "_lock", late)
    with owned(tmp_path / "run"):
        monkeypatch.undo()
        with pytest.raises(PixWordError, match="in use by process"):
            hold(tmp_path / "run")
    assert len(times) == 2


def test_two_starts_in_the_same_second_leave_one_run_and_one_refusal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_pixword.pretrain", *FLAGS, "--steps", "2", "--out", str(tmp_path / "run")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    refused = errors[0 if both[0].returncode else 1].strip().splitlines()
    assert refused[-1].startswith("error: --out") and (
        "in use by process" in refused[-1] or "holds a run" in refused[-1]
    )
    assert (tmp_path / "run/final/config.json").exists()


def test_the_command_to_go_on_is_quoted() -> None:
    assert resume_command(Path("a b")).endswith("--config 'a b/config.yaml' --resume")


LIMITED = """
import resource, sys
from mlx_pixword.pretrain import main
from mlx_pixword.common.cli import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
run_command(lambda: main(sys.argv[2:]))
"""


def test_a_run_goes_on_after_a_file_could_not_be_written(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: all is written but the optimiser's state."""
    train(tmp_path / "whole", "--save-every", 2, steps=4)
    flags = ["--save-every", "2", "--tokenizer", str(tmp_path / "cut/tokenizer.model")]
    train(tmp_path / "cut", "--save-every", 2, steps=2)
    size = (tmp_path / "cut/checkpoints/step-2/optimizer.safetensors").stat().st_size
    more = [*FLAGS, *flags, "--out", str(tmp_path / "cut"), "--steps", "4", "--resume"]
    command = [sys.executable, "-c", LIMITED, str(size - 1), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert line.startswith("error: cannot write ") and "optimizer.safetensors: File too large" in line
    assert "make room; a checkpoint needs about" in line and "then go on with: python -m" in line
    assert sorted(path.name for path in (tmp_path / "cut/checkpoints").iterdir()) == ["step-2"]
    train(tmp_path / "cut", *flags, "--resume", steps=4)
    assert (tmp_path / "cut/final/config.json").exists()
    assert [m["step"] for m in untimed(tmp_path / "cut") if "word_loss" in m] == [1, 2, 3, 4]
