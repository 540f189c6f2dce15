"""Ctrl-C and SIGTERM: the first one is a wish, noted until the step is done; a second Ctrl-C leaves at once."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_WISHES = (signal.SIGINT, signal.SIGTERM)
LEFT = 130  # exit status after a second SIGINT, as a shell has it


class Stopper:
    """Knows whether the run was asked to stop; use as a context manager, in the main thread.

    Signals are counted by a thread that reads Python's wake-up descriptor, because Python runs handlers only between
    the main thread's instructions, and one evaluation of MLX may take long.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is not threading.main_thread():
            return self  # signals belong to whoever runs the main thread
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in _WISHES}
        threading.Thread(target=self._watch, args=(self._pipe[0],), name="stopper", daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._pipe is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._pipe[1])  # the thread reads an end and closes its side
        self._pipe = None

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

    def _watch(self, descriptor: int) -> None:
        asked = False
        while numbers := os.read(descriptor, 64):
            for number in numbers:
                if number == signal.SIGINT and asked:
                    _leave()
                if number in _WISHES and not asked:
                    self.requested = asked = True
                    print("\nstopping after this step; once more to leave at once", file=sys.stderr)
        os.close(descriptor)


def _leave() -> None:
    """End the process without waiting for anything: what is on the disk is whole at any time."""
    print("\nleft at once; the last checkpoint is whole", file=sys.stderr, flush=True)
    os._exit(LEFT)
