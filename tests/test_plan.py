"""`plan` as a user meets it: the table, the JSON, one line for every mistake; and the roofline behind it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_pixword import plan
from mlx_pixword.common.cli import run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import PRESETS, make_config
from mlx_pixword.model.args import parameters
from mlx_pixword.planning.chips import CHIPS, Rates, Work, find_chip
from mlx_pixword.planning.table import binary, duration, prefixed, two_digits

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(capsys: Capture) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    """The printed table and the JSON of a command line."""

    def call(*arguments: object) -> tuple[list[str], dict[str, Any]]:
        plan.main([*map(str, arguments)])
        *lines, last = capsys.readouterr().out.splitlines()
        return lines, json.loads(last)

    return call


def mistake(capsys: Capture, *arguments: object) -> str:
    """Run a command line that must exit 2; gives its one line."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: plan.main([*map(str, arguments)]))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


# --- chips and the roofline -------------------------------------------------------------------------------------------


def test_chips_are_named_as_the_option_takes_them() -> None:
    assert len(CHIPS) == 15
    assert find_chip("M3-Ultra").name == "M3 Ultra" and find_chip("m1") is CHIPS["m1"]
    for chip in CHIPS.values():
        assert 2 < chip.tflops < 40 and 60 < chip.bandwidth < 900 and chip.gpu_bytes < chip.memory * 2**30


@pytest.mark.parametrize(
    ("work", "seconds", "bound"),
    [
        (Work(2.6e12, 0, 0), 2.5, "compute"),
        (Work(2.6e12, 68e9 * 2, 0), 4.0, "bandwidth"),
        (Work(2.6e12, 68e9, 1e6), 5.0, "kernels"),
    ],
)
def test_the_slowest_of_three_bounds_counts(work: Work, seconds: float, bound: str) -> None:
    assert find_chip("m1").seconds(work, Rates(0.4, 0.5, 5e-6)) == (pytest.approx(seconds), bound)
    assert work.plus(work, 2) == tuple(3 * value for value in work)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_is_readable_and_says_what_is_estimated(
    run: Callable[..., tuple[list[str], dict[str, Any]]], preset: str
) -> None:
    lines, result = run("--preset", preset, "--chip", "m2-pro")
    assert max(map(len, lines)) <= 100
    assert result["parameters"] == parameters(make_config({"preset": preset}).model)
    (heading,) = [n for n, line in enumerate(lines) if line.startswith("ESTIMATED TIMES")]
    assert "Nothing has ever been measured on Apple hardware" in lines[heading]
    times = [line for line in lines[heading + 2 :] if line.startswith(("training", "drawing"))]
    assert len(times) == 4 and all("  estimated " in line for line in times)
    unmarked = ("seconds", "a_second", "bound")
    assert all(name.startswith("estimated") for name in result if name.endswith(unmarked))


def test_times_follow_the_chip_and_what_is_assumed(run: Callable[..., tuple[list[str], dict[str, Any]]]) -> None:
    paper = ("--preset", "upw-120m", "--chip")
    slow, fast = run(*paper, "m1")[1], run(*paper, "m1-max")[1]
    assert slow["estimated_training_bound"] == "compute"
    assert slow["estimated_training_seconds"] == pytest.approx(4 * fast["estimated_training_seconds"])
    half = run(*paper, "m1", "--efficiency", 0.2, "--images", 10)[1]
    assert half["estimated_training_seconds_an_image"] == 2 * slow["estimated_training_seconds_an_image"]
    assert half["estimated_training_seconds"] == pytest.approx(10 * half["estimated_training_seconds_an_image"])
    idle = run(*paper, "m1-max", "--kernel-us", 0)[1]["estimated_drawing"]
    assert [row["bound"] for row in fast["estimated_drawing"]] == ["kernels"] * 2
    assert idle[0]["bound"] == "bandwidth" and idle[0]["seconds"] < fast["estimated_drawing"][0]["seconds"]


def test_settings_change_the_counts(run: Callable[..., tuple[list[str], dict[str, Any]]], tmp_path: Path) -> None:
    plain = run("--preset", "upw-120m", "--chip", "m4")[1]
    assert (plain["windows"], plain["elements"], plain["query_pixels"], plain["images_a_step"]) == (196, 199, 0, 32)
    dense = run("--preset", "upw-120m", "--chip", "m4", "--pixel-queries", 4, "--words", 10)[1]
    assert (dense["elements"], dense["query_pixels"], dense["words"]) == (209, 784, 10)
    assert dense["image_block_flops"] > plain["image_block_flops"] and dense["query_pixels_flops"] > 0
    file = tmp_path / "big.yaml"
    file.write_text("preset: upw-120m\nimage_size: 64\noptimizer: muon\nwindow_chunk: 0\ngrad_checkpoint: false\n")
    small = run("--config", file, "--chip", "m4")[1]
    assert (small["preset"], small["image_size"], small["optimizer"]) == ("upw-120m", 64, "muon")
    assert not small["recomputes"] and small["images_a_step"] == 3 * 32  # 19 elements each, 64 a micro-batch
    assert small["memory"]["total"] == small["memory"]["without_recomputation"]
    large = run("--config", file, "--chip", "m4", "--image-size", 448, "--draw-size", "20X10")[1]
    assert (large["windows"], large["draw_width"], large["draw_height"]) == (784, 20, 10)
    assert large["full_attention_pairs"] == 448**4 // 2


