"""A process that used MLX in a thread ends as it should, whichever moment the thread takes to go."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_pixword.common import threads

LEAVES_SOMETHING = """
import threading, mlx_pixword
import mlx.core as mx
from mlx_pixword.common.threads import outlive_this_thread
def work():
    outlive_this_thread()
    mx.random.seed(1)
    mx.eval(mx.compile(lambda x: mx.sigmoid(x) * x + mx.random.normal((4,)), inputs=mx.random.state)(mx.ones((4,))))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_process_outlives_its_threads() -> None:
    for _ in range(3):  # without the wait most of them abort on Linux
        done = subprocess.run([sys.executable, "-c", LEAVES_SOMETHING], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_threads_that_go_on_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "_TASKS", tmp_path)
    monkeypatch.setattr(threads, "_SECONDS", 0.2)
    (tmp_path / str(threading.get_native_id())).touch()
    (tmp_path / "7").touch()
    waited = []
    for ids in ({threading.get_native_id()}, {7}, {8}):
        monkeypatch.setattr(threads, "_ids", ids)
        start = time.monotonic()
        threads._wait()
        waited.append(time.monotonic() - start > 0.1)
    assert waited == [False, True, False]


def test_the_main_thread_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_ids", set[int]())
    threads.outlive_this_thread()
    assert threads._ids == set()
