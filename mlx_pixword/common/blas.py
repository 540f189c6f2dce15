"""What MLX's Linux CPU build needs from the process around it: a real BLAS, and memory that stays.

Its wheel carries the slow reference BLAS. MLX's symbols are resolved when it is loaded, so a system OpenBLAS has to
be in the process before.
"""

import ctypes
import gc
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

LIBRARIES = ("libopenblas.so.0", "libopenblas.so", f"{sys.prefix}/lib/libopenblas.so.0")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
INSTALL = "install it for much faster CPU runs: apt-get install libopenblas0, or dnf install openblas"


def load_openblas() -> str | None:
    """Load OpenBLAS for MLX where it helps.

    Returns:
        None where there is nothing to say, else one line for the user: none installed, or MLX came first.
    """
    if sys.platform != "linux" or loaded_openblas() or _has_cuda():
        return None
    if "mlx.core" in sys.modules:
        return "mlx was imported before mlx_pixword, so it runs without OpenBLAS: import mlx_pixword first"
    for name in LIBRARIES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return None
        except OSError:
            continue
    return f"no OpenBLAS found; {INSTALL}"


def loaded_openblas() -> str | None:
    """Path of the OpenBLAS in this process that MLX can use, if any (NumPy's own copy has other symbols)."""
    maps = Path("/proc/self/maps")
    paths = (
        {line.split()[-1] for line in maps.read_text().splitlines() if "/libopenblas" in line}
        if maps.exists()
        else set()
    )
    return min(paths, default=None)


def limit_threads(count: int) -> None:
    """Let OpenBLAS use ``count`` threads a call: two streams that each call it with all cores slow each other down."""
    path = loaded_openblas()
    if path is not None:
        ctypes.CDLL(path).openblas_set_num_threads(count)


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


def _has_cuda() -> bool:
    if not Path("/dev/nvidiactl").exists():
        return False
    for name in ("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda"):
        try:
            return bool(distribution(name))
        except PackageNotFoundError:
            continue
    return False
