"""Image files decoded in processes of their own, so that no file can crash or stall the run.

Threads cannot promise that: a decoder that crashes takes its process along, and one that never ends keeps its thread.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np

from ..common.errors import BadImage
from ..pixels.images import Decoded
from .base import Picture
from .decode_worker import ANSWER, BYTES, PATH, PIXELS, REQUEST, wall_limit
from .pictures import decode_encoded

SECONDS = 20.0  # of processor time a file; the largest allowed image takes a few
_PROGRAM = "import sys; sys.path[:] = {path!r}; from mlx_pixword.data.decode_worker import main; main()"
_TIMERS = (-signal.SIGPROF, -signal.SIGALRM)


@runtime_checkable
class EncodedPicture(Protocol):
    """A picture that is a file of its own or bytes of one; others are drawn in this process."""

    def encoded(self) -> Path | bytes:
        """The file, or its bytes; raises ``BadImage`` if they cannot be had."""
        ...


def decode_here(picture: Picture, image_size: int) -> Decoded:
    """Decode in this process; raises ``BadImage``."""
    if not isinstance(picture, EncodedPicture):
        rgb = picture.rgb(image_size)
        return Decoded(rgb, (rgb.shape[1], rgb.shape[0]))
    return decode_encoded(picture.encoded(), image_size)


class Decoders:
    """Processes that decode, as many as threads ask at once; use as a context manager, from any thread.

    Args:
        seconds: of processor time a file may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds, self._lock, self._idle, self._open = seconds, Lock(), list[_Worker](), True

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes that are idle; one that is busy ends when its file is done."""
        with self._lock:
            idle, self._idle, self._open = self._idle, [], False
        for worker in idle:
            worker.close()

    def rgb(self, picture: Picture, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``; a file that crashes its decoder twice or takes too long twice is a ``BadImage`` too."""
        return self.decode(picture, image_size).rgb

    def decode(self, picture: Picture, image_size: int) -> Decoded:
        """The same with the size of the file's image, and with a note if the file is not whole."""
        if not isinstance(picture, EncodedPicture):
            return decode_here(picture, image_size)
        content = picture.encoded()
        try:
            return self._ask(content, image_size)
        except _Lost:  # a machine that slept or ran out of memory is no fault of the file
            pass
        try:
            return self._ask(content, image_size)
        except _Lost as lost:
            raise BadImage(lost.reason) from None

    def _ask(self, content: Path | bytes, image_size: int) -> Decoded:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker()
        try:
            decoded = worker.ask(content, image_size, self._seconds)
        except BadImage:
            self._put_back(worker)
            raise
        except BaseException:
            worker.close()
            raise
        self._put_back(worker)
        return decoded

    def _put_back(self, worker: "_Worker") -> None:
        with self._lock:
            if self._open:
                self._idle.append(worker)
                return
        worker.close()


class _Lost(Exception):
    """The process did not answer."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self) -> None:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PIXWORD_BLAS": "off"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment, bufsize=0,
        )  # fmt: skip
        pipes = (self._process.stdin, self._process.stdout)
        self._input, self._output = (pipe.fileno() for pipe in pipes if pipe is not None)
        with suppress(AttributeError, OSError):  # Linux: an answer fits the pipe, so that nobody waits
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, 2**20)

    def ask(self, content: Path | bytes, image_size: int, seconds: float) -> Decoded:
        """Decode; raises ``BadImage``, or ``_Lost`` if the process ended or had to be ended."""
        payload = os.fsencode(content) if isinstance(content, Path) else content
        kind = PATH if isinstance(content, Path) else BYTES
        deadline = time.monotonic() + wall_limit(seconds) + 2  # the process ends itself before
        try:
            self._write(REQUEST.pack(kind, image_size, seconds, len(payload)) + payload, deadline)
            answer, *sizes, noted, length = ANSWER.unpack(self._read(ANSWER.size, deadline))
            note, result = self._read(noted, deadline).decode(), self._read(length, deadline)
        except (OSError, EOFError):
            raise _Lost(self._what_happened(seconds)) from None
        if answer != PIXELS:
            raise BadImage(result.decode("utf-8", "replace"))
        height, width, whole_height, whole_width = sizes
        rgb = np.frombuffer(result, np.uint8).reshape(height, width, 3)
        return Decoded(rgb, (whole_width, whole_height), note)

    def close(self) -> None:
        """End the process at once and leave nothing behind."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait([], [self._input], deadline)
            view = view[os.write(self._input, view[:65536]) :]

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait([self._output], [], deadline)
            block = os.read(self._output, size - len(data))
            if not block:
                raise EOFError
            data += block
        return bytes(data)

    def _wait(self, readable: list[int], writable: list[int], deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(readable, writable, [], left)):
            raise TimeoutError

    def _what_happened(self, seconds: float) -> str:
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return f"decoding takes longer than {seconds:g} seconds"
        if status in _TIMERS:
            return f"decoding takes longer than {seconds:g} seconds"
        return f"it crashes the decoder (status {status})"
