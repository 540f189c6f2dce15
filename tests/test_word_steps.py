"""Words by token steps of NumPy are those of MLX, and weights are laid out again when they change."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_pixword.inference import word_steps
from mlx_pixword.inference.settings import SampleArgs
from mlx_pixword.inference.word_steps import WordSteps, laid_out, numpy_pays
from mlx_pixword.inference.words import generate_words
from mlx_pixword.inputs.processor import Part, Processor
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]
SHAPES: list[dict[str, Any]] = [
    {},
    {"qk_norm": True, "factored_colors": True},
    {"positions": "grid", "summary": "concat", "image_hidden_size": 16, "image_num_heads": 2, "image_layers": 1},
    {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 4, "rms_norm_eps": 0.1},
    {"attention_bias": True, "rope_scaling": "none", "head_dim": 12},
    {"qk_norm": True, "qk_norm_weights": True, "rope_scaling": "linear", "rope_factor": 2.0},
    {"no_rope_every": 2, "num_layers": 3},
]


def documents(rng: np.random.Generator) -> list[list[Part]]:
    sizes = [(9, 6), (1, 1), (16, 13)]
    return [[rng.integers(0, 256, (*size, 3), dtype=np.uint8), list(rng.integers(6, 12, 2))] for size in sizes]


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_are_those_of_whole_forward_passes(
    small_model: Build, rng: np.random.Generator, changes: dict[str, Any]
) -> None:
    model = small_model(**changes)
    for _, module in model.named_modules():
        if isinstance(module, nn.RMSNorm):
            module.weight = mx.random.uniform(0.5, 2, module.weight.shape)
    processor, rows = Processor(model.args), documents(rng)
    steps, words = WordSteps(model, processor.batch(rows), 5), list[list[int]]()
    for _ in range(6):
        for n, row in enumerate(rows):
            put = [word[n] for word in words]
            whole = model(processor([*row, put] if put else row))
            expected = np.array(whole)[0, -1, : model.args.vocab_size]
            assert steps.logits[n] == pytest.approx(expected, abs=2e-5)
        words.append(rng.integers(6, 12, len(rows)).tolist())
        if len(words) < 6:
            steps.put(words[-1])


@pytest.mark.parametrize("sampling", [{}, {"temp": 1.5, "seed": 3}, {"repetition_penalty": 1.7}])
def test_words_and_probabilities_are_those_of_mlx(
    small_model: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    model = small_model()
    batch, args = Processor(model.args).batch(documents(rng)), SampleArgs(max_tokens=8, **sampling)
    assert numpy_pays(model)
    found = list(generate_words(model, batch, args))
    monkeypatch.setattr(word_steps, "SMALL", 0)
    assert not numpy_pays(model)
    expected = list(generate_words(model, batch, args))
    assert [step.words for step in found] == [step.words for step in expected]
    assert [step.last for step in found] == [False] * 7 + [True]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)


def test_weights_are_laid_out_once_and_again_when_they_change(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = Processor(model.args).batch(documents(rng))
    first = WordSteps(model, batch, 1)
    assert laid_out(model, first._steps) is first._laid_out is WordSteps(model, batch, 1)._laid_out
    model.layers[1].ffn.down_proj.weight = 2 * model.layers[1].ffn.down_proj.weight
    second = WordSteps(model, batch, 1)
    assert second._laid_out is not first._laid_out
    for steps in (first, second):
        steps.put([7, 8, 9])
    assert np.abs(first.logits - second.logits).max() > 1e-3


def test_quantised_models_and_large_or_half_ones(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    nn.quantize(model, group_size=32, bits=8)
    processor, row = Processor(model.args), documents(rng)[0]
    steps = WordSteps(model, processor([*row]), 1)
    steps.put([7])
    expected = np.array(model(processor([*row, [7]])))[0, -1, : model.args.vocab_size]
    assert steps.logits[0] == pytest.approx(expected, abs=1e-3)
    assert not numpy_pays(small_model(dtype="float16"))
