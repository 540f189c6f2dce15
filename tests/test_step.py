"""One optimiser step: accumulation, streams, compilation and recomputation change nothing; settings count."""

import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.config.train import TrainArgs
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training import device as device_module
from mlx_pixword.training.device import recompute_layers
from mlx_pixword.training.optimizer import is_hidden_matrix, make_optimizer, make_schedule, zero_output_projections
from mlx_pixword.training.step import make_step
from mlx_pixword.weights.lora import adapter_config, add_adapters

Build = Callable[..., PixWordModel]
TOKENIZER = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], 300)


def batches(model: PixWordModel, split: int) -> list[Batch]:
    """The same eight plates as ``split`` micro-batches."""
    encoder, source = Encoder(model.args, TOKENIZER, SkipLog()), PlateSource()
    rows = [encoder(source.parts(n)) for n in range(8)]
    a = model.args
    return [collate(rows[n::split], a) for n in range(split)]


def trained(
    build: Build, split: int = 1, steps: int = 3, adapters: dict[str, Any] | None = None, **settings: Any
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Weights and losses after a few steps on the same plates; with ``adapters``, these alone are trained."""
    mx.random.seed(1)
    model = build(vocab_size=TOKENIZER.vocab_size)
    if adapters is not None:
        add_adapters(model, adapter_config(model, 2, 10.0, **adapters))
    args = TrainArgs(**{"steps": 10, "optimizer": "muon", "accumulate": split} | settings)
    recompute_layers(model, args)
    optimizer = make_optimizer(args)
    step, losses = make_step(model, optimizer, args), []
    for _ in range(steps):
        sums, norm = step(batches(model, split))
        mx.eval(model.state, optimizer.state, sums, norm)
        losses.append((sums.word_nats / sums.words).item())
    return {name: np.array(w) for name, w in dict(tree_flatten(model.parameters())).items()}, losses


@pytest.mark.parametrize(
    ("split", "settings"),
    [(4, {}), (4, {"streams": 1}), (2, {"streams": 2}), (1, {"grad_checkpoint": True}), (1, {"compile": "on"}),
     (2, {"compile": "on"}), (1, {"window_chunk": 2}), (2, {"window_chunk": 3, "streams": 1}),
     (1, {"window_chunk": 2, "grad_checkpoint": True}), (1, {"window_chunk": 4, "compile": "on"})],
)  # fmt: skip
def test_how_a_step_is_computed_changes_nothing(small_model: Build, split: int, settings: dict[str, Any]) -> None:
    expected, expected_losses = trained(small_model)
    weights, losses = trained(small_model, split, **settings)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name, weight in expected.items():
        assert np.abs(weights[name] - weight).max() < 2e-4, name


@pytest.mark.parametrize("image_block", [False, True])
@pytest.mark.parametrize(
    ("split", "settings"),
    [(2, {}), (2, {"grad_checkpoint": True}), (1, {"window_chunk": 2}), (2, {"window_chunk": 3, "streams": 2}),
     (2, {"window_chunk": 2, "grad_checkpoint": True}), (1, {"window_chunk": 4, "compile": "on"})],
)  # fmt: skip
def test_how_a_step_with_adapters_is_computed_changes_nothing(
    small_model: Build, split: int, settings: dict[str, Any], image_block: bool
) -> None:
    adapters, rates = {"image_block": image_block}, {"optimizer": "adamw", "learning_rate": 0.01, "warmup": 0}
    start, _ = trained(small_model, steps=0, adapters=adapters)
    expected, expected_losses = trained(small_model, adapters=adapters, **rates)
    weights, losses = trained(small_model, split, adapters=adapters, **rates, **settings)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name, weight in expected.items():
        assert np.abs(weights[name] - weight).max() < 2e-4, name
    trains = {name for name, weight in weights.items() if np.abs(weight - start[name]).max() > 1e-3}
    assert all("lora_" in name for name in trains)
    assert {name.split(".")[0] for name in trains} == ({"layers"} | ({"image_block", "head"} if image_block else set()))


@pytest.mark.parametrize("settings", [{}, {"window_chunk": 4}])
def test_dropout_of_a_compiled_step_is_another_one_in_every_step(small_model: Build, settings: dict[str, Any]) -> None:
    model = small_model(vocab_size=TOKENIZER.vocab_size, num_layers=1, image_layers=1)
    add_adapters(model, adapter_config(model, 2, 10.0, 0.5))
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape)
    args = TrainArgs(learning_rate=1e-30, warmup=0, compile="on", **settings)
    step, (batch,) = make_step(model, make_optimizer(args), args), batches(model, 1)
    nats = [step([batch])[0].word_nats.item() for _ in range(3)]
    assert len(set(nats)) == 3


def test_compilation_without_a_compiler_falls_back_with_a_notice(
    small_model: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device_module.shutil, "which", lambda _: None)
    monkeypatch.setattr(device_module.sys, "platform", "linux")
    _, losses = trained(small_model, steps=1, compile="on")
    assert np.isfinite(losses).all()
    assert capsys.readouterr().err.count("needs g++") == 1


def test_losses_fall_with_both_optimizers(small_model: Build) -> None:
    for optimizer in ("adamw", "muon"):
        _, losses = trained(small_model, steps=8, optimizer=optimizer, learning_rate=0.01, warmup=0)
        assert losses[-1] < 0.8 * losses[0]


def test_weights_of_the_parts_matter(small_model: Build) -> None:
    plain, _ = trained(small_model)
    for settings in ({"word_weight": 9.0}, {"boundary_weight": 0.0}):
        changed, _ = trained(small_model, **settings)
        assert any(np.abs(changed[name] - plain[name]).max() > 1e-6 for name in plain)


def test_clipping_bounds_the_gradient_of_plain_descent(small_model: Build) -> None:
    """The reported norm is the one before clipping, so it does not depend on the limit."""
    norms = []
    for limit in (1e-3, 1e3):
        mx.random.seed(1)
        model = small_model(vocab_size=TOKENIZER.vocab_size)
        args = TrainArgs(steps=10, clip_norm=limit)
        step = make_step(model, make_optimizer(args), args)
        norms.append(step(batches(model, 1))[1].item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_warms_up_and_decays(schedule: str) -> None:
    rate = make_schedule(0.5, TrainArgs(steps=100, warmup=10, schedule=schedule, final_fraction=0.1))
    rates = [float(rate(mx.array(n))) for n in range(101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(0.5) == rates[10]
    assert rates[100] == pytest.approx(0.05, abs=1e-6)
    assert all(a >= b - 1e-7 for a, b in itertools.pairwise(rates[10:]))


def test_a_stable_rate_falls_in_the_last_part_alone() -> None:
    rate = make_schedule(0.5, TrainArgs(steps=100, warmup=10, schedule="wsd", decay_share=0.25, final_fraction=0.1))
    rates = [float(rate(mx.array(n, mx.uint64))) for n in range(101)]  # the type of an optimiser's step
    assert rates[5] == pytest.approx(0.25) and rates[10:76] == pytest.approx([0.5] * 66)
    assert rates[75:] == pytest.approx(np.linspace(0.5, 0.05, 26).tolist(), abs=1e-6)
    longer = make_schedule(0.5, TrainArgs(steps=1000, warmup=10, schedule="wsd", decay_share=0.25, final_fraction=0.1))
    assert [float(longer(mx.array(n, mx.uint64))) for n in range(75)] == rates[:75]  # it can be ended early


def test_a_short_run_still_warms_up_and_ends_low() -> None:
    rate = make_schedule(1.0, TrainArgs(steps=3, warmup=100))
    assert float(rate(mx.array(0))) == pytest.approx(1.0)  # a tenth of three steps is none
    assert float(rate(mx.array(3))) < 0.05


def test_zero_outputs_make_layers_the_identity(small_model: Build) -> None:
    model = small_model(factored_colors=True)
    zero_output_projections(model)
    x = mx.random.normal((1, 5, 32))
    rotary = mx.zeros((2, 5, 4))
    assert mx.array_equal(model.layers[0](x, rotary, "causal"), x)
    assert not np.array(model.logits(x)).any()


def test_muon_takes_the_hidden_matrices_and_nothing_else(small_model: Build) -> None:
    names = dict(tree_flatten(small_model(factored_colors=True).parameters()))
    hidden = {name for name in names if is_hidden_matrix(name)}
    assert len(hidden) == 4 * 7  # four layers of seven projections
    assert not any(word in name for name in hidden for word in ("norm", "embed", "head", "factors"))


@pytest.mark.parametrize(
    ("compile_", "device", "expected"),
    [("off", mx.gpu, True), ("auto", mx.cpu, True), ("auto", mx.gpu, False), ("on", mx.cpu, False)],
)
def test_batches_are_padded_only_where_a_step_is_compiled_for_their_size(
    compile_: str, device: mx.DeviceType, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module.mx, "default_device", lambda: mx.Device(device, 0))
    assert device_module.takes_any_size(TrainArgs(compile=compile_)) == expected


def test_micro_batches_beyond_the_streams_are_not_held_at_once(small_model: Build) -> None:
    peaks = []
    for split in (2, 8):
        model = small_model(vocab_size=TOKENIZER.vocab_size)
        args = TrainArgs(accumulate=split, streams=1, compile="off")
        optimizer = make_optimizer(args)
        step, parts = make_step(model, optimizer, args), batches(model, 1) * split
        mx.eval(model.parameters(), [part.arrays() for part in parts])
        mx.reset_peak_memory()
        start = mx.get_active_memory()
        mx.eval(step(parts), model.state, optimizer.state)
        peaks.append(mx.get_peak_memory() - start)
    assert peaks[1] < 1.5 * peaks[0]
