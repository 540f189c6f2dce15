"""How the attention kernels are cut up: template values by what registers and threadgroup memory hold.

d  head size    H  query heads    G  key heads    L  elements of a row, as keys

A threadgroup takes a block of packed rows, or of keys, 8 or 16 a simdgroup; a larger block reads the other side less
often and takes more of a core. The limits are those of M1 and M2, the smallest Apple GPUs: 128 registers a thread,
208 KiB of registers a core, 32 KiB of memory a threadgroup.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

MOST_REGISTERS = 96  # 32-bit ones a thread, for fragments; the rest of 128 is for pointers, places and sums
FEW_REGISTERS = 76  # up to here 512 threads share a core's registers, with 28 more for everything else
MANY_REGISTERS_SIMDGROUPS = 4  # of a threadgroup, with many registers a thread
MOST_SIMDGROUPS = 16  # of a threadgroup, with few; `narrow` halves it for the process
MOST_BYTES = 32_768  # of threadgroup memory
FORWARD, QUERY_GRAD, KEY_GRAD = "attention", "attention_query_grad", "attention_key_grad"


@dataclass(frozen=True)
class Task:
    """What a launch computes, as far as it decides the build.

    Args:
        kernel: ``FORWARD``, ``QUERY_GRAD`` or ``KEY_GRAD``.
        size: head size, a multiple of 8.
        element_bytes: of the type, 2 or 4.
        rows: packed queries, ``Q H / G``, or a number that they do not exceed.
        keys: ``L``, or a number that it does not exceed.
        own: whether queries have keys of their own.
        places: of the rotary table; 0 without one.
    """

    kernel: str
    size: int
    element_bytes: int
    rows: int
    keys: int
    own: bool = False
    places: int = 0


@dataclass(frozen=True)
class Build:
    """Template values.

    Args:
        simdgroups: of a threadgroup.
        rows: fragments of rows in a simdgroup.
        tile: keys, or rows, that lie in threadgroup memory at a time.
        held: fragments of each operand in registers; the others are parked in threadgroup memory.
        side: of the rotary table's two factors; 0 without one.
    """

    simdgroups: int
    rows: int
    tile: int
    held: int
    side: int


def choose_build(task: Task) -> Build | None:
    """The build with the largest block, and of these with the largest tile; None if there is none."""
    return next((build for build in _candidates(task) if _fits(task, build)), None)


def narrow() -> bool:
    """Halve the widest threadgroups from here on, after MLX refused one; False if they are narrow already."""
    global MOST_SIMDGROUPS
    if MOST_SIMDGROUPS <= MANY_REGISTERS_SIMDGROUPS:
        return False
    MOST_SIMDGROUPS //= 2
    return True


def widest() -> int:
    """Simdgroups of the widest threadgroups at present."""
    return MOST_SIMDGROUPS


def registers(task: Task, build: Build) -> int:
    """32-bit registers a thread that fragments take in the inner loop, two each: operands, sums and what was loaded."""
    fragments, parked = task.size // 8, build.held < task.size // 8
    if task.kernel == FORWARD:  # queries, results; scores; a key or value
        return 2 * (build.rows * (2 * fragments + build.tile // 8) + 1)
    operands, results = 2, 1 if task.kernel == QUERY_GRAD else 2
    return 2 * (operands * build.held + results * fragments + 2 + 2 + operands * parked)  # s, dp; two loaded


def threadgroup_bytes(task: Task, build: Build) -> int:
    """Threadgroup memory, as the kernels' texts declare it."""
    width, threads = task.element_bytes, 32 * build.simdgroups
    total = 2 * build.tile * (task.size * width + 16)  # tiles of keys and values, or of queries and gradients
    if task.kernel == KEY_GRAD:
        total += 16 * build.tile  # spans, logarithms, products
    else:
        total += 8 * build.simdgroups * build.rows * 8  # spans of the block
    if task.kernel != FORWARD:
        total += 2 * width * ((task.size // 8 - build.held) * threads * 2 + 1)
    if build.side:
        total += 2 * build.side * task.size // 2 * 8 + 2 * build.side**2
        total += 2 * build.tile if task.kernel == KEY_GRAD else 0
    return total


def _candidates(task: Task) -> Iterator[Build]:
    fragments = task.size // 8
    rows = 2 if task.kernel == FORWARD and task.own and task.size <= 64 else 1  # they read a long prefix less often
    count, others = (task.keys, task.rows) if task.kernel == KEY_GRAD else (task.rows, task.keys)
    side = math.isqrt(task.places - 1) + 1 if task.places else 0
    needed, longest = -(-count // (8 * rows)), -(-others // 8) * 8
    for simdgroups in (n for n in (16, 8, 4, 2, 1) if n <= MOST_SIMDGROUPS and (n == 1 or n < 2 * needed)):
        for tile in (n for n in (32, 16, 8) if n == 8 or n < longest + 8):
            plain = Build(min(simdgroups, needed), rows, min(tile, longest), fragments, side)
            yield plain
            if task.kernel != FORWARD and simdgroups <= MANY_REGISTERS_SIMDGROUPS:
                yield from (replace(plain, held=held) for held in range(fragments - 1, 0, -1))


def _fits(task: Task, build: Build) -> bool:
    needed = registers(task, build)
    few = needed <= FEW_REGISTERS or build.simdgroups <= MANY_REGISTERS_SIMDGROUPS
    return needed <= MOST_REGISTERS and few and threadgroup_bytes(task, build) <= MOST_BYTES
