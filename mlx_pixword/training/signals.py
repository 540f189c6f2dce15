"""Ctrl-C, SIGTERM and SIGHUP: the first is a wish, noted until the step is done; a second Ctrl-C leaves at once."""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEFT = 130  # exit status after a second SIGINT, as a shell has it


class Stopper:
    """Knows whether the run was asked to stop; use as a context manager, in the main thread.

    Signals are counted by a thread that reads Python's wake-up descriptor, because Python runs handlers only between
    the main thread's instructions, and one evaluation of MLX may take long. A signal that is ignored from the start, as
    nohup has SIGHUP ignored, stays so.

    Attributes:
        requested: whether the run was asked to stop.
        saved: the newest checkpoint, if there is one, for those who leave at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saved: Path | None = None
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is not threading.main_thread():
            return self  # signals belong to whoever runs the main thread
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        wishes = [number for number in _WISHES if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in wishes}
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

    def ignore_termination(self) -> None:
        """From here on, and when this is left too, SIGTERM does nothing: the process ends anyway, and has a last word.

        The launcher of ranks sends it to all others as soon as one has died, before they have said why they end.
        """
        if signal.SIGTERM in self._before:
            self._before[signal.SIGTERM] = signal.SIG_IGN

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

    def _watch(self, descriptor: int) -> None:
        asked = False
        while numbers := os.read(descriptor, 64):
            for number in numbers:
                if number == signal.SIGINT and asked:
                    _leave(self.saved)
                if number in self._before and not asked:
                    self.requested = asked = True
                    _say("stopping after this step; Ctrl-C once more to leave at once")
        os.close(descriptor)


def _leave(saved: Path | None) -> None:
    """End the process without waiting for anything: what is on the disk is whole at any time."""
    _say(
        f"left at once; the last checkpoint is whole: {saved}"
        if saved
        else "left at once; no checkpoint was written yet"
    )
    os._exit(LEFT)


def _say(message: str) -> None:
    """A line for whoever still looks: a terminal that was closed takes none."""
    with suppress(OSError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)
