"""One thread that uses the model; whoever wants something from it waits in a queue of limited length."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..common.errors import PixWordError

Item = TypeVar("Item")
_END = object()


class Busy(PixWordError):
    """Too many are waiting already."""


class TooSlow(PixWordError):
    """The answer took longer than is allowed."""


class _Job:
    """What one caller wants, and the items that are there for it."""

    def __init__(self, make: Callable[[], Iterable[Any]], deadline: float) -> None:
        self.make, self.deadline = make, deadline
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.left = threading.Event()  # the caller is gone

    @property
    def wanted(self) -> bool:
        return not self.left.is_set() and time.monotonic() < self.deadline


class Worker:
    """Runs jobs one after the other, in the order in which they came.

    Args:
        most_waiting: jobs that may wait while one is running.
        seconds: from the moment a job is handed in to its last item.
    """

    def __init__(self, most_waiting: int, seconds: float) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(most_waiting)
        self._seconds = seconds
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stream(self, make: Callable[[], Iterable[Item]]) -> Iterator[Item]:
        """Items of ``make()``, which is called and iterated on the worker's thread; closing the iterator ends the job.

        Raises:
            Busy: at once, if the queue is full.
            TooSlow: the time is up; the job ends at its next item.
            Exception: what the job raised.
        """
        job = _Job(make, time.monotonic() + self._seconds)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._jobs.maxsize} requests are waiting already; try again later") from None
        return self._items(job)

    def close(self) -> None:
        """End the thread when the job that is running is done."""
        self._jobs.put(None)
        self._thread.join()

    def _items(self, job: _Job) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = job.items.get(timeout=max(0.0, job.deadline - time.monotonic()))
                except queue.Empty:
                    raise TooSlow(f"the answer takes longer than {self._seconds:g} seconds") from None
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            job.left.set()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.wanted:
                continue
            try:
                for item in job.make():
                    job.items.put(item)
                    if not job.wanted:
                        break
                job.items.put(_END)
            except Exception as error:  # goes to the caller, who knows what it means
                job.items.put(error)
