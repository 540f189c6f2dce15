"""Threads of the user's that MLX leaves something in.

What MLX 0.32 keeps for a thread (its random state, compiled functions) is taken down when the thread ends, which may be
a moment after Python has joined it. A process that exits in that moment aborts, with its work done (MLX's issue 3126).
"""

import atexit
import sys
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
_SECONDS = 2.0  # to wait at most
_ids: set[int] = set()


def outlive_this_thread() -> None:
    """Let the process, when it exits, wait for the end of this thread: call it where MLX is used in users' threads."""
    thread = threading.current_thread()
    if sys.platform != "linux" or thread is threading.main_thread() or thread.native_id is None:
        return
    if not _ids:
        atexit.register(_wait)
    _ids.add(thread.native_id)


def _wait() -> None:
    """Wait for the threads that are over for Python; one that goes on, such as a daemon, is not waited for."""
    going = {thread.native_id for thread in threading.enumerate()}
    deadline = time.monotonic() + _SECONDS
    while any((_TASKS / str(number)).exists() for number in _ids - going) and time.monotonic() < deadline:
        time.sleep(0.002)
