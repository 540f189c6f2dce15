"""Adapters (LoRA): files that come back, fuse and are read by mlx-lm, and those of another model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.directory import save_model
from mlx_pixword.weights.lora import adapter_config, adapter_weights, add_adapters, fuse, load_adapters, save_adapters
from mlx_pixword.weights.quantized import quantize_model

Build = Callable[..., PixWordModel]


def weights_of(model: PixWordModel) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def adapted(model: PixWordModel, **options: Any) -> tuple[PixWordModel, dict[str, Any]]:
    """A model with adapters that are not zero."""
    config = adapter_config(model, 2, 4.0, **options)
    add_adapters(model, config)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    return model, config


@pytest.mark.parametrize("image_block", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
def test_adapters_come_back_and_fuse(
    small_model: Build, tmp_path: Path, rng: np.random.Generator, image_block: bool, bits: int | None
) -> None:
    base = small_model(intermediate_size=64)
    if bits:
        quantize_model(base, bits, 32)
    folder = pw.save_model(base, None, tmp_path / "base")
    base, processor = pw.load(folder)
    batch = processor([[7, 8], rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    plain = np.array(base(batch))
    model, config = adapted(base, image_block=image_block)
    changed = np.array(model(batch))
    assert np.abs(changed - plain).max() > 1e-2
    names = {name.split(".")[0] for name in adapter_weights(model)}
    assert names == ({"layers", "image_block", "head"} if image_block else {"layers"})
    save_adapters(model, config, tmp_path / "adapters")
    loaded, _ = pw.load(folder, adapter_path=tmp_path / "adapters")
    assert np.abs(np.array(loaded(batch)) - changed).max() < 1e-5
    scores = [pw.log_likelihood(m, batch).pixels for m in (loaded, model)]
    assert np.abs(scores[0] - scores[1]).max() < 1e-4
    drawn = pw.generate_image(loaded, processor, size=(6, 7), seed=5)
    fused = fuse(loaded)
    assert not adapter_weights(fused)
    assert np.abs(np.array(fused(batch)) - changed).max() < (0.2 if bits else 1e-4)
    if not bits:
        assert (np.asarray(pw.generate_image(fused, processor, size=(6, 7), seed=5)) == np.asarray(drawn)).all()


def test_mlx_lms_own_loader_reads_the_adapters(small_model: Build, tmp_path: Path, rng: np.random.Generator) -> None:
    from mlx_lm.tuner.utils import load_adapters as load_with_mlx_lm

    model, other = small_model(), small_model()
    other.load_weights(list(weights_of(model).items()))
    model, config = adapted(model, image_block=True, layers=1)
    save_adapters(model, config, tmp_path / "adapters")
    load_with_mlx_lm(other, str(tmp_path / "adapters"))
    batch = pw.Processor(model.args)([[7, 8], rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    assert mx.array_equal(other(batch), model(batch))
    assert "layers.0.ffn.up_proj.lora_a" not in adapter_weights(other)  # the last layer alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 9}, "num_layers is 9 and the model has 2"),
        ({"num_layers": "all"}, "an integer num_layers"),
        ({"fine_tune_type": "dora"}, "fine_tune_type must be lora"),
        ({"lora_parameters": {"rank": 0, "scale": 1, "dropout": 0}}, "must hold rank, scale and dropout"),
        ({"lora_parameters": {"rank": 2, "dropout": 0}}, "must hold rank, scale and dropout"),
        ({"lora_parameters": {"rank": 3, "scale": 1, "dropout": 0}}, "adapters are of another model"),
        ({"lora_parameters": {"rank": 2, "scale": 1, "keys": ["self_attn.q_proj"]}}, "is no projection of this model"),
        ({"lora_parameters": {"rank": 2, "scale": 1, "keys": ["attention.q_proj"]}}, "is unknown"),
        ({"lora_parameters": {"rank": 2, "scale": 1, "keys": 3}}, "keys must be a list"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    small_model: Build, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    model, config = adapted(small_model())
    save_adapters(model, config, tmp_path / "adapters")
    (tmp_path / "adapters/adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(PixWordError, match=words):
        load_adapters(small_model(), tmp_path / "adapters")


def test_adapters_belong_to_weights_not_only_to_a_shape(small_model: Build, tmp_path: Path) -> None:
    """The same model in few bits or in float16 takes them, and one that was trained otherwise does not."""
    model, other = small_model(intermediate_size=64), small_model(intermediate_size=64)
    model.norm.weight = mx.random.uniform(0.5, 2, (32,))
    weights = list(weights_of(model).items())
    folder = save_adapters(*adapted(model), tmp_path / "adapters")
    with pytest.raises(PixWordError, match=r"were trained on weights with the digest '[0-9a-f]{16}', .* another model"):
        load_adapters(other, folder)
    for form in ("plain", "few bits", "float16"):
        same = small_model(intermediate_size=64)
        same.load_weights(weights)
        same = quantize_model(same, 4, 32) if form == "few bits" else same
        place = save_model(same, None, tmp_path / form, half=form == "float16")
        assert adapter_weights(pw.load(place, adapter_path=folder)[0])
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["base_norms"]  # as mlx-lm writes it
    (folder / "adapter_config.json").write_text(json.dumps(config))
    load_adapters(other, folder)


def test_adapters_of_another_width_and_files_that_are_none(small_model: Build, tmp_path: Path) -> None:
    model, config = adapted(small_model())
    save_adapters(model, config, tmp_path / "adapters")
    with pytest.raises(PixWordError, match="the adapters are of another model"):
        load_adapters(small_model(intermediate_size=64), tmp_path / "adapters")
    with pytest.raises(PixWordError, match="has adapters already"):
        load_adapters(model, tmp_path / "adapters")
    (tmp_path / "adapters/adapter_config.json").write_text("{")
    with pytest.raises(PixWordError, match="is not JSON"):
        load_adapters(small_model(), tmp_path / "adapters")
    with pytest.raises(PixWordError, match="has no adapters"):
        load_adapters(small_model(), tmp_path)
