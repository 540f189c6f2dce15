"""Standard input and output of commands: other encodings, full disks and closed pipes end in one line or none."""

import io
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_pixword.common import streams
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.streams import read_input

ROOT = Path(__file__).parents[1]
WRITES = """
from mlx_pixword.common.cli import run_command
import sys
def main():
    print({text!r})
    sys.stderr.write("said\\n")
run_command(main)
"""


def run(
    text: str = "done", redirect: str = "", before: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = f'{before}"$0" -c "$1" {redirect}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, WRITES.format(text=text)], capture_output=True, check=False, cwd=ROOT,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "out"),
    [("ascii", rb"caf\xe9 \u65e5"), ("latin-1:strict", b"caf\xe9 \\u65e5"), ("utf-8", "café 日".encode())],
)
def test_text_that_an_encoding_lacks_is_escaped(encoding: str, out: bytes) -> None:
    done = run("café 日", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (0, out + b"\n", b"said\n")


def test_a_name_that_is_no_utf8_is_printed() -> None:
    assert run("caf\udce9").stdout == b"caf\\udce9\n"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "out"
    done = run(redirect=f"> {file}", before="ulimit -f 0; ")  # as a disk without room, on every system
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == b"error: standard output cannot be written: File too large"
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert run(redirect=f"2> {file}", before="ulimit -f 0; ").returncode == 0  # what cannot be said is dropped


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "| true; exit ${PIPESTATUS[0]}", "2>&1 | true"])
def test_closed_streams_leave_no_traceback(redirect: str) -> None:
    done = run("x" * 100_000, redirect)
    assert done.returncode in (0, 1) and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def python(program: str, *arguments: object, redirect: str) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", f'"$0" -c "$@" {redirect}', sys.executable, program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, cwd=ROOT)


def test_a_command_that_was_started_without_streams_spares_its_files(tmp_path: Path) -> None:
    """As services start programs: the next file would get the number of standard error, and complaints."""
    path = tmp_path / "weights"
    path.write_bytes(b"precious")
    program = """
import os, sys
from mlx_pixword.common.cli import run_command
def main():
    with open(sys.argv[1], "r+b") as file:
        os.write(2, b"a library complains")
        print(file.fileno() > 2)
run_command(main)
"""
    done = python(program, path, redirect="<&- 2>&-")
    assert (done.returncode, done.stdout, path.read_bytes()) == (0, b"True\n", b"precious")


def test_a_program_that_was_started_without_standard_input_reads_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((2, 3))})
    program = """
import sys, pathlib, mlx_pixword
from mlx_pixword.weights.safetensors import read_safetensors
print({name: array.shape for name, array in read_safetensors(pathlib.Path(sys.argv[1])).items()})
"""
    done = python(program, path, redirect="<&-")
    assert done.stdout == b"{'a': (2, 3)}\n", done.stderr


def test_advice_does_not_go_to_standard_output() -> None:
    done = run(redirect="2>&-", PIXWORD_BLAS="nonsense")
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_trouble_with_a_disk_names_the_path(tmp_path: Path) -> None:
    program = (
        "from mlx_pixword.common.cli import run_command\nimport errno, os\ndef main():\n    raise {}\nrun_command(main)"
    )
    full = program.format("OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/some/file')")
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot use /some/file: No space left on device")
    bug = program.format("OSError(errno.EINVAL, 'odd', '/some/file')")
    done = subprocess.run([sys.executable, "-c", bug], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" in done.stderr


def stdin_of(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


@pytest.mark.parametrize(
    "content",
    [
        "café\n".encode(),
        b"\xef\xbb\xbf" + "café\n".encode(),
        "café\n".encode("utf-16"),
        "café\n".encode("utf-32"),
        b"caf\xc3\xa9\r\n",
    ],
)
def test_input_in_unicode_is_read(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stdin_of(monkeypatch, content)
    assert read_input("--prompt -") == "café\n"


def test_input_in_the_terminals_own_encoding_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.locale, "getpreferredencoding", lambda _: "latin-1")
    stdin_of(monkeypatch, b"caf\xe9")
    assert read_input("--prompt -") == "café"


def test_input_in_another_encoding_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.locale, "getpreferredencoding", lambda _: "utf-8")
    stdin_of(monkeypatch, b"caf\xe9")
    with pytest.raises(PixWordError, match=r"^--prompt -: standard input is not valid UTF-8 at byte 3; convert it"):
        read_input("--prompt -")
    stdin_of(monkeypatch, "plain".encode("utf-16-le"))  # without its mark
    with pytest.raises(PixWordError, match=r"^--prompt -: standard input is not valid UTF-8 at byte 1; convert it"):
        read_input("--prompt -")


def test_endless_and_closed_input_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_INPUT", 10)
    stdin_of(monkeypatch, b"x" * 11)
    with pytest.raises(PixWordError, match="more than 10 bytes"):
        read_input("--prompt -")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PixWordError, match="standard input is closed"):
        read_input("--prompt -")
