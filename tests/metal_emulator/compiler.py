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
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .errors import CompilerMissing, MetalCompileError

HERE = Path(__file__).resolve().parent
OLDEST = 17  # the first clang with arithmetic on __bf16
KEEP_DAYS = 30
_V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}  # /proc/cpuinfo's names for most of x86-64-v3


@dataclass(frozen=True)
class Toolchain:
    """Commands, without files. `version` is what the compiler says of itself."""

    driver: tuple[str, ...]
    options: tuple[str, ...]
    link: tuple[str, ...]
    version: str

    @property
    def compile(self) -> tuple[str, ...]:
        return (*self.driver, *self.options)

    @property
    def fingerprint(self) -> str:
        """Changes when what the commands make may change."""
        return " ".join((self.version, *self.compile, *self.link))

    def compiling_for(self, target: str) -> "Toolchain":
        """The same compiler for another machine, such as ``aarch64-unknown-linux-gnu``."""
        return replace(self, options=(f"--target={target}",))


@cache
def toolchain() -> Toolchain:
    """The first usable compiler; `METAL_EMULATOR_CXX` names another. Raises `CompilerMissing`."""
    chosen = os.environ.get("METAL_EMULATOR_CXX")
    names = [chosen] if chosen else [*(f"clang++-{n}" for n in range(OLDEST + 8, OLDEST - 1, -1)), "clang++"]
    for name in names:
        if (path := shutil.which(name)) and (version := _new_enough(path)):
            return Toolchain((path,), _processor(), (path, "-shared", *_SYSTEM_LINK), version)
    spec = None if chosen else importlib.util.find_spec("ziglang")
    if spec and spec.origin:
        return _zig(str(Path(spec.origin).parent / "zig"))
    raise CompilerMissing(
        f"the Metal emulator needs clang++ {OLDEST} or newer or the ziglang package, and "
        f"{f'METAL_EMULATOR_CXX={chosen} is not the first' if chosen else 'found neither'}: pip install ziglang"
    )


_SYSTEM_LINK = () if sys.platform == "darwin" else ("-nostdlib", "-Wl,-Bsymbolic")


def _zig(zig: str) -> Toolchain:
    """`zig clang` and `zig ld.lld` are the bare tools: no cache, and no libraries built on first use."""
    machine, mac = platform.machine(), sys.platform == "darwin"
    target = f"--target={machine}-apple-macos13" if mac else f"--target={machine}-unknown-linux-gnu"
    link = (zig, "cc", "-shared") if mac else (zig, "ld.lld", "-shared", "-Bsymbolic")
    return Toolchain((zig, "clang"), (target, *_processor()), link, _version((zig, "clang")))


def _version(command: Sequence[str]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, env=_environment())
    return result.stdout


def _new_enough(path: str) -> str:
    """What a clang of version `OLDEST` or newer says of itself, else ""."""
    text = _version((path,))
    found = re.search(r"clang version (\d+)", text)
    return text if found and int(found[1]) >= OLDEST else ""


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
        raise MetalCompileError(result.stderr.strip() or f"{command[0]} ended with status {result.returncode}")
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
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _environment() -> dict[str, str]:
    zig = str(folder() / "zig")
    return {**os.environ, "ZIG_LOCAL_CACHE_DIR": zig, "ZIG_GLOBAL_CACHE_DIR": zig}


def digest(*parts: str | bytes) -> str:
    """Short name for a content."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update((part.encode() if isinstance(part, str) else part) + b"\0")
    return whole.hexdigest()[:20]
