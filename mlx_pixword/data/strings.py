"""Strings for the built-in text, split by their hash: numbers, prices, dates, times, codes and words.

More kinds are drawn where they are asked for. ``figures`` are digits with signs and separators anywhere, as receipts
have them (-4.20, 012-3456789, .50); ``prose`` is words with what stands beside them (and, end. e-mail); ``common`` is
the built-in words, whatever list was given; ``registrations`` are number plates of five to seven letters and digits
(AW088A); ``marks`` are words and numbers with brackets, quotes and signs (f(x) "and 12% R+).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import TypeVar

from ..common.errors import PixWordError
from ..config.data import MORE_TEXT_KINDS, TEXT_KINDS
from .fonts import CHARACTERS, MARKS
from .plates import is_reserved

T = TypeVar("T")
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # as on real plates, without those that are easily taken for others
TRIES = 20_000  # a tenth of a hundredth is usable where the limit is tight
_DATES = (
    "{m:02}/{y:02}", "{d}/{m}/{y:02}", "{d:02}/{m:02}/{y:02}", "{d:02}.{m:02}.{y:02}", "{d:02}-{m:02}-{y:02}",
    "20{y:02}-{m:02}-{d:02}", "{d:02}/{m:02}/20{y:02}", "{d}.{m}.20{y:02}",
)  # fmt: skip
_TIMES = ("{h}:{m:02}", "{h:02}:{m:02}", "{h:02}:{m:02}:{s:02}", "{t}:{m:02}am", "{t}:{m:02}pm", "{h:02}.{m:02}")
_CODES = (  # L a letter, D a digit, X either
    "LDD", "DDL", "XXX", "LDDD", "XXXX", "LLDDD", "DDLLD", "XXXXX", "LL-DDD", "LLLDDD", "XXXXXX", "LLDDLLL", "LLL-DDD",
    "LL-DDDD", "XXXXXXX", "L-DDD-LL", "XXXX-XXXX", "DD-LLL-DD",
)  # fmt: skip
_MARKED = [  # what stands before and after
    ("(", ")"), ("(", ""), ("", ")"), ("(", "),"), ("", ")."), ("[", "]"), ("", "]"), ("'", "'"), ('"', '"'),
    ("", '".'), ("", "'s"), ("|", "|"), ("", "%"), ("", "%"), ("+", ""), ("", "+"), ("=", ""), ("", "?"), ("", "!"),
    ("", ";"), ("#", ""), ("&", ""), ("_", ""), ("", "_"), ("", "*"), ("@", ""), ("\\", ""), ("", "()"),
]  # fmt: skip
_SHORTEST = {
    "numbers": "88", "prices": "8.88", "dates": "08/28", "times": "8:48", "codes": "W88", "figures": "-8",
    "registrations": "A8888", "marks": "8%",
}  # fmt: skip
_OF_WORDS = ("words", "prose", "common")


def reserved(text: str) -> bool:
    """True for the tenth of all strings that is kept for evaluation, in whatever case they are written."""
    return is_reserved(text.casefold())


@cache
def built_in_words() -> tuple[str, ...]:
    """Some hundred common English words."""
    return tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())


def read_words(path: Path) -> tuple[list[str], int]:
    """Words of a file, one a line, and how many were left out because faces lack their characters."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PixWordError(f"--text-words {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PixWordError(f"--text-words {path} is not valid UTF-8 at byte {error.start}") from None
    words = [line.strip() for line in lines if line.strip()]
    usable = [word for word in words if set(word) <= set(CHARACTERS)]
    if not usable:
        raise PixWordError(f"--text-words {path}: none of {len(words)} lines is a word of Latin letters")
    return usable, len(words) - len(usable)


class Strings:
    """Draws strings of some kinds, from one side of the split.

    Args:
        kinds: of `TEXT_KINDS` and `MORE_TEXT_KINDS`.
        held_out: the reserved strings, or the others.
        words: for the kinds "words" and "prose".
    """

    def __init__(self, kinds: Sequence[str], held_out: bool, words: Sequence[str] | None = None) -> None:
        known = (*TEXT_KINDS, *MORE_TEXT_KINDS)
        if unknown := [kind for kind in kinds if kind not in known]:
            raise PixWordError(f"unknown kind of text {unknown[0]!r}; known kinds are {', '.join(known)}")
        self.kinds, self.held_out = tuple(kinds), held_out
        needs_words = any(kind in kinds for kind in _OF_WORDS)
        chosen = built_in_words() if words is None else words
        self.words_digest = hashlib.sha256("\n".join(chosen).encode()).hexdigest() if needs_words else ""
        self.words = self._side(chosen)
        self._common = self._side(built_in_words()) if "common" in kinds else self.words
        if needs_words and not self.words:
            raise PixWordError(f"none of {len(chosen)} words is on the {'held-out' if held_out else 'training'} side")

    def _side(self, words: Sequence[str]) -> list[str]:
        """Words of this side of the split, the shortest first."""
        return sorted({word for word in words if reserved(word) == self.held_out}, key=lambda word: (len(word), word))

    def shortest(self, kind: str) -> str:
        """A string of the kind that is as short as any: what must fit."""
        if kind in _OF_WORDS:
            return self._words_of(kind)[0].upper() + ("." if kind == "prose" else "")
        return _SHORTEST[kind]

    def kinds_within(self, limit: int) -> tuple[str, ...]:
        """Kinds that have strings of at most ``limit`` characters; if none has, those with the shortest strings."""
        lengths = {kind: 1 if kind == "numbers" else len(self.shortest(kind)) for kind in self.kinds}
        limit = max(limit, min(lengths.values()))
        return tuple(kind for kind, length in lengths.items() if length <= limit)

    def draw(self, kind: str, limit: int, r: Random) -> str:
        """A string of a kind; at most ``limit`` characters, where the kind has such strings."""
        limit = max(limit, 2 if kind == "numbers" else len(self.shortest(kind)))
        if kind in ("words", "common"):
            return self._word(limit, r, self._words_of(kind))
        make = {
            "numbers": _number, "prices": _price, "dates": _date, "times": _time, "codes": _code, "figures": _figure,
            "prose": self._prose, "registrations": _registration, "marks": self._marked,
        }[kind]  # fmt: skip
        for _ in range(TRIES):
            text = make(limit, r)
            if len(text) <= limit and reserved(text) == self.held_out:
                return text
        raise PixWordError(f"no string of the kind {kind} has at most {limit} characters")

    def _words_of(self, kind: str) -> list[str]:
        return self._common if kind == "common" else self.words

    def _word(self, limit: int, r: Random, words: Sequence[str] | None = None) -> str:
        """A word of at most ``limit`` characters; the shortest one if there is none."""
        words = words or self.words
        return _cased(words[int(r.random() * max(1, bisect_right(words, limit, key=len)))], r)

    def _prose(self, limit: int, r: Random) -> str:
        """A word with a mark behind it, or two words with a hyphen."""
        shortest = len(self.words[0])
        if r.random() < 0.2 and limit >= 2 * shortest + 1:
            first = self._word(limit - shortest - 1, r)
            return f"{first}-{self._word(limit - len(first) - 1, r).lower()}"
        return self._word(limit - 1, r) + pick(r, ",,,...:-")

    def _marked(self, limit: int, r: Random) -> str:
        """A word or a short number with brackets, quotes or a sign, or between two signs."""
        before, after = pick(r, _MARKED)
        room = max(1, limit - len(before) - len(after))
        number = room < 3 or not self.words or r.random() < 0.3
        inner = _digits(between(r, 1, min(4, room)), r) if number else self._word(room, r)
        if not number and len(inner) > 3 and r.random() < 0.15:
            place = between(r, 1, len(inner) - 2)
            inner = inner[:place] + pick(r, MARKS) + inner[place + 1 :]
        return before + inner + after


def pick(r: Random, choices: Sequence[T]) -> T:
    """One of several. `Random.random` gives the same numbers in every Python, `Random.choice` may not."""
    return choices[int(r.random() * len(choices))]


def between(r: Random, low: int, high: int) -> int:
    """An integer, both ends included."""
    return low + int(r.random() * (high - low + 1))


def _digits(count: int, r: Random) -> str:
    return "".join(pick(r, "0123456789") for _ in range(count))


def _number(limit: int, r: Random) -> str:
    return _digits(between(r, 1, min(8, limit)), r)


def _price(limit: int, r: Random) -> str:
    whole = between(r, 1, 9) * 10 ** between(r, 0, max(0, min(4, limit - 4)))
    whole += int(r.random() * whole)
    text = f"{whole:,}" if r.random() < 0.5 else str(whole)
    mark = "$" if r.random() < 0.4 and len(text) + 4 <= limit else ""
    return f"{mark}{text}.{pick(r, ('00', '50', '95', '99')) if r.random() < 0.3 else _digits(2, r)}"


def _date(limit: int, r: Random) -> str:
    return pick(r, _DATES).format(d=between(r, 1, 31), m=between(r, 1, 12), y=between(r, 0, 39))


def _time(limit: int, r: Random) -> str:
    values = {"h": between(r, 0, 23), "m": between(r, 0, 59), "s": between(r, 0, 59), "t": between(r, 1, 12)}
    return pick(r, _TIMES).format(**values)


def _figure(limit: int, r: Random) -> str:
    """Groups of digits with separators between, perhaps a sign; or a price below or above zero."""
    if r.random() < 0.5:
        sign, whole = pick(r, ("-", "", "-", ":")), _digits(between(r, 0, 3), r)
        return f"{sign}{whole}.{_digits(between(r, 1, 3), r)}" if sign or not whole else f"{whole}.{_digits(2, r)}-"
    text = _digits(between(r, 1, 9), r)
    while len(text) < limit and r.random() < 0.6:
        text += pick(r, "-./:,") + _digits(between(r, 1, 7), r)
    return pick(r, ("", "", "-")) + text if len(text) < limit else text


def _registration(limit: int, r: Random) -> str:
    """A letter, perhaps another, then mostly digits: five to seven characters."""
    text = pick(r, LETTERS)
    for _ in range(between(r, 4, max(4, min(6, limit - 1)))):
        text += pick(r, LETTERS + "Q") if r.random() < 0.25 else pick(r, "0123456789")
    return text


def _code(limit: int, r: Random) -> str:
    pattern = pick(r, [code for code in _CODES if len(code) <= limit])
    either = LETTERS + "23456789"
    kinds = {"L": LETTERS, "D": "0123456789", "X": either}
    return "".join(pick(r, kinds[c]) if c in kinds else c for c in pattern)


def _cased(word: str, r: Random) -> str:
    chance = r.random()
    return word if chance < 0.5 else word.capitalize() if chance < 0.75 else word.upper()
