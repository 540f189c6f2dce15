"""Numbers that are none: no update is made, the run says where, and float16 finds its loss scale."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from run_files import train, untimed

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training import device as device_module
from mlx_pixword.training import loss_scale, trainer
from mlx_pixword.training.checkpoint import read_checkpoint
from mlx_pixword.training.device import bound_cache
from mlx_pixword.training.loss_scale import LossScale, names_of, some_of
from mlx_pixword.training.optimizer import make_optimizer
from mlx_pixword.training.step import is_finite, make_step

Build = Callable[..., PixWordModel]
TOKENIZER = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], 300)


def plates(model: PixWordModel, count: int = 4) -> Batch:
    encoder, source = Encoder(model.args, TOKENIZER, SkipLog()), PlateSource()
    rows = [encoder(source.parts(n)) for n in range(count)]
    a = model.args
    return collate(rows, a, pixel_queries=2)


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in dict(tree_flatten(tree)).items()}


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"compile": "on"}, {"window_chunk": 2}])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(small_model: Build, settings: dict[str, Any], poison: float) -> None:
    model = small_model(vocab_size=TOKENIZER.vocab_size)
    args = TrainArgs(**{"steps": 10, "warmup": 0, "optimizer": "muon"} | settings)
    optimizer = make_optimizer(args)
    step, good = make_step(model, optimizer, args), plates(model)
    bad = replace(good, query_weights=good.query_weights * poison)
    assert is_finite(*step([good]))
    mx.eval(model.state, optimizer.state)
    before = flat(model.parameters()) | flat(optimizer.state)
    assert not is_finite(*step([bad]))
    assert not is_finite(*step([good, bad]))
    mx.eval(model.state, optimizer.state)
    after = flat(model.parameters()) | flat(optimizer.state)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert is_finite(*step([good]))
    mx.eval(model.state, optimizer.state)
    assert any(not np.array_equal(before[name], value) for name, value in flat(model.parameters()).items())


def test_a_scaled_loss_gives_the_same_step(small_model: Build) -> None:
    results = []
    for scale in (1.0, 2.0**16):
        mx.random.seed(1)
        model = small_model(vocab_size=TOKENIZER.vocab_size)
        args = TrainArgs(steps=10, warmup=0)
        optimizer = make_optimizer(args)
        sums, norm = make_step(model, optimizer, args, LossScale(scale))([plates(model)])
        results.append((flat(model.parameters()), norm.item(), sums.word_nats.item()))
    (one, norm, nats), (two, other_norm, other_nats) = results
    assert norm == pytest.approx(other_norm, rel=1e-6) and nats == other_nats
    assert all(np.allclose(one[name], two[name], atol=1e-7) for name in one)


def gradient_norm(build: Build, dtype: str, scale: float) -> float:
    mx.random.seed(1)
    model = build(vocab_size=TOKENIZER.vocab_size, dtype=dtype)
    args = TrainArgs(steps=10, word_weight=1e-6, boundary_weight=1e-6, dense_weight=1e-6)  # as a long batch has them
    _, norm = make_step(model, make_optimizer(args), args, LossScale(scale))([plates(model)])
    return float(norm.item())


def test_float16_loses_small_gradients_without_a_scale(small_model: Build) -> None:
    expected = gradient_norm(small_model, "float32", 1.0)
    lost, kept = (gradient_norm(small_model, "float16", scale) for scale in (1.0, 2.0**16))
    assert kept == pytest.approx(expected, rel=0.01)
    assert abs(lost - expected) > 0.05 * expected


def test_the_scale_halves_until_nothing_overflows_and_doubles_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    scale = LossScale.of(mx.float16, 4.0, 0)
    told = [
        (scale.after(finite), scale.value) for finite in (False, True, True, True, True, False, False, False, False)
    ]
    values = [value for _, value in told]
    assert values == [2.0, 2.0, 2.0, 4.0, 4.0, 2.0, 1.0, 1.0, 1.0]
    assert [overflow for overflow, _ in told] == [True, False, False, False, False, True, True, False, False]


def test_other_types_are_not_scaled() -> None:
    for dtype in (mx.float32, mx.bfloat16):
        scale = LossScale.of(dtype, None, 0)
        assert not scale.after(False) and not any(scale.after(True) for _ in range(2000)) and scale.value == 1
    assert LossScale.of(mx.float16, None, 0).value == loss_scale.FIRST_SCALE


def test_documents_are_named_once_and_few_in_a_message(small_model: Build) -> None:
    batch = plates(small_model(vocab_size=TOKENIZER.vocab_size))
    assert names_of([batch, batch]) == [""]
    assert some_of("abc") == "a, b, c" and some_of("abcdefgh") == "a, b, c, d, e and 3 more"


# --- a run ------------------------------------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Spoil the batches of these steps, by their place in the data."""

    def spoil(*args: Any, seed: tuple[int, ...], **options: Any) -> Batch:
        batch = collate(*args, seed=seed, **options)
        places.setdefault(seed, len(places) + 1)
        return replace(batch, query_weights=batch.query_weights * (mx.nan if places[seed] in steps else 1.0))

    places: dict[tuple[int, ...], int] = {}
    monkeypatch.setattr(trainer, "collate", spoil)


