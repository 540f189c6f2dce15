"""Metal text as tokens, so that the rewrites and the lint never look into comments and strings."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|/\*.*?\*/|\s+|\#(?:\\\n|[^\n])*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<number>(?:0[xX][\da-fA-F.]+(?:[pP][+-]?\d+)?|\.?\d[\d.]*(?:[eE][+-]?\d+)?)[a-zA-Z]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<mark>::|->|\+\+|--|&&|\|\||<<=|>>=|[-+*/%&|^=!<>]=|\[\[|\]\]|.)""",
    re.VERBOSE | re.DOTALL,
)
_PAIRS = {"(": ")", "[": "]", "{": "}", "[[": "]]"}


@dataclass(frozen=True)
class Token:
    kind: str  # string, number, name, mark
    text: str
    start: int  # offset in the text
    line: int  # from 1

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokenize(text: str) -> list[Token]:
    """All tokens but comments, white space and the preprocessor's lines."""
    return list(_tokens(text))


def _tokens(text: str) -> Iterator[Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            yield Token(match.lastgroup or "mark", match[0], match.start(), line)
        line += match[0].count("\n")


def closing(tokens: Sequence[Token], start: int) -> int:
    """Index of the bracket that closes the one at `start`; the last index if none does."""
    open_, close = tokens[start].text, _PAIRS[tokens[start].text]
    depth = 0
    for i in range(start, len(tokens)):
        depth += (tokens[i].text == open_) - (tokens[i].text == close)
        if depth == 0:
            return i
    return len(tokens) - 1


def closing_angle(tokens: Sequence[Token], start: int) -> int:
    """Index of the ``>`` that closes the ``<`` at `start`, or -1 if it is a comparison."""
    depth = 0
    for i in range(start, min(start + 60, len(tokens))):
        text = tokens[i].text
        depth += (text == "<") - (text == ">")
        if depth == 0:
            return i
        if text in (";", "{", "}", "&&", "||"):
            return -1
    return -1


def text_of(tokens: Sequence[Token]) -> str:
    return " ".join(token.text for token in tokens)
