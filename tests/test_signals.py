"""Ctrl-C and SIGTERM: the step is finished and saved; a second Ctrl-C does not wait for anything."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_files import FLAGS, train, untimed

from mlx_pixword.training import signals
from mlx_pixword.training.signals import Stopper


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_wish(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with Stopper() as stopper:
        assert not stopper.requested
        os.kill(os.getpid(), number)
        wait_for(lambda: stopper.requested)
    assert signal.getsignal(number) is before
    wait_for(lambda: "once more" in capfd.readouterr().err or not _watching())


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopper() as stopper:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not stopper.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_last_word_is_not_cut_off() -> None:
    """The launcher of ranks ends all others once one has died, perhaps before they have said so."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Stopper() as stopper:
            stopper.ignore_termination()
        os.kill(os.getpid(), signal.SIGTERM)  # would end the process
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("saved", "told"), [(None, "no checkpoint was written yet"), (Path("c/step-7"), "c/step-7")])
def test_who_leaves_at_once_is_told_what_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saved: Path | None, told: str
) -> None:
    left: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", left.append)
    signals._leave(saved)
    assert told in capsys.readouterr().err and left == [signals.LEFT]


def test_a_closed_terminal_takes_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.print", closed)
    signals._say("gone")


def _watching() -> bool:
    return any(thread.name == "stopper" for thread in threading.enumerate())


def test_the_second_ctrl_c_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(signals, "_leave", lambda _saved: left.append(1))
    with Stopper() as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stopper.requested)
        os.kill(os.getpid(), signal.SIGTERM)  # what asks twice in order is no hurry
        time.sleep(0.05)
        assert not left
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: bool(left))
    wait_for(lambda: not _watching())


BUSY = """
import mlx.core as mx
from mlx_pixword.training.signals import Stopper
with Stopper():
    x = mx.ones((2000, 2000))
    for _ in range(400):
        x = x @ x
    print("ready", flush=True)
    mx.eval(x)
"""


def test_leaving_does_not_wait_for_a_long_evaluation() -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert process.returncode == signals.LEFT and "no checkpoint was written yet" in error


def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", steps=40)
    command = [sys.executable, "-m", "mlx_pixword.pretrain", *FLAGS, "--steps", "40", "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "cut/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, 60)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    told = error[error.index("go on with: ") :].splitlines()[0].removeprefix("go on with: ")
    assert not (tmp_path / "cut/final").exists()
    again = subprocess.run([sys.executable, *shlex.split(told)[1:]], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "resuming from" in again.stderr
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole") and len(untimed(tmp_path / "whole")) == len(whole)
    weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
