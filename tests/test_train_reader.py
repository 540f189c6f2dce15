"""The recipe of the reader trains for a time, cools down a copy, calibrates, ships, and goes on; each run is small."""

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import PRESETS
from mlx_pixword.evaluation.calibrate import fit_calibration
from mlx_pixword.evaluation.scores import calibration_error
from mlx_pixword.model.calibration import Calibration
from mlx_pixword.weights.directory import load
from mlx_pixword.weights.safetensors import read_safetensors

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_reader.py"
SMALL = {
    "image_size": 48, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "num_layers": 1, "intermediate_size": 32,
    "max_seq_len": 256, "text_heights": "5-9", "text_length": 3, "text_curriculum": 0, "text_kinds": "numbers,words",
    "batch_tokens": 128, "group_size": 16, "eval_documents": 4, "eval_every": 5, "threads": 1, "warmup": 2,
    "streams": 1, "sample_images": 0,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., None]:
    main = runpy.run_path(str(SCRIPT))["main"]
    (tmp_path / "words").write_text("one\ntwo\nsix\nten\nred\nsun\nmap\nbox\ncat\ndog\nyes\nnot\nbig\nfun\ntop\nold\n")
    given = ["--out", tmp_path / "run", "--words", tmp_path / "words", "--target", tmp_path / "shipped"]
    given += ["--fonts", Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf", "--crops", 100]
    given += ["--record", tmp_path / "results" / "reader.json"]

    def run(*arguments: Any, **changes: Any) -> None:
        values = SMALL | changes if not (tmp_path / "run").exists() else changes
        pairs = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        main([str(word) for word in (*given, *arguments, *pairs)])

    return run


def test_a_run_of_some_seconds_is_shipped_and_goes_on(
    recipe: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe("--minutes", 0.02, "--cooldown", 4, steps=100_000)
    record = json.loads((tmp_path / "results" / "reader.json").read_text())
    steps = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert record["steps"] == 5 * steps  # of the copy
    assert record["minutes"] > 0 and record["curve"][-1]["step"] == record["steps"]
    metrics = (tmp_path / "run" / f"cooldown-{steps}" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rate"] for line in metrics if "learning_rate" in line]
    assert 0 < rates[-1] < 0.5 * PRESETS["reader"]["learning_rate"]

    model, _ = load(tmp_path / "shipped")
    assert model.calibration == Calibration(**record["calibration"]) != Calibration()
    assert {array.dtype for array in read_safetensors(tmp_path / "shipped" / "model.safetensors").values()} == {
        mx.float16
    }
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "dejavu sans | Bitstream Vera" in card and "held-out" in card and "expected_calibration_error" in card
    assert "expected_calibration_error" in capsys.readouterr().out
    assert 0 <= record["scores"]["confident_without_text"] <= 1
    assert str(tmp_path) not in (tmp_path / "results" / "reader.json").read_text() + card

    recipe("--minutes", 0.02, "--no-ship")  # its own settings are in its folder
    assert max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir()) > steps
    before = (tmp_path / "shipped" / "model.safetensors").read_bytes()
    recipe("--no-train")
    assert (tmp_path / "shipped" / "model.safetensors").read_bytes() != before
    assert len(list((tmp_path / "run").glob("cooldown-*"))) == 1


def test_a_run_that_came_to_its_end_is_shipped_as_it_is(recipe: Callable[..., None], tmp_path: Path) -> None:
    recipe(steps=4)
    assert not list((tmp_path / "run").glob("cooldown-*"))
    weights = read_safetensors(tmp_path / "run" / "final" / "model.safetensors")
    shipped = read_safetensors(tmp_path / "shipped" / "model.safetensors")
    assert weights.keys() == shipped.keys()
    assert all(mx.array_equal(array.astype(mx.float16), shipped[name]) for name, array in weights.items())


def test_a_lost_run_starts_from_what_was_shipped(recipe: Callable[..., None], tmp_path: Path) -> None:
    recipe(steps=2)
    shipped = tmp_path / "shipped"
    (tmp_path / "run").rename(tmp_path / "lost")
    recipe("--init", shipped, "--no-ship", steps=1, learning_rate=1e-9, muon_learning_rate=1e-9)
    first, second = load(shipped)[0], load(tmp_path / "run" / "final")[0]
    assert mx.allclose(first.head.weight, second.head.weight, atol=1e-3)


def test_mistakes(recipe: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(PixWordError, match="no checkpoint to ship"):
        recipe("--no-train")
    with pytest.raises(PixWordError, match="unknown key 'stepz'"):
        recipe(stepz=3)
    with pytest.raises(PixWordError, match="trained on built-in text alone"):
        recipe(steps=1, data='["plates"]')
    (tmp_path / "words").unlink()
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(PixWordError, match="apt-get install wamerican"):
        recipe()


# --- calibration ------------------------------------------------------------------------------------------------------


def test_a_calibration_finds_the_line_that_readings_were_drawn_from(rng: np.random.Generator) -> None:
    true = Calibration(0.6, -0.8)
    logs = np.log(rng.uniform(0.01, 0.999, 20000))
    right = [bool(rng.random() < true(value)) for value in logs]
    found = fit_calibration(logs.tolist(), right)
    assert (found.slope, found.offset) == (pytest.approx(0.6, abs=0.03), pytest.approx(-0.8, abs=0.05))
    assert calibration_error([found(value) for value in logs], right) < 0.015
    assert calibration_error([math.exp(value) for value in logs], right) > 0.1


@pytest.mark.parametrize("right", [True, False])
def test_readings_that_are_all_right_or_wrong_give_a_finite_line(right: bool) -> None:
    found = fit_calibration(np.linspace(-800, -1e-12, 50).tolist(), [right] * 50)
    assert math.isfinite(found.slope) and math.isfinite(found.offset)
    assert (found(-0.1) > 0.9) == right


def test_a_separable_set_gives_a_finite_line_in_order() -> None:
    logs = np.linspace(-20, -0.001, 40)
    found = fit_calibration(logs.tolist(), (logs > -3).tolist())
    assert found(-0.01) > 0.9 and found(-15) < 0.1 and found.slope > 0


def test_readings_in_the_wrong_order_get_one_confidence() -> None:
    logs = [-3.0] * 40 + [-0.05] * 40
    found = fit_calibration(logs, [True] * 40 + [False] * 40)
    assert found.slope == 0 and found(-1.0) == pytest.approx(0.5, abs=0.02)


def test_few_readings_are_no_calibration() -> None:
    with pytest.raises(PixWordError, match="at least 20 readings, got 3"):
        fit_calibration([-1.0] * 3, [True] * 3)
