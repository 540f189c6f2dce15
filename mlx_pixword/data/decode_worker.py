"""The process that decodes images for `decoders`: it reads requests from standard input until there are no more.

A request is `REQUEST` and a path or a file's bytes; an answer `ANSWER`, a note and pixels ``[h, w, 3]``, or a reason.
It dies by a signal if a file takes longer than the limit, whether or not its parent is alive, and ends with its parent.
"""

import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..common.errors import BadImage
from ..common.files import open_regular
from ..pixels.images import Decoded, decode

REQUEST = struct.Struct("<cIdQ")  # PATH or BYTES, image size, seconds of processor time, bytes that follow
ANSWER = struct.Struct("<cIIIIHQ")  # PIXELS or REASON, height, width, both of the file, bytes of note, of the rest
PATH, BYTES, PIXELS, REASON = b"p", b"b", b"i", b"r"
MAX_MEMORY = 4 * 2**30  # address space, on Linux; a file within the pixel limit needs about a quarter


def main() -> None:
    """Answer requests until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the parent decides
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    with suppress(BrokenPipeError):
        while len(header := source.read(REQUEST.size)) == REQUEST.size:
            kind, image_size, seconds, length = REQUEST.unpack(header)
            payload = source.read(length)
            set_limit(seconds)
            answer = _answer(kind, payload, image_size)
            set_limit(0)
            _send(target, answer)


def set_limit(seconds: float) -> None:
    """Let the kernel end this process after so much processor time, or much more time by the clock; 0 lifts it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_limit(seconds) if seconds else 0)


def wall_limit(seconds: float) -> float:
    """By the clock: a busy machine may be slow, but a pipe that never ends uses no processor time."""
    return 5 * seconds + 1


def _answer(kind: bytes, payload: bytes, image_size: int) -> Decoded | str:
    try:
        if kind == PATH:
            with open_regular(Path(os.fsdecode(payload))) as file:
                return decode(file, image_size)
        return decode(BytesIO(payload), image_size)
    except FileNotFoundError:
        return "file not found"
    except BadImage as error:
        return str(error)
    except (OSError, MemoryError) as error:
        return f"cannot be read: {_reason(error)}"


def _reason(error: OSError | MemoryError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _send(target: BinaryIO, answer: Decoded | str) -> None:
    if isinstance(answer, str):
        reason = answer.encode("utf-8", "replace")
        target.write(ANSWER.pack(REASON, 0, 0, 0, 0, 0, len(reason)) + reason)
    else:
        rgb, (width, height), note = answer.rgb, answer.size, answer.note.encode()
        target.write(ANSWER.pack(PIXELS, *rgb.shape[:2], height, width, len(note), rgb.nbytes) + note)
        target.write(rgb.tobytes())
    target.flush()
