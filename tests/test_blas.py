"""OpenBLAS is loaded before MLX where that helps, and one line says what is missing where it cannot be."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_pixword.common import blas, openblas


@pytest.fixture
def bare_linux(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine without a GPU, without MLX in the process and without any OpenBLAS."""
    monkeypatch.setattr(blas.sys, "platform", "linux")
    monkeypatch.setattr(blas, "openblas", lambda: None)
    monkeypatch.setattr(blas, "has_gpu", lambda: False)
    monkeypatch.setattr(openblas, "load_copy", lambda: False)
    monkeypatch.setattr(blas, "LIBRARIES", ("libsurely-not-there.so",))
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    return monkeypatch


def test_a_missing_openblas_is_one_line_with_what_to_install(bare_linux: pytest.MonkeyPatch) -> None:
    advice = blas.load_openblas()
    assert advice is not None
    assert "pip install scipy-openblas32" in advice and "apt-get install libopenblas0" in advice
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


@pytest.mark.parametrize(
    ("choice", "package", "system", "advice"),
    [
        ("auto", True, True, None), ("auto", False, True, None), ("system", True, False, "no OpenBLAS found"),
        ("package", False, True, "no OpenBLAS found"), ("off", False, False, None),
        ("fast", True, True, "PIXWORD_BLAS must be one of auto, package, system, off, got 'fast'"),
    ],
)  # fmt: skip
def test_the_user_may_choose(
    bare_linux: pytest.MonkeyPatch, choice: str, package: bool, system: bool, advice: str | None
) -> None:
    bare_linux.setenv(blas.VARIABLE, choice)
    bare_linux.setattr(openblas, "load_copy", lambda: package)
    bare_linux.setattr(blas, "_load_system", lambda: system)
    assert str(blas.load_openblas()).startswith(str(advice))


@pytest.mark.parametrize("change", ["darwin", "cuda", "loaded"])
def test_nothing_is_done_where_nothing_helps(bare_linux: pytest.MonkeyPatch, change: str) -> None:
    if change == "darwin":
        bare_linux.setattr(blas.sys, "platform", "darwin")
    elif change == "cuda":
        bare_linux.setattr(blas, "has_gpu", lambda: True)
        bare_linux.setattr(blas, "cuda_builds", lambda: [object()])
        bare_linux.setattr(blas, "hidden_cuda", lambda: None)
    else:
        bare_linux.setattr(blas, "openblas", lambda: ctypes)
    assert blas.load_openblas() is None


@pytest.mark.parametrize("lies_there", ["cuda", "cpu"])
def test_a_cpu_build_over_the_cuda_build_is_one_line(
    bare_linux: pytest.MonkeyPatch, tmp_path: Path, lies_there: str
) -> None:
    """Both packages own the file; pip says nothing when one writes over the other's."""
    (tmp_path / "mlx" / "lib").mkdir(parents=True)
    (tmp_path / "mlx" / "lib" / "libmlx.so").write_bytes(b"c" * (30 if lies_there == "cuda" else 20))
    package = tmp_path / "mlx_cuda_12-0.99.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-cuda-12\nVersion: 0.99.0\n")
    (package / "RECORD").write_text("mlx/lib/libmlx.so,sha256=abc,30\nmlx_cuda_12-0.99.0.dist-info/RECORD,,\n")
    bare_linux.syspath_prepend(str(tmp_path))
    bare_linux.setattr(blas, "has_gpu", lambda: True)
    bare_linux.setattr(openblas, "load_copy", lambda: True)
    advice = blas.load_openblas()
    if lies_there == "cuda":
        assert advice is None
    else:  # the last word is what scripts/setup.sh installs
        assert advice is not None and "GPU is not used" in advice and advice.split()[-1] == "mlx-cuda-12==0.99.0"


def test_a_program_that_imports_mlx_first_is_told_at_most_once() -> None:
    code = "import mlx.core, mlx_pixword, mlx_pixword.model.network; mlx_pixword.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = 1 if sys.platform == "linux" and not blas.has_gpu() else 0
    assert done.stderr.count("import mlx_pixword first") == expected
    assert done.stdout == ""


def test_threads_are_limited_only_where_openblas_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    library = type("Library", (), {
        "openblas_set_num_threads": staticmethod(calls.append), "openblas_get_num_threads": staticmethod(lambda: 4),
    })  # fmt: skip
    monkeypatch.setattr(blas, "_initial_threads", 0)
    for found in (None, library):
        monkeypatch.setattr(blas, "openblas", lambda found=found: found)
        blas.limit_threads(1)
    assert calls == [1]


def test_threads_come_back_to_what_they_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [3]
    library = type("Library", (), {
        "openblas_set_num_threads": staticmethod(lambda count: threads.append(count)),
        "openblas_get_num_threads": staticmethod(lambda: threads[-1]),
    })  # fmt: skip
    monkeypatch.setattr(blas, "openblas", lambda: library)
    monkeypatch.setattr(blas, "_initial_threads", 0)
    for count in (1, None, 2, None):
        blas.limit_threads(count)
    assert threads == [3, 1, 3, 2, 3]


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
