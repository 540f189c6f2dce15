"""Run a compiled kernel on NumPy arrays and say what it did."""

import ctypes
import ctypes.util
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .build import Kernel, build
from .errors import EmulatorError, Finding

THREADGROUP_BYTES = 32768
THREADS = 1024
BUDGET = 1 << 30
_SLOTS, _FINDINGS = 8, 64
_SPACES = {1: "device", 2: "constant", 3: "threadgroup"}
_FILLED, _CONSTANT, _READ_ONLY = 1, 2, 4
_LOCK = threading.Lock()  # the runtime's state is one a library


@dataclass(frozen=True)
class Argument:
    """Memory of one kernel argument.

    Attributes:
        array: its elements; outputs are written in place. Contiguous, any NumPy type of 1, 2, 4 or 8 bytes.
        role: ``in``, ``out`` (starts without values), ``init`` (an output that starts with the array's), or ``info``
            (shapes and strides: not counted as traffic that is needed).
        initialised: None, or booleans of the array's shape: which elements hold values.
        offset: element at which the kernel's pointer stands.
    """

    array: np.ndarray
    role: str = "in"
    initialised: np.ndarray | None = None
    offset: int = 0


@dataclass(frozen=True)
class BufferReport:
    """Traffic of one argument in bytes: its size, and the distinct bytes that were loaded and stored."""

    bytes: int
    unique_loaded: int
    unique_stored: int
    role: str


@dataclass(frozen=True)
class Report:
    """What a launch did. With ``checked=False`` only times, barriers and simd operations are known.

    Attributes:
        errors: findings, empty if all is well.
        stats: ``device_load_bytes``, ``device_store_bytes``, ``device_loads``, ``device_stores``, the same of
            ``constant`` and ``threadgroup``, ``barriers``, ``simd_ops``, ``mma`` (8 x 8 x 8 products), ``atomics``,
            ``threadgroups``, ``threads``, ``work`` (accesses and loop turns), ``switches``.
        buffers: by argument name.
        threadgroup_bytes: of a threadgroup's variables.
        lines: bytes by (address space, ``load`` or ``store``, line).
        seconds, build_seconds: running, and compiling (0 from the cache).
        source: the text that the lines refer to.
    """

    kernel: str
    errors: list[Finding]
    stats: dict[str, int]
    buffers: dict[str, BufferReport]
    threadgroup_bytes: int
    lines: dict[tuple[str, str, int], int]
    seconds: float
    build_seconds: float
    source: str = field(repr=False, default="")

    @property
    def traffic(self) -> int:
        """Bytes that all threads load from and store to device memory, as written: no cache is modelled."""
        return self.stats["device_load_bytes"] + self.stats["device_store_bytes"]

    @property
    def floor(self) -> int:
        """Bytes of the inputs read once and the outputs written once."""
        return sum(buffer.bytes for buffer in self.buffers.values() if buffer.role != "info")

    @property
    def ratio(self) -> float:
        return self.traffic / self.floor

    def line_table(self, space: str = "device") -> str:
        """Bytes a source line, as text, largest first."""
        code = self.source.split("\n")
        rows = [(size, op, line) for (where, op, line), size in self.lines.items() if where == space]
        rows.sort(reverse=True)
        return "\n".join(f"{size:>14,} {op:5} {line:>4} {code[line - 1].strip()}" for size, op, line in rows)


def traffic(report: Report) -> int:
    """`Report.traffic`."""
    return report.traffic


def floor(report: Report) -> int:
    """`Report.floor`."""
    return report.floor


# --- structures of runtime/launch.h -----------------------------------------------------------------------------------


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("granule", ctypes.c_uint32),
        ("flags", ctypes.c_uint32), ("name", ctypes.c_char_p), ("initialised", ctypes.c_void_p),
        ("loaded", ctypes.c_uint64), ("stored", ctypes.c_uint64), ("first_unwritten", ctypes.c_uint64),
    ]  # fmt: skip


class _Variable(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("space", ctypes.c_uint32),
        ("padding", ctypes.c_uint32), ("name", ctypes.c_char_p),
    ]  # fmt: skip


class _Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char * 24), ("buffer", ctypes.c_char * 64), ("text", ctypes.c_char * 320),
        ("line", ctypes.c_uint32), ("thread", ctypes.c_uint32), ("threadgroup", ctypes.c_uint32 * 3),
        ("has_thread", ctypes.c_uint32),
    ]  # fmt: skip