def test_it_says_when_training_does_not_fit(
    run: Callable[..., tuple[list[str], dict[str, Any]]], tmp_path: Path
) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text("preset: upw-120m\nwindow_chunk: 0\ngrad_checkpoint: false\n")
    lines, result = run("--config", file, "--chip", "m1")
    assert not result["fits"] and any("does NOT fit 16 GB" in line for line in lines)
    lines, result = run("--preset", "upw-120m", "--chip", "m1")
    assert result["fits"] and any(line.strip().startswith("fits 16 GB") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--chip", "m4-ultra"), "error: --chip: there is no M4 Ultra; choose one of m1, m1-pro, "),
        (("--chip", "m9"), "error: --chip: 'm9' is not known; choose one of m1, "),
        ((), "the following arguments are required: --chip"),
        (("--chip", "m1", "--preset", "huge"), "invalid choice: 'huge'"),
        (("--chip", "m1", "--images", 0), "--images must be positive and --words not negative, got 0 and 0"),
        (
            ("--chip", "m1", "--efficiency", 1.5),
            "above 0 and at most 1, and --kernel-us not negative, got 1.5, 0.7 and",
        ),
        (("--chip", "m1", "--kernel-us", "nan"), "got 0.4, 0.7 and nan"),
        (("--chip", "m1", "--words", 300), "max_seq_len 512 leaves room for 253 words, got 300"),
        (("--chip", "m1", "--image-size", 62), "image size must be a positive multiple of the window size, got image"),
        (("--chip", "m1", "--image-size", 128), "has up to 1024 windows of 4 px, max_seq_len 512 holds 509; raise"),
        (
            ("--chip", "m1", "--draw-size", "12"),
            "two positive integers such as 28x12 and more than one pixel, got '12'",
        ),
        (("--chip", "m1", "--draw-size", "1x1"), "and more than one pixel, got '1x1'"),
        (("--chip", "m1", "--draw-size", "200x200"), "a 200x200 image has 2500 windows"),
        (("--chip", "m1", "--config", "nothing.yaml"), "--config nothing.yaml: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(capsys: Capture, arguments: tuple[object, ...], found: str) -> None:
    assert found in mistake(capsys, *arguments)


def test_a_plan_from_python() -> None:
    result = plan.plan(plan.PlanArgs(chip="m4"))
    assert result["preset"] == "tiny" and result["fits"]
    with pytest.raises(PixWordError, match="there is no M4 Ultra"):
        plan.plan(plan.PlanArgs(chip="m4-ultra"))


def test_the_page_shows_what_is_printed(run: Callable[..., tuple[list[str], dict[str, Any]]]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plan.md").read_text(encoding="utf-8")
    example = re.search(r"```bash\npython -m mlx_pixword.plan (.*)\n```\n\n```text\n(.*?)\n```", page, re.DOTALL)
    assert example is not None
    assert run(*example[1].split())[0] == example[2].splitlines()
    for name in ("efficiency", "bandwidth_efficiency", "kernel_us"):
        (default,) = re.findall(rf"^\|.*\| `{name}` \| (\S+) \|$", page, re.MULTILINE)
        assert getattr(plan.PlanArgs(), name) == float(default)


# --- units ------------------------------------------------------------------------------------------------------------


def test_units() -> None:
    assert [prefixed(v) for v in (0, 7, 999, 999.7, 12_345, 3.0177e12)] == [
        "0.00 ", "7.00 ", "999 ", "1.00 k", "12.3 k", "3.02 T",
    ]  # fmt: skip
    assert [binary(v) for v in (2**20, 483.1 * 2**20, 3 * 2**30)] == ["1.0 MiB", "483 MiB", "3.0 GiB"]
    assert [duration(v) for v in (3e-7, 0.0085, 59.9, 90, 86400 * 174, 4e9)] == [
        "0.3 us", "8.5 ms", "60 s", "1.5 min", "170 days", "130 years",
    ]  # fmt: skip
    assert [two_digits(v) for v in (1.23, 12.3, 9.96, 3636.4)] == ["1.2", "12", "10", "3,600"]
