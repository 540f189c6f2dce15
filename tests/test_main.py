"""The front door: `python -m mlx_pixword`, `--version`, and the scripts that pip installs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_pixword as pw
from mlx_pixword.__main__ import COMMANDS, console, main

PACKAGE = Path(pw.__file__).parent
PYPROJECT = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")


def test_every_command_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +{re.escape(text)}$", shown, re.MULTILINE) for name, text in COMMANDS.items())
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(COMMANDS) == modules


def test_scripts_are_the_commands() -> None:
    scripts = re.findall(r'^"(mlx_pixword[.\w]*)" = "mlx_pixword.__main__:console"$', PYPROJECT, re.MULTILINE)
    assert scripts == ["mlx_pixword", *(f"mlx_pixword.{name}" for name in COMMANDS)]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_tells_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*([name] if name else []), "--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"mlx-pixword {pw.__version__}\n"


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["reed"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and "'reed'" in error and "generate" in error


@pytest.mark.parametrize(("script", "begins"), [("mlx_pixword.plan", "--chip CHIP"), ("mlx_pixword", "generate  ")])
def test_a_script_runs_its_command(
    script: str, begins: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{script}", "--help"])
    with pytest.raises(SystemExit) as caught:
        console()
    assert caught.value.code == 0 and begins in capsys.readouterr().out


def test_help_is_quick() -> None:
    command = [sys.executable, "-c", TIMED]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stderr) for _ in range(5)]
    assert min(seconds) < 0.5  # of processor time, which other work on the machine does not take


TIMED = """
import sys, time
start = time.process_time()
from mlx_pixword.__main__ import main
try:
    main(["generate", "--help"])
except SystemExit:
    print(time.process_time() - start, file=sys.stderr)
"""