def test_a_bad_batch_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, 3)
    metrics = [m for m in train(tmp_path / "run", "--log-every", 2, steps=6) if "nonfinite" in m]
    assert [m["nonfinite"] for m in metrics] == [0, 1, 1]
    assert all(np.isfinite(m["dense_loss"]) for m in metrics)
    (line,) = [json.loads(line) for line in (tmp_path / "run/nonfinite.jsonl").read_text().splitlines()]
    assert line["step"] == 3 and line["documents"][0].startswith("built-in plates, document ")
    error = capsys.readouterr().err
    assert "step 3: the loss or its gradient is not finite, with built-in plates, document" in error


def test_too_many_in_a_row_end_the_run_with_a_checkpoint_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "whole", steps=8)
    poisoned(monkeypatch, 2, 4, 5, 6)
    with pytest.raises(PixWordError, match=r"^step 6: .* 3 steps in a row, .*nonfinite.jsonl; checkpoints/step-3 is"):
        train(tmp_path / "run", "--max-nonfinite", 3, "--save-every", 5, steps=8)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]
    monkeypatch.undo()
    metrics = train(tmp_path / "run", "--resume", steps=8)
    assert [m["step"] for m in metrics] == [m["step"] for m in whole]
    assert [m["nonfinite"] for m in metrics if "nonfinite" in m] == [0, 1, 1, 1, 1, 1, 1, 1]


def test_a_run_that_explodes_ends(tmp_path: Path) -> None:
    with pytest.raises(PixWordError, match="lower --learning-rate"):
        train(tmp_path / "run", "--learning-rate", 1e36, "--max-nonfinite", 2, "--optimizer", "adamw", steps=30)


def test_a_run_in_float16_resumes_with_its_scale(tmp_path: Path) -> None:
    flags = ["--dtype", "float16", "--save-every", 2]
    train(tmp_path / "whole", *flags, steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-4")
    train(tmp_path / "cut", *flags, "--resume", steps=4)
    whole, cut = (read_checkpoint(tmp_path / name / "checkpoints/step-4").progress for name in ("whole", "cut"))
    assert whole.scale and (whole.scale, whole.scale_age) == (cut.scale, cut.scale_age)
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_told(tmp_path: Path) -> None:
    metrics = train(tmp_path / "run", steps=1)[0]
    assert 0 < metrics["active_gb"] <= metrics["peak_gb"] < 10


def test_what_mlx_keeps_is_bounded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(device_module.mx, "set_cache_limit", limits.append)
    bound_cache(TrainArgs(free_memory_gb=0.5))
    monkeypatch.setattr(device_module.mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    bound_cache(TrainArgs(free_memory_gb=0.5))
    assert limits == [500_000_000]
