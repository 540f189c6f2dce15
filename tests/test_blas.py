"""OpenBLAS is loaded before MLX where that helps, and one line says what is missing where it cannot be."""

import ctypes
import subprocess
import sys

import pytest

from mlx_pixword.common import blas


@pytest.fixture
def bare_linux(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine without a GPU, without MLX in the process and without any OpenBLAS."""
    monkeypatch.setattr(blas.sys, "platform", "linux")
    monkeypatch.setattr(blas, "loaded_openblas", lambda: None)
    monkeypatch.setattr(blas, "_has_cuda", lambda: False)
    monkeypatch.setattr(blas, "LIBRARIES", ("libsurely-not-there.so",))
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    return monkeypatch


def test_a_missing_openblas_is_one_line_with_what_to_install(bare_linux: pytest.MonkeyPatch) -> None:
    advice = blas.load_openblas()
    assert advice is not None
    assert "apt-get install libopenblas0" in advice
    assert "\n" not in advice


def test_mlx_imported_first_is_one_line(bare_linux: pytest.MonkeyPatch) -> None:
    bare_linux.setitem(sys.modules, "mlx.core", ctypes)
    assert "import mlx_pixword first" in str(blas.load_openblas())


def test_the_first_library_found_is_loaded_for_all(bare_linux: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, int]] = []

    def load(name: str, mode: int) -> None:
        if name == "absent.so":
            raise OSError(name)
        loaded.append((name, mode))

    bare_linux.setattr(blas, "LIBRARIES", ("absent.so", "found.so", "later.so"))
    bare_linux.setattr(blas.ctypes, "CDLL", load)
    assert blas.load_openblas() is None
    assert loaded == [("found.so", ctypes.RTLD_GLOBAL)]


@pytest.mark.parametrize("change", ["darwin", "cuda", "loaded"])
def test_nothing_is_done_where_nothing_helps(bare_linux: pytest.MonkeyPatch, change: str) -> None:
    if change == "darwin":
        bare_linux.setattr(blas.sys, "platform", "darwin")
    elif change == "cuda":
        bare_linux.setattr(blas, "_has_cuda", lambda: True)
    else:
        bare_linux.setattr(blas, "loaded_openblas", lambda: "/usr/lib/libopenblas.so.0")
    assert blas.load_openblas() is None


def test_a_program_that_imports_mlx_first_is_told_at_most_once() -> None:
    code = "import mlx.core, mlx_pixword, mlx_pixword.model.network; mlx_pixword.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = 1 if sys.platform == "linux" and not blas._has_cuda() else 0
    assert done.stderr.count("import mlx_pixword first") == expected
    assert done.stdout == ""


def test_threads_are_limited_only_where_openblas_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Library:
        def __init__(self, _path: str) -> None:
            self.openblas_set_num_threads = calls.append

    monkeypatch.setattr(blas.ctypes, "CDLL", Library)
    for path in (None, "/usr/lib/libopenblas.so.0"):
        monkeypatch.setattr(blas, "loaded_openblas", lambda path=path: path)
        blas.limit_threads(1)
    assert calls == [1]


@pytest.mark.parametrize(("system", "knows"), [("linux", True), ("linux", False), ("darwin", True)])
def test_freed_memory_is_kept_where_glibc_would_give_it_back(
    system: str, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *call: calls.append(call))} if knows else {})
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda _path: library)
    monkeypatch.setattr(blas.sys, "platform", system)
    blas.keep_memory()
    assert calls == ([(-4, 0), (-1, 2**31 - 1)] if system == "linux" and knows else [])


@pytest.mark.parametrize(("system", "knows"), [("linux", True), ("linux", False), ("darwin", True)])
def test_free_memory_is_given_back_where_glibc_can(system: str, knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    library = type("Library", (), {"malloc_trim": staticmethod(calls.append)} if knows else {})
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda _path: library)
    monkeypatch.setattr(blas.sys, "platform", system)
    blas.release_memory()
    assert calls == ([0] if system == "linux" and knows else [])
