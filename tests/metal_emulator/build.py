"""From a kernel's text to a shared library: clang, checks put into its IR, clang again, the linker. Kept by content."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import instrument
from .compiler import HERE, digest, folder, put, run, toolchain
from .errors import MetalCompileError
from .lint import lint, lint_ir, lint_warnings, with_inexact_literals
from .source import Buffer, Prepared, prepare

_LANGUAGE = (
    "-std=c++17", "-nostdinc", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing", "-fsigned-char", "-fPIC",
    "-fno-math-errno", "-ffp-contract=off", "-fno-color-diagnostics", "-fno-caret-diagnostics",
)  # fmt: skip
_METAL = (
    # Code as written, before any optimisation: so that what a line loads and stores is what is counted.
    "-O1", "-Xclang", "-disable-llvm-passes", "-gline-tables-only",
    # As Metal has it: 1.0 is a float, and 16-bit arithmetic rounds after every operation.
    "-Xclang", "-cl-single-precision-constant",
    "-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none",
    "-ftrivial-auto-var-init=pattern",  # a thread's own variables start as NaN or a large number
    "-Wno-everything", "-Wimplicit-float-conversion", "-Wimplicit-int-float-conversion",
    "-Werror=uninitialized", "-Werror=sometimes-uninitialized", "-Werror=return-type", "-Werror=vla",
    "-Werror=return-stack-address",
)  # fmt: skip
_CHECKS = ("-fsanitize=array-bounds,integer-divide-by-zero", "-fsanitize-minimal-runtime")
_RUNTIME = ("-x", "c++", *_LANGUAGE, "-O2", "-fvisibility=hidden")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. `text` is what its lines refer to; `seconds` is what building it took, 0 from the cache."""

    library: Path
    name: str
    buffers: tuple[Buffer, ...]
    text: str
    checked: bool
    seconds: float


def build(source: str, checked: bool = True) -> Kernel:
    """Compile a text as MLX generates it. Raises `MetalCompileError` with every message on a line."""
    start = time.perf_counter()
    prepared = prepare(source)
    whole = f'{prepared.text}\n#line 1 "entry"\n{prepared.entry}\n'
    name = digest(whole, str(checked), _fingerprint())
    library = folder() / f"{name}.so"
    built = not library.is_file()
    if built:
        _build(prepared, source, whole, checked, library)
    else:
        os.utime(library)
    seconds = time.perf_counter() - start if built else 0.0
    return Kernel(library, prepared.kernel, prepared.buffers, source, checked, seconds)


def build_many(sources: Iterable[str], checked: bool = True, workers: int = 2) -> list[Kernel | MetalCompileError]:
    """Compile several texts at once; a text that does not compile gives its error."""

    def attempt(source: str) -> Kernel | MetalCompileError:
        try:
            return build(source, checked)
        except MetalCompileError as error:
            return error

    _runtime(), _header(True), _header(False)  # once, before the workers all make them
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(attempt, sources))


def compiles(source: str) -> str:
    """The front end and the lint alone: "" if the text is Metal, else the messages."""
    try:
        _front_end(prepare(source), source, True)
    except MetalCompileError as error:
        return str(error)
    return ""


def _build(prepared: Prepared, source: str, whole: str, checked: bool, library: Path) -> None:
    ir = instrument.instrument(_front_end(prepared, source, checked), checked)
    scratch = library.with_suffix(f".{os.getpid()}-{id(prepared)}")
    object_, shared = scratch.with_suffix(f"{scratch.suffix}.o"), scratch.with_suffix(f"{scratch.suffix}.so")
    try:
        run([*toolchain().compile, "-x", "ir", "-O1", "-fPIC", "-Wno-everything", "-c", "-o", str(object_), "-"], ir)
        run([*toolchain().link, str(object_), str(_runtime()), "-o", str(shared)])
        put(library, shared)
    finally:
        object_.unlink(missing_ok=True)
        shared.unlink(missing_ok=True)


def _front_end(prepared: Prepared, source: str, checked: bool) -> str:
    """LLVM IR of a kernel that passed clang and the lint."""
    mistakes = lint(source)
    try:
        ir, warnings = _clang(prepared.text, prepared.entry, checked, "-S", "-emit-llvm", "-o", "-")
        if "bfloat" in source:
            warnings += _clang(with_inexact_literals(prepared.text), prepared.entry, checked, "-fsyntax-only")[1]
    except MetalCompileError as error:
        raise MetalCompileError("\n".join([*mistakes, str(error)])) from None
    mistakes += [*lint_warnings(warnings), *lint_ir(ir)]
    if mistakes:
        raise MetalCompileError("\n".join(mistakes))
    return ir


def _clang(text: str, entry: str, checked: bool, *options: str) -> tuple[str, str]:
    """Output and warnings of the front end."""
    header = ("-include-pch", str(_header(checked)))
    whole = f'#line 1 "kernel.metal"\n{text}\n#line 1 "entry"\n{entry}\n'
    return run([*toolchain().compile, "-x", "c++", *_flags(checked), *header, *options, "-"], whole)


def _flags(checked: bool) -> tuple[str, ...]:
    return (*_LANGUAGE, *_METAL, *(_CHECKS if checked else ()))


# --- what all kernels share -------------------------------------------------------------------------------------------


@cache
def _contents() -> str:
    """All of the emulator that shapes a compiled kernel."""
    code = (HERE / "instrument.py", HERE / "build.py", *HERE.glob("msl/*.h"), *HERE.glob("runtime/*"))
    return digest(*(path.read_bytes() for path in sorted(code)), str(HERE))


@cache
def _fingerprint() -> str:
    return digest(_contents(), toolchain().fingerprint)


def _make_once(name: str, command: list[str]) -> Path:
    path = folder() / f"{Path(name).stem}-{_fingerprint()}{Path(name).suffix}"
    if not path.is_file():
        scratch = path.with_suffix(f".{os.getpid()}{path.suffix}")
        run([*command, "-o", str(scratch)])
        put(path, scratch)
    else:
        os.utime(path)
    return path


@cache
def _runtime() -> Path:
    code = str(HERE / "runtime" / "runtime.cpp")
    return _make_once("runtime.o", [*toolchain().compile, *_RUNTIME, "-c", code])


@cache
def _header(checked: bool) -> Path:
    """The Metal headers, compiled; saves their parsing for every kernel."""
    code = str(HERE / "msl" / "metal.h")
    options = ["-x", "c++-header", *_flags(checked), "-Xclang", "-fno-pch-timestamp", code]
    name = "metal-checked.pch" if checked else "metal.pch"
    return _make_once(name, [*toolchain().compile, *options])
