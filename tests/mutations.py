"""Mutations of a kernel's text: every barrier removed, comparison shifted, guard and first value changed."""

import re
from collections.abc import Iterator

from mutants import Mutant

from mlx_pixword.ops.dispatch import load

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
VALUES = {
    "float2(0.0f, 0.0f)": "float2(1.0f, 0.0f)",
    "= 0.0f;": "= 1.0f;",
    "= 0.0f,": "= 1.0f,",
    "= 1.0f;": "= 0.0f;",
    "= LOWEST;": "= 0.0f;",
    "float2(0.0f);": "float2(1.0f);",
    "column == 0": "true",
}


def mutations(file: str, after: str = "", until: str = "") -> Iterator[Mutant]:
    """All mutants of ``metal/FILE``, of all lines or those between two marks; each stands for the whole text."""
    text = load.read_source(file)
    lines = text.split("\n")
    starts = next(number for number, line in enumerate(lines) if line.startswith(after)) if after else 0
    ends = [number for number, line in enumerate(lines) if until and line.startswith(until)] or [len(lines)]
    for number, line in list(enumerate(lines))[starts : ends[0]]:
        for name, changed in changes(line.partition("//")[0]):
            yield Mutant(f"{number + 1} {name}", text, "\n".join([*lines[:number], changed, *lines[number + 1 :]]))


def changes(code: str) -> Iterator[tuple[str, str]]:
    """What is done to a line of code: a name, and the line afterwards."""
    if BARRIER in code:
        yield "no barrier", code.replace(BARRIER, "")
        yield "barrier orders nothing", code.replace("mem_flags::mem_threadgroup", "mem_flags::mem_none")
        yield "barrier of a simdgroup", code.replace("threadgroup_barrier", "simdgroup_barrier")
    for match in re.finditer(r"(?<= )(<=|>=|<|>)(?= )", code):
        before, after = code[: match.start()], code[match.end() :]
        if "UNROLL" in code:  # one less: beyond its end a register array would be written
            yield f"one less of {before.split()[-1]}", f"{before}< -1 +{after}"
        else:
            yield f"{match[0]} shifted after {before.strip()}", before + SHIFTED[match[0]] + after
    for match in re.finditer(r" \? ", code):
        start = max(code.rfind(mark, 0, match.start()) for mark in ("= ", ", ")) + 2
        condition = code[start : match.start()]
        yield f"always {condition}", f"{code[:start]}true{code[match.start() :]}"
    for old, new in VALUES.items():
        if old in code:
            yield f"{old} becomes {new}", code.replace(old, new, 1)
