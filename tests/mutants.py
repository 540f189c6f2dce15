"""Mutants: a Metal source with one thing wrong. A kernel's tests are good if they notice every one.

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
    def test_mutants_are_noticed(emulated, mutant):
        assert_caught("fold_colors.metal", mutant, check)

``check`` runs the kernel in the emulator on arguments that reach every branch, and asserts that results are right.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from metal_emulator import EmulatorError, MetalCompileError

from mlx_pixword.ops.dispatch import load

CAUGHT = (EmulatorError, MetalCompileError, AssertionError)


class Mutant(NamedTuple):
    """A piece of a source, which must occur in it once, and what stands in its place."""

    name: str
    old: str
    new: str


@contextmanager
def mutated(file: str, mutant: Mutant) -> Iterator[None]:
    """While this holds, ``metal/FILE`` reads as the mutant, and kernels are built anew."""
    read, text = load.read_source, load.read_source(file)
    if text.count(mutant.old) != 1:
        raise LookupError(f"{file}: {mutant.old!r} of mutant {mutant.name!r} occurs {text.count(mutant.old)} times")
    changed = text.replace(mutant.old, mutant.new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "read_source", lambda name: changed if name == file else read(name))
        load.build_kernel.cache_clear()
        try:
            yield
        finally:
            load.build_kernel.cache_clear()


def assert_caught(file: str, mutant: Mutant, check: Callable[[], object]) -> str:
    """What noticed the mutant: the first line of the emulator's, the compiler's or the check's complaint."""
    with mutated(file, mutant):
        try:
            check()
        except CAUGHT as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    raise AssertionError(f"{file}: nothing noticed the mutant {mutant.name!r}")
