"""Standard input and output that end a command with one line, and never with a traceback."""

import codecs
import locale
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from .errors import PixWordError

MAX_INPUT = 2**24  # bytes of standard input, as of any text


@contextmanager
def robust_streams() -> Iterator[None]:
    """Inside, text that an encoding lacks is escaped; a full disk under standard output is a `PixWordError`.

    What cannot be written to standard error is dropped: there is nowhere left to say so. A closed stream takes all.
    """
    hold_descriptors()
    with ExitStack() as stack:
        for name, redirect in (("stdout", redirect_stdout), ("stderr", redirect_stderr)):
            stream = getattr(sys, name)
            if stream is None:
                stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            stack.enter_context(redirect(cast(TextIO, _Stream(stream, quiet=name == "stderr"))))
        yield


def hold_descriptors() -> None:
    """Let closed descriptors 0, 1 and 2 lead nowhere, or files that are opened get these numbers.

    What libraries print would go into such a file, and MLX takes 0 for a file that could not be opened.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)


class _Stream:
    """A text stream; all but writing and flushing is the stream's own."""

    def __init__(self, stream: TextIO, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet

    def write(self, text: str) -> int:
        with self._trouble():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._trouble():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            abandon(self._stream)
            if self._quiet:
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise PixWordError(f"standard output cannot be written: {error.strerror or error}") from error


def abandon(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, or Python would try to write it once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def read_input(what: str) -> str:
    """All of standard input as text: UTF-8, UTF-16 or UTF-32 with its mark, or the terminal's own encoding.

    Args:
        what: what stands for it on the command line, for messages.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise PixWordError(f"{what}: standard input is closed")
    try:
        content = sys.stdin.buffer.read(MAX_INPUT + 1) if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except OSError as error:
        raise PixWordError(f"{what}: standard input cannot be read: {error.strerror or error}") from error
    if isinstance(content, str):
        return content
    if len(content) > MAX_INPUT:
        raise PixWordError(f"{what}: standard input has more than {MAX_INPUT:,} bytes; give a shorter text")
    return _decoded(content, what)


def _decoded(content: bytes, what: str) -> str:
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encodings = ["utf-32"]
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", locale.getpreferredencoding(False)]
    for encoding in encodings:
        with suppress(UnicodeDecodeError, LookupError):
            text = content.decode(encoding)
            if "\0" not in text:  # UTF-16 without its mark passes for UTF-8
                return text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        place = f" at byte {error.start}"
    else:
        place = f" at byte {content.find(0)}" if 0 in content else ""
    raise PixWordError(f"{what}: standard input is not valid UTF-8{place}; convert it, for example with iconv")
