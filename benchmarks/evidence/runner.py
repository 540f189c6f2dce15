"""The runner: workers that take the next run that nobody has, until all are done or time is up.

A worker holds a lock on the run that it works on, which the system gives back however it ends, so any number of runners
may be started beside each other. A run whose record is there is never repeated. States and locks lie in the scratch
folder; records in the folder of results.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlx_pixword.common.blas import keep_memory
from mlx_pixword.common.cli import notice
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import make_folder

from .files import read_json
from .manifest import RunSpec, manifest
from .real import DEVELOPMENT, read_part
from .records import keep_record, known, now, record_path
from .run import Paused, Training, load_weights, weights_path

POLL_SECONDS = 2.0
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PIXWORD_DECODERS")


class Stop:
    """Whether a worker was asked to stop: by a signal, or by its deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._asked = deadline, False

    def __call__(self) -> bool:
        return self._asked or time.time() >= self._deadline

    @contextmanager
    def listening(self) -> Iterator[None]:
        def ask(*_: object) -> None:
            self._asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def owned(scratch: Path, run: str) -> Iterator[bool]:
    """Whether the run is ours to work on, for as long as this lasts."""
    folder = scratch / "locks"
    make_folder(folder)
    with (folder / run).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def work(results: Path, scratch: Path, blocks: Sequence[str], stop: Stop) -> None:
    """Run what is left, one run after the other, until all is done or ``stop`` says so."""
    digest = read_json(results / "tests.json")["digest"]
    keep_memory()
    while not stop():
        state = known(results)
        left = [spec for spec in manifest(state, blocks) if spec.id not in state.nats]
        if not left:
            return
        for spec in left:
            with owned(scratch, spec.id) as ours:
                if not ours or record_path(results, spec.id).exists():
                    continue
                _run(spec, results, scratch, stop, digest)
                break
        else:  # others work on all of them; when they are done, more may follow
            time.sleep(POLL_SECONDS)


def _run(spec: RunSpec, results: Path, scratch: Path, stop: Stop, digest: str) -> None:
    started = now()
    training = Training(spec, known(results).plan, scratch, stop)
    try:
        found = training.run()
    except Paused:
        return
    found["real_seconds"] = _read_real(training, found["diverged"], results, scratch)
    keep_record(results, spec, found, started, digest)
    training.clear()
    minutes = found["seconds"] / 60
    notice(f"{now()} {spec.id}: {minutes:.1f} minutes of training, {_told(found['points'])}")


def _read_real(training: Training, diverged: bool, results: Path, scratch: Path) -> float:
    """Read the development third of the real sets with the final weights; returns the seconds it took."""
    start, run = time.process_time(), training.spec.id
    if training.spec.kind == "main" and not diverged:
        load_weights(training.learner, weights_path(scratch, run))
        read_part(run, training.learner, DEVELOPMENT, results, scratch)
    return time.process_time() - start


def _told(points: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {point['nats']:.3f} nats a character" for name, point in points.items())


def run_jobs(results: Path, scratch: Path, blocks: Sequence[str], jobs: int, minutes: float) -> int:
    """Start workers of one thread each and wait for them; returns how many runs are left of those known.

    Raises:
        PixWordError: a worker failed; what it was doing can be resumed.
    """
    deadline = time.time() + 60 * minutes if minutes else float("inf")
    environment = os.environ | dict.fromkeys(THREADS[:2], "1")
    command = [sys.executable, str(Path(__file__).parent), "work", "--results", str(results), "--scratch", str(scratch)]
    command += ["--blocks", ",".join(blocks), "--deadline", str(deadline)]
    with Stop(deadline).listening():
        workers = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(jobs)]
        stop = Stop(deadline)
        with stop.listening():
            while any(worker.poll() is None for worker in workers):
                if stop():
                    for worker in workers:
                        if worker.poll() is None:
                            worker.terminate()
                    for worker in workers:
                        worker.wait()
                time.sleep(min(POLL_SECONDS, 0.2))
    failed = [worker.returncode for worker in workers if worker.returncode]
    if failed:
        raise PixWordError(f"{len(failed)} of {jobs} workers failed; what they printed is above; start again to resume")
    state = known(results)
    return sum(spec.id not in state.nats for spec in manifest(state, blocks))