_COUNTERS = ("barriers", "simd_ops", "mma", "atomics", "switches", "threadgroups", "threads", "work")


class _Launch(ctypes.Structure):
    _fields_ = [
        ("buffers", ctypes.POINTER(_Buffer)), ("buffer_count", ctypes.c_uint32), ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3), ("checked", ctypes.c_uint32), ("seed", ctypes.c_uint64),
        ("budget", ctypes.c_uint64), ("lines", ctypes.c_uint32), ("finding_count", ctypes.c_uint32),
        ("line_bytes", ctypes.c_void_p), ("line_accesses", ctypes.c_void_p), ("findings", ctypes.c_void_p),
        ("counters", ctypes.c_uint64 * len(_COUNTERS)),
    ]  # fmt: skip


@cache
def _load(library: Path) -> ctypes.CDLL:
    _mathematics()
    return ctypes.CDLL(str(library))


@cache
def _mathematics() -> None:
    """Kernels are linked without libraries; make the functions of libm visible to them."""
    if name := ctypes.util.find_library("m"):
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


# --- launching --------------------------------------------------------------------------------------------------------


def launch(
    source: str | Kernel,
    arguments: Sequence[Argument],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    *,
    checked: bool = True,
    seed: int = 0,
    budget: int = BUDGET,
    strict: bool = True,
    threadgroup_limit: int = THREADGROUP_BYTES,
) -> Report:
    """Run a kernel over a grid of threads, as Metal's ``dispatchThreads`` does.

    Args:
        source: the whole text, as MLX generates it, or a built kernel.
        arguments: one for every buffer of the signature, in order.
        grid, threadgroup: threads in x, y and z; the grid need not be a multiple of the threadgroup.
        checked: False for speed: no findings but divergence, and no traffic.
        seed: order of threads and threadgroups: 0 ascending, 1 descending, else shuffled.
        budget: accesses and loop turns after which the launch is called endless (checked runs only).
        strict: raise `EmulatorError` if there are findings.
        threadgroup_limit: bytes of threadgroup memory that are allowed.

    Raises:
        MetalCompileError: the text is not Metal.
        EmulatorError: findings, one a line; the arguments do not fit the signature.
    """
    kernel = source if isinstance(source, Kernel) else build(source, checked)
    _check(kernel, arguments, grid, threadgroup)
    with _LOCK:
        report = _run(kernel, arguments, grid, threadgroup, (seed, budget, threadgroup_limit))
    if strict and report.errors:
        raise EmulatorError("\n".join(map(str, report.errors)))
    return report


def _check(kernel: Kernel, arguments: Sequence[Argument], grid: Sequence[int], threadgroup: Sequence[int]) -> None:
    if len(arguments) != len(kernel.buffers):
        names = [buffer.name for buffer in kernel.buffers]
        raise EmulatorError(f"{kernel.name} has {len(names)} buffers {names}, {len(arguments)} arguments were given")
    if len(grid) != 3 or len(threadgroup) != 3 or min(*grid, *threadgroup) < 1:
        raise EmulatorError(f"{kernel.name}: grid {grid} and threadgroup {threadgroup} must be 3 positive numbers")
    if math.prod(threadgroup) > THREADS:
        raise EmulatorError(f"{kernel.name}: a threadgroup of {threadgroup} threads; Metal allows {THREADS} at most")


def _run(
    kernel: Kernel,
    arguments: Sequence[Argument],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    options: tuple[int, int, int],
) -> Report:
    start = time.perf_counter()
    library = _load(kernel.library)
    memories = [_Memory(argument) for argument in arguments]
    rows = (_Buffer * len(arguments))(
        *(memory.row(buffer.name, buffer.constant, buffer.read_only)
          for memory, buffer in zip(memories, kernel.buffers, strict=True))
    )  # fmt: skip
    lines = kernel.text.count("\n") + 2
    sums, accesses = np.zeros((lines, _SLOTS), np.uint64), np.zeros((lines, _SLOTS), np.uint64)
    findings = (_Finding * _FINDINGS)()
    seed, budget, limit = options
    state = _Launch(
        rows, len(rows), tuple(grid), tuple(threadgroup), kernel.checked, seed, budget, lines, 0,
        sums.ctypes.data, accesses.ctypes.data, ctypes.addressof(findings),
    )  # fmt: skip
    pointers = (ctypes.c_void_p * max(1, len(rows)))(*(memory.pointer for memory in memories))
    library.emu_run(ctypes.byref(state), pointers)
    for memory in memories:
        memory.copy_back()
    errors = [_finding(findings[i], kernel.text) for i in range(state.finding_count)]
    size = _threadgroup_bytes(library)
    if size > limit:
        errors.append(Finding("THREADGROUP-MEMORY", 0, f"{size} bytes of threadgroup variables; {limit} are allowed"))
    names = [buffer.name for buffer in kernel.buffers]
    if kernel.checked and not errors:
        for name, argument, row in zip(names, arguments, rows, strict=True):
            errors += _unwritten(name, argument, row)
    return Report(
        kernel=kernel.name,
        errors=errors,
        stats=_stats(state, sums, accesses),
        buffers={
            name: BufferReport(row.bytes, row.loaded, row.stored, argument.role)
            for name, argument, row in zip(names, arguments, rows, strict=True)
        },
        threadgroup_bytes=size,
        lines=_line_bytes(sums),
        seconds=time.perf_counter() - start,
        build_seconds=kernel.seconds,
        source=kernel.text,
    )


