"""What the speed benchmarks share: processes that answer lines of JSON, rounds taken in turn, medians, memory.

Each side of a comparison lives in a process of its own, so that neither threads nor memory of one touch the other.
It waits without work while the other side is measured.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from mlx_pixword.common.cli import notice
from mlx_pixword.common.errors import PixWordError
from shared.record import with_machine

WORKER = "worker"  # first argument of a benchmark that is to answer requests instead of measuring
Answer = TypeVar("Answer")


class Worker:
    """A process that runs ``script worker ARGUMENTS`` and answers every request with a line of JSON."""

    def __init__(self, script: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        command = [sys.executable, str(script), WORKER, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; raises `PixWordError` with the process's last words if it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is read below
        line = self._process.stdout.readline()
        if not line:
            raise PixWordError(f"a measuring process ended early: {self._last_words()}")
        return dict(json.loads(line))

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"exit status {status}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it keeps nothing, and may be in the middle of a long answer
        self._process.communicate()
        self._errors.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A worker's life: answer requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def in_turn(sides: Mapping[str, Callable[[], Answer]], rounds: int) -> dict[str, list[Answer]]:
    """Measure all sides once a round, one after the other: A B A B."""
    answers: dict[str, list[Answer]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            answers[name].append(measure())
    return answers


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each round's value over the other side's of the same round."""
    return [a / b for a, b in zip(values, others, strict=True)]


def summary(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """Median and every round, rounded to so many significant digits."""
    short = [float(f"{value:.{digits}g}") for value in values]
    return {"median": float(f"{statistics.median(values):.{digits}g}"), "rounds": short}


def memory() -> dict[str, int]:
    """Bytes of memory that this process holds ``now`` and held at its ``peak``."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from the parent's: Linux keeps it when a new program begins
        lines = (line.split() for line in status.read_text().splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
        return {"now": sizes["VmRSS:"], "peak": sizes["VmHWM:"]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return {"now": peak, "peak": peak}


def require_torch() -> None:
    """Raise `PixWordError` where the peer cannot run; the benchmarks import PyTorch in their workers alone."""
    if find_spec("torch") is None:
        raise PixWordError("this benchmark compares with PyTorch: install it with pip install 'mlx-pixword[bench]'")


def warn_if_busy() -> None:
    """Say so where other programs may run: PyTorch's threads wait for each other, and lose the most by it."""
    load = os.getloadavg()[0]
    if load > 0.5:
        notice(f"the load is {load:.1f}: where other programs are running, neither numbers nor ratios are fair")


def with_torch(result: dict[str, Any]) -> dict[str, Any]:
    """A result and what it was measured on, PyTorch's version too."""
    result = with_machine(result)
    return {**result, "versions": {**result["versions"], "torch": version("torch")}}
