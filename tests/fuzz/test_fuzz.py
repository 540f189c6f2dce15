"""A short, seeded run of every fuzz target, and the tools themselves: judging, editing, and the command."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import Finding, Target, broken, judge, mutant, random_edits
from hypothesis import HealthCheck, Phase, given, settings, strategies
from run import TARGETS, FuzzArgs, Session, choose, load_target

from mlx_pixword.common.errors import PixWordError

ROOT = Path(__file__).parents[2]
EXAMPLES = {"images": 200, "texts": 100, "tables": 150, "parquet": 100, "models": 60, "yaml": 60, "archives": 150}


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken(name: str) -> None:
    target = load_target(name)
    assert [judge(target, seed) for seed in target.seeds()] == [None] * len(target.seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_broken_inputs_are_taken_or_refused(name: str) -> None:
    target, reasons = load_target(name), list[str | None]()

    @settings(
        max_examples=EXAMPLES[name], derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategies.sampled_from(target.seeds()), strategies.integers(0, 2**32))
    def give(seed: bytes, number: int) -> None:
        reasons.append(judge(target, mutant(target, seed, random.Random(number))))

    give()
    assert None in reasons and len(set(reasons)) > 5  # some are taken, and many doors are tried


# --- tools ------------------------------------------------------------------------------------------------------------


def target(check: Callable[[bytes], object], **limits: float) -> Target:
    return Target("made", lambda: [b"good"], check, **limits)  # type: ignore[arg-type]


def raising(error: BaseException) -> Callable[[bytes], object]:
    def check(_data: bytes) -> None:
        raise error

    return check


def test_answers_that_are_allowed() -> None:
    assert judge(target(len), b"x") is None
    assert judge(target(raising(PixWordError("a.txt: no"))), b"x") == "a.txt: no"


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (KeyError("x"), "KeyError at test_fuzz.py:check"),
        (SystemExit(1), "SystemExit at"),
        (PixWordError("two\nlines"), "lines, PixWordError"),
        (PixWordError(""), "lines, PixWordError"),
        (PixWordError("x" * 9999), "length, PixWordError"),
        (Finding("words", "odd"), "words"),
    ],
)
def test_anything_else_is_found(error: BaseException, place: str) -> None:
    with pytest.raises(Finding) as caught:
        judge(target(raising(error)), b"x")
    assert caught.value.place.startswith(place)


def busy(_data: bytes) -> None:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


def test_slow_and_large_answers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Finding, match=r"^slow: 0\.\d s, the limit is 0\.1"):
        judge(target(busy, seconds=0.1), b"x")
    peaks = iter((2**20, 2**21))
    monkeypatch.setattr("fuzzing._peak", lambda: next(peaks))
    with pytest.raises(Finding, match=r"^large: 1,048,576 bytes, the limit is 1,024"):
        judge(target(len, memory=2**10), b"x")


def test_edits_break_and_are_the_same_again() -> None:
    seed, rng = bytes(range(256)) * 4, random.Random(0)
    edits = [random_edits(rng) for _ in range(200)]
    copies = [broken(seed, some, (b"word",)) for some in edits]
    assert copies == [broken(seed, some, (b"word",)) for some in edits]
    assert len(set(copies)) > 190 and seed not in copies[:3]
    assert any(b"word" in copy for copy in copies) and len({len(copy) for copy in copies}) > 50
    assert broken(seed, []) == seed
    assert all(isinstance(broken(b"", some, (b"word",)), bytes) for some in edits)


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tests/fuzz/run.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_fuzzes_for_a_while(tmp_path: Path) -> None:
    done = run("--target", "yaml", "--minutes", "0.02", "--engine", "hypothesis", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("yaml, hypothesis: ") and " taken, " in done.stdout and "0 findings" in done.stdout
    assert sorted(path.name for path in (tmp_path / "yaml").iterdir()) == ["log", "slowest"]


@pytest.mark.parametrize("arguments", [("--minutes", 0), ("--minutes", "nan"), ("--seed", -1), ("--target", "nothing")])
def test_mistakes_are_one_line(arguments: tuple[object, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_an_engine_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "atheris" else name)
    assert choose("auto") == "hypothesis" == choose("hypothesis")
    with pytest.raises(PixWordError, match="no atheris here"):
        choose("atheris")


def test_findings_are_kept_once_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = Session(FuzzArgs(out=tmp_path), target(raising(KeyError("x"))), "hypothesis")
    session.give(b"one")
    session.give(b"two")
    assert session.report() == 1
    shown = capfd.readouterr().out
    assert "2 inputs" in shown and "1 findings" in shown and "2 x KeyError at" in shown
    kept = [path.read_bytes() for path in (tmp_path / "made").iterdir() if path.name not in ("log", "slowest")]
    assert kept == [b"one"]
