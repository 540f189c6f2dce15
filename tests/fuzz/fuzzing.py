"""What all fuzz targets share: broken inputs made from good ones, and the judgement of what the library does with them.

A target gives bytes to one door of the library. The library takes them or raises `PixWordError`, in one line, within
a time and a memory limit; anything else is a `Finding`.
"""

import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_pixword.common.errors import PixWordError

LONGEST_MESSAGE = 1500  # characters of an error; known keys are listed in some
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
ACTIONS = ("set", "flip", "insert", "remove", "repeat", "number", "word", "cut", "move")
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 2**62, 2**64 - 1)

Edit = tuple[str, int, int, int]  # action, place and length in 65536ths of the input, a value


@dataclass(frozen=True)
class Target:
    """A door of the library.

    Attributes:
        name: what the command calls it.
        seeds: gives good inputs, to make broken ones of.
        check: gives an input to the library; raises ``PixWordError`` if it is refused.
        words: pieces that inputs of this kind are made of.
        seconds: of processor time that an input may take.
        memory: bytes an input may add to the peak of the process.
        remake: a good input broken in a way that edits of bytes seldom hit, or None if there is no such way.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], object]
    words: Sequence[bytes] = (b"",)
    seconds: float = 5.0
    memory: int = 2**29
    remake: Callable[[bytes, random.Random], bytes] | None = None


class Finding(AssertionError):
    """The library did something other than to take or to refuse an input; ``place`` tells findings apart."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place


def judge(target: Target, data: bytes) -> str | None:
    """Why the library refuses an input, or None if it takes it; anything else raises `Finding`."""
    memory, start = _peak(), time.process_time()  # the clock also counts what else the machine does
    reason = _answer(target, data)
    seconds, memory = time.process_time() - start, _peak() - memory
    if seconds > target.seconds:
        raise Finding("slow", f"{seconds:.1f} s, the limit is {target.seconds:g}")
    if memory > target.memory:
        raise Finding("large", f"{memory:,} bytes, the limit is {target.memory:,}")
    return reason


def _answer(target: Target, data: bytes) -> str | None:
    try:
        target.check(data)
    except PixWordError as error:
        return _checked(str(error), error)
    except (Finding, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Finding(_place(error), f"{type(error).__name__}: {error}"[:300]) from error
    return None


def _checked(message: str, error: BaseException) -> str:
    """A refusal must be one line that a person can read."""
    if len(message.splitlines()) != 1:
        raise Finding(f"lines, {_place(error)}", message[:300]) from error
    if len(message) > LONGEST_MESSAGE:
        raise Finding(f"length, {_place(error)}", f"{len(message):,} characters: {message[:200]}") from error
    return message


def _place(error: BaseException) -> str:
    """The kind of an error and where the library was when it came: the last of its lines on the stack."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "mlx_pixword" in frame.filename] or frames[-1:]
    return f"{type(error).__name__} at {Path(inside[-1].filename).name}:{inside[-1].name}" if inside else "nowhere"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


# --- broken inputs ----------------------------------------------------------------------------------------------------


def mutant(target: Target, seed: bytes, rng: random.Random) -> bytes:
    """A broken input: an edited or remade good one, the beginning of one with words after it, or words alone."""
    way = rng.randrange(6)
    if way < 2 and target.remake is not None:
        try:
            return target.remake(seed, rng)
        except (ValueError, LookupError, TypeError, RecursionError, struct.error):  # the input was broken before
            return broken(seed, random_edits(rng), target.words)
    if way < 4:
        return broken(seed, random_edits(rng), target.words)
    start = seed[: rng.randint(1, max(1, len(seed))) if way == 4 else 1]
    return start + b"".join(rng.choice(target.words) for _ in range(rng.randint(0, 8)))


def broken(seed: bytes, edits: Sequence[Edit], words: Sequence[bytes] = (b"",)) -> bytes:
    """A good input after some edits, each at a place that its length decides."""
    data = bytearray(seed)
    for action, place, length, value in edits:
        start = place * len(data) // 65536
        end = start + max(1, length**3 // 65536**2 * len(data) // 65536)  # most edits are short
        _edit(data, action, start, end, value, words)
    return bytes(data)


def _edit(data: bytearray, action: str, start: int, end: int, value: int, words: Sequence[bytes]) -> None:
    if action == "set":
        data[start : start + 1] = bytes([value % 256])
    elif action == "flip" and data:
        data[start] ^= 1 << value % 8
    elif action == "insert":
        data[start:start] = random.Random(value).randbytes(min(end - start, 64))
    elif action == "remove":
        del data[start:end]
    elif action == "repeat" and len(data) < 2**16:
        data[start:start] = data[start:end] * (1 + value % 9)
    elif action == "number":
        width, order = (1, 2, 4, 8)[value % 4], ("little", "big")[value // 4 % 2]
        number = NUMBERS[value // 8 % len(NUMBERS)] % 256**width
        data[start : start + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
    elif action == "word":
        data[start:start] = words[value % len(words)]
    elif action == "cut":
        del data[start:]
    elif action == "move":
        piece = data[start:end]
        del data[start:end]
        place = value % (len(data) + 1)
        data[place:place] = piece


def random_edits(rng: random.Random) -> list[Edit]:
    """One to six edits."""
    return [
        (rng.choice(ACTIONS), rng.randrange(65536), rng.randrange(65536), rng.randrange(65536))
        for _ in range(rng.randint(1, 6))
    ]
