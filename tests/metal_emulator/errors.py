"""What the emulator raises and reports."""

from dataclasses import dataclass


class EmulatorError(Exception):
    """A kernel did something that Metal forbids or leaves undefined; one finding a line."""


class MetalCompileError(EmulatorError):
    """The text is not Metal: clang or the lint refuses it; one message a line."""


class CompilerMissing(RuntimeError):
    """Neither clang 17 nor the ziglang package is here."""


@dataclass(frozen=True)
class Finding:
    """One mistake of a launch, the first of its kind on its line.

    Attributes:
        kind: ``RACE``, ``OUT-OF-BOUNDS``, ...; README.md lists them.
        line: of the text that was compiled, from 1; 0 if there is none.
        message: what happened.
        buffer: the argument or threadgroup variable, or "".
        thread: index in its threadgroup, and the threadgroup's place in the grid; None if no thread is to blame.
        code: text of the line.
    """

    kind: str
    line: int
    message: str
    buffer: str = ""
    thread: tuple[int, tuple[int, int, int]] | None = None
    code: str = ""

    def __str__(self) -> str:
        where = f"'{self.buffer}': " if self.buffer else ""
        who = f" (thread {self.thread[0]} of threadgroup {self.thread[1]})" if self.thread else ""
        code = f"  | {self.code}" if self.code else ""
        return f"{self.kind} line {self.line}: {where}{self.message}{who}{code}"
