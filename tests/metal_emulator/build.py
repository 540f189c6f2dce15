"""From a kernel's text to a shared library: clang, checks put into its IR, clang again, the linker. Kept by content."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from .compiler import HERE, Toolchain, digest, folder, run, toolchain
from .errors import MetalCompileError
from .instrument import KERNEL_FILE, instrument
from .lint import lint, lint_ir, lint_warnings, with_inexact_literals
from .source import Buffer, Prepared, prepare

FRAME_BYTES = 128 * 1024  # of a thread's own variables; the runtime gives it twice as much
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
    "-Werror=return-stack-address", f"-Wframe-larger-than={FRAME_BYTES}",
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
    tools = toolchain()
    prepared = prepare(source)
    name = digest(prepared.text, prepared.entry, str(checked), _fingerprint(tools))
    library = folder() / f"{name}.so"
    if library.is_file():
        os.utime(library)
        return Kernel(library, prepared.kernel, prepared.buffers, source, checked, 0.0)
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        object_, shared = Path(scratch) / "kernel.o", Path(scratch) / "kernel.so"
        compile_object(prepared, source, checked, tools, object_)
        run([*tools.link, str(object_), str(_runtime(tools)), "-o", str(shared)])
        os.replace(shared, library)  # whole or not at all: processes may build side by side
    return Kernel(library, prepared.kernel, prepared.buffers, source, checked, time.perf_counter() - start)


def build_many(sources: Iterable[str], checked: bool = True, workers: int = 2) -> list[Kernel | MetalCompileError]:
    """Compile several texts at once; a text that does not compile gives its error."""
    tools = toolchain()
    _runtime(tools), _header(tools, checked)  # once, before the workers all make them

    def attempt(source: str) -> Kernel | MetalCompileError:
        try:
            return build(source, checked)
        except MetalCompileError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(attempt, sources))


def mistakes(source: str) -> list[str]:
    """What clang and the lint say against a text, without building it."""
    try:
        _front_end(prepare(source), source, True, toolchain())
    except MetalCompileError as error:
        return str(error).splitlines()
    return []


# --- steps ------------------------------------------------------------------------------------------------------------


def compile_object(prepared: Prepared, source: str, checked: bool, tools: Toolchain, out: Path) -> None:
    """The kernel's code with its checks, for the processor that the tools are for."""
    ir = instrument(_front_end(prepared, source, checked, tools), checked)
    options = ("-O1", "-fPIC", "-Wno-everything", "-Werror=frame-larger-than", "-c")
    run([*tools.compile, "-x", "ir", *options, "-o", str(out), "-"], ir)


def compile_runtime(tools: Toolchain, out: Path) -> None:
    run([*tools.compile, *_RUNTIME, "-c", str(HERE / "runtime" / "runtime.cpp"), "-o", str(out)])


def _compile_header(tools: Toolchain, checked: bool, out: Path) -> None:
    options = ("-x", "c++-header", *_flags(checked), "-Xclang", "-fno-pch-timestamp")
    run([*tools.compile, *options, str(HERE / "msl" / "metal.h"), "-o", str(out)])


def _front_end(prepared: Prepared, source: str, checked: bool, tools: Toolchain) -> str:
    """LLVM IR of a kernel that passed clang and the lint."""
    found = lint(source)
    clang = partial(_clang, prepared.entry, checked, tools)
    try:
        ir, warnings = clang(prepared.text, "-S", "-emit-llvm", "-o", "-")
        if "bfloat" in source:
            warnings += clang(with_inexact_literals(prepared.text), "-fsyntax-only")[1]
    except MetalCompileError as error:
        raise MetalCompileError("\n".join([*found, *_at_the_kernel(str(error))])) from None
    found += [*lint_warnings(warnings), *lint_ir(ir)]
    if found:
        raise MetalCompileError("\n".join(found))
    return ir


def _at_the_kernel(messages: str) -> list[str]:
    """clang's messages; an error inside a header is put at the line of the kernel that led there."""
    kept, waiting = [], ""
    for line in messages.splitlines():
        place = re.match(rf"{re.escape(KERNEL_FILE)}:\d+:\d+", line)
        if place:
            kept.append(f"{place[0]}: {waiting}" if waiting else line)
            waiting = ""
        elif " error: " in line:
            kept += [waiting] * bool(waiting)
            waiting = line[line.index("error: ") :]
    return kept + [waiting] * bool(waiting)


def _clang(entry: str, checked: bool, tools: Toolchain, text: str, *options: str) -> tuple[str, str]:
    """Output and warnings of the front end."""
    header = ("-include-pch", str(_header(tools, checked)))
    whole = f'#line 1 "{KERNEL_FILE}"\n{text}\n#line 1 "entry"\n{entry}\n'
    return run([*tools.compile, "-x", "c++", *_flags(checked), *header, *options, "-"], whole)


def _flags(checked: bool) -> tuple[str, ...]:
    return (*_LANGUAGE, *_METAL, *(_CHECKS if checked else ()))


# --- what all kernels share: made once, kept by content ---------------------------------------------------------------


@cache
def _fingerprint(tools: Toolchain) -> str:
    """Of the compiler, and of all that shapes a compiled kernel."""
    names = ("build.py", "instrument.py", "lint.py", "source.py", "tokens.py")
    code = [HERE / name for name in names] + sorted([*HERE.glob("msl/*"), *HERE.glob("runtime/*")])
    return digest(*(path.read_bytes() for path in code), tools.fingerprint)


def _once(name: str, tools: Toolchain, make: Callable[[Path], None]) -> Path:
    path = folder() / f"{_fingerprint(tools)}-{name}"
    if path.is_file():
        os.utime(path)
        return path
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        made = Path(scratch) / name
        make(made)
        os.replace(made, path)
    return path


@cache
def _runtime(tools: Toolchain) -> Path:
    return _once("runtime.o", tools, partial(compile_runtime, tools))


@cache
def _header(tools: Toolchain, checked: bool) -> Path:
    """The Metal headers, parsed; a kernel compiles in half the time with them."""
    place = digest(str(HERE))  # it names the headers by path
    return _once(f"{place}-{checked}.pch", tools, partial(_compile_header, tools, checked))
