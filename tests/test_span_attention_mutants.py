"""Mutants of the attention kernels: each is noticed by what the kernel gives, or by what it costs."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from metal_emulator import reports, traffic
from mutants import Mutant, assert_caught
from mutations import mutations
from span_attention import Case, difference, expected, make_case

FILES = ("attention.metal", "attention_query_grad.metal", "attention_key_grad.metal", "header.h")
ROWS = "// ---- a row times a matrix"  # what follows in the header is another kernel's
EQUIVALENT = "float2(0.0f); becomes"  # rows and keys beyond the last: any number does, as they have no weight


def cases() -> Iterator[Case]:
    """Small calls that reach every branch: ragged, empty and late spans, several blocks, and scores of thousands."""
    yield make_case("window", (2, 0, 70, 1, 3, 16))
    yield make_case("window", (4, 0, 33, 1, 1, 16), scale=40.0)
    yield make_case("own", (1, 150, 100, 2, 2, 16))
    yield make_case("own", (1, 9, 40, 1, 1, 16), scale=40.0)
    yield make_case("read", (1, 3, 72, 1, 2, 128))  # 72 places: the rotary table's last factor is not used
    yield make_case("scattered", (2, 0, 16, 1, 2, 16))
    full = make_case("window", (1, 0, 64, 1, 2, 64))
    full.spans[:, :, 1] = np.arange(1, 65)
    yield full
    late = make_case("own", (1, 40, 140, 1, 2, 16))  # begins where a threadgroup's keys end, and a simdgroup's
    late.spans[0] = [(128, 135)] * 16 + [(72, 90)] * 16 + [(0, 0)] * 8
    yield late


CASES = list(cases())
WANTED = [expected(case) for case in CASES]


def run(number: int) -> tuple[float, list[tuple[int, ...]]]:
    """Largest difference of a case, and the bytes and matrix products of its launches."""
    reports.clear()
    found = CASES[number].run()
    costs = [(traffic(report), report.stats["mma"], report.stats["barriers"]) for report in reports]
    return difference(found, WANTED[number]), costs


@cache
def costs_of(number: int) -> list[tuple[int, ...]]:
    """What a case costs with the kernels as they are."""
    return run(number)[1]


def check() -> None:
    for number, case in enumerate(CASES):
        tolerance = 1e-5 if np.abs(case.arrays[0]).max() < 20 else 3e-3
        error, costs = run(number)
        assert error < tolerance, f"case {number}: off by {error:.1e}"
        assert costs == costs_of(number), f"case {number}: other traffic, products or barriers"


def test_the_kernels_as_they_are(emulated: Any) -> None:
    check()


ALL = [(file, mutant) for file in FILES for mutant in mutations(file, until=ROWS) if EQUIVALENT not in mutant.name]


@pytest.mark.parametrize(("file", "mutant"), ALL, ids=[f"{file}:{mutant.name}" for file, mutant in ALL])
def test_mutants_are_noticed(emulated: Any, file: str, mutant: Mutant) -> None:
    for number in range(len(CASES)):
        costs_of(number)
    assert_caught(file, mutant, check)