class _Memory:
    """An argument's bytes, far from those of any other argument."""

    def __init__(self, argument: Argument) -> None:
        array = argument.array
        if array.itemsize not in (1, 2, 4, 8) or not array.flags.c_contiguous:
            raise EmulatorError(f"an argument is not contiguous numbers: {array.dtype}, strides {array.strides}")
        self.argument = argument
        margin = (1 << 20) + array.nbytes  # not touched, so it takes no memory
        self._raw = np.empty(array.nbytes + 2 * margin, np.uint8)
        at = margin + (-(self._raw.ctypes.data + margin)) % 256
        self._bytes = self._raw[at : at + array.nbytes]
        self._bytes[:] = 0xFF if argument.role == "out" else array.reshape(-1).view(np.uint8)
        mask = argument.initialised
        self._mask = None if mask is None else np.ascontiguousarray(mask, np.uint8)

    @property
    def pointer(self) -> int:
        return int(self._bytes.ctypes.data) + self.argument.offset * self.argument.array.itemsize

    def row(self, name: str, constant: bool, read_only: bool) -> _Buffer:
        flags = (self.argument.role != "out") * _FILLED | constant * _CONSTANT | read_only * _READ_ONLY
        mask = self._mask.ctypes.data if self._mask is not None else None
        return _Buffer(
            self._bytes.ctypes.data, self._bytes.nbytes, self.argument.array.itemsize, flags, name.encode(), mask
        )

    def copy_back(self) -> None:
        if self.argument.role in ("out", "init"):
            self.argument.array.reshape(-1).view(np.uint8)[:] = self._bytes


# --- reading what the runtime left ------------------------------------------------------------------------------------


def _finding(row: Any, text: str) -> Finding:
    code = text.split("\n")[row.line - 1].strip() if row.line else ""
    thread = (int(row.thread), (row.threadgroup[0], row.threadgroup[1], row.threadgroup[2]))
    return Finding(
        row.kind.decode(), row.line, row.text.decode(errors="replace"), row.buffer.decode(),
        thread if row.has_thread else None, code,
    )  # fmt: skip


def _unwritten(name: str, argument: Argument, row: Any) -> list[Finding]:
    if argument.role != "out" or row.stored == row.bytes:
        return []
    missing = f"{row.bytes - row.stored} of {row.bytes} bytes are never stored, first element {row.first_unwritten}"
    return [Finding("UNWRITTEN", 0, missing, name)]


def _threadgroup_bytes(library: ctypes.CDLL) -> int:
    count = ctypes.c_uint32.in_dll(library, "emu_variable_count").value
    table = (_Variable * count).in_dll(library, "emu_variables")
    return sum(row.bytes for row in table if _SPACES[row.space] == "threadgroup")


def _stats(state: Any, sums: np.ndarray, accesses: np.ndarray) -> dict[str, int]:
    stats = {}
    for number, space in _SPACES.items():
        for write, op in enumerate(("load", "store")):
            stats[f"{space}_{op}_bytes"] = int(sums[:, 2 * number + write].sum())
            stats[f"{space}_{op}s"] = int(accesses[:, 2 * number + write].sum())
    return stats | {name: int(value) for name, value in zip(_COUNTERS, state.counters, strict=True)}


def _line_bytes(sums: np.ndarray) -> dict[tuple[str, str, int], int]:
    return {
        (_SPACES[slot // 2], ("load", "store")[slot % 2], int(line)): int(sums[line, slot])
        for line, slot in zip(*sums.nonzero(), strict=True)
    }
