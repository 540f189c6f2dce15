"""Clang: a system one of version 17 or newer, else the one inside the `ziglang` package; and a folder for its work."""

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import CompilerMissing, MetalCompileError

HERE = Path(__file__).resolve().parent
OLDEST = 17  # the first clang with arithmetic on __bf16
KEEP_DAYS = 30
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}  # /proc/cpuinfo's names for most of x86-64-v3


@dataclass(frozen=True)
class Toolchain:
    """Commands, without files. `fingerprint` changes when their output may."""

    compile: tuple[str, ...]
    link: tuple[str, ...]
    fingerprint: str


@cache
def toolchain() -> Toolchain:
    """The first usable compiler; `METAL_EMULATOR_CXX` names another. Raises `CompilerMissing`."""
    chosen = os.environ.get("METAL_EMULATOR_CXX")
    names = [chosen] if chosen else [*(f"clang++-{n}" for n in range(OLDEST + 8, OLDEST - 1, -1)), "clang++"]
    for name in names:
        if (path := shutil.which(name)) and (version := _clang_version(path)):
            return _toolchain((path,), (path, "-shared", *_NO_LIBRARIES), version)
    spec = importlib.util.find_spec("ziglang")
    if chosen or spec is None or spec.origin is None:
        raise CompilerMissing(
            f"the Metal emulator needs clang++ {OLDEST} or newer, or the ziglang package; "
            f"found neither{f' as METAL_EMULATOR_CXX={chosen}' if chosen else ''}: pip install ziglang"
        )
    zig = str(Path(spec.origin).parent / "zig")
    # `zig clang` and `zig ld.lld` are the bare tools: no cache, no libraries built on first use.
    link = (zig, "cc", "-shared") if sys.platform == "darwin" else (zig, "ld.lld", "-shared", "-Bsymbolic")
    return _toolchain((zig, "clang", f"--target={_target()}"), link, _version_text((zig, "clang")))


_NO_LIBRARIES = () if sys.platform == "darwin" else ("-nostdlib", "-Wl,-Bsymbolic")


def _target() -> str:
    machine = platform.machine()
    return f"{machine}-apple-macos13" if sys.platform == "darwin" else f"{machine}-unknown-linux-gnu"


def _version_text(command: Sequence[str]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, env=_environment())
    return result.stdout


def _clang_version(path: str) -> str:
    """What a clang that is new enough says of itself, else ""."""
    text = _version_text((path,))
    found = re.search(r"clang version (\d+)", text)
    return text if found and int(found[1]) >= OLDEST else ""


def _toolchain(compiler: tuple[str, ...], link: tuple[str, ...], version: str) -> Toolchain:
    compiler = (*compiler, *_processor())
    return Toolchain(compiler, link, " ".join((version, *compiler, *link)))


def _processor() -> tuple[str, ...]:
    """Newer x86 processors convert 16-bit floats themselves; elsewhere the runtime's own functions do."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.is_file():
        return ()
    flags = re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE)
    return ("-march=x86-64-v3",) if flags and set(flags[1].split()) >= _V3 else ()


def run(command: Sequence[str], text: str = "") -> tuple[str, str]:
    """Run a compiler on a text; returns its output and warnings, raises `MetalCompileError` with its messages."""
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=_environment())
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("In file included from")]
        raise MetalCompileError("\n".join(lines) or f"{command[0]} ended with status {result.returncode}")
    return result.stdout, result.stderr


# --- folder of compiled files -----------------------------------------------------------------------------------------


@cache
def folder() -> Path:
    """Where compiled kernels are kept: `METAL_EMULATOR_CACHE`, else the user's cache, else the temporary folder."""
    for base in _folders():
        with contextlib.suppress(OSError):
            base.mkdir(parents=True, exist_ok=True)
            if os.access(base, os.W_OK):
                _forget_old(base)
                return base
    raise OSError("no writable folder for compiled kernels; set METAL_EMULATOR_CACHE")


def _folders() -> Iterable[Path]:
    if chosen := os.environ.get("METAL_EMULATOR_CACHE"):
        return [Path(chosen).resolve()]
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    base = Path(os.environ.get("XDG_CACHE_HOME") or home)
    return [base / "mlx-pixword" / "metal-emulator", Path(tempfile.gettempdir()) / "mlx-pixword-metal-emulator"]


def _forget_old(base: Path) -> None:
    """Delete what was not used for `KEEP_DAYS`; a kernel that is used is touched."""
    oldest = time.time() - KEEP_DAYS * 86400
    for path in base.iterdir():
        with contextlib.suppress(OSError):  # another process may have been faster
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()


def _environment() -> dict[str, str]:
    base = Path(tempfile.gettempdir()) if "METAL_EMULATOR_CACHE" not in os.environ else folder()
    return {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(base / "zig"), "ZIG_GLOBAL_CACHE_DIR": str(base / "zig")}


def digest(*parts: str | bytes) -> str:
    """Short name for a content."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return whole.hexdigest()[:20]


def put(path: Path, make: Path) -> Path:
    """Move a finished file to its place, whole or not at all, so that processes may build side by side."""
    os.replace(make, path)
    return path
