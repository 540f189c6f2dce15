"""Weights in few bits: layers, files and commands agree, and others' tools do the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from model_options import ALL

import mlx_pixword as pw
from mlx_pixword import convert, generate
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.layers import Linear, plain_weight
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.quantized import quantization_of, quantize_model

Build = Callable[..., PixWordModel]
NARROW = {"image_hidden_size": 32, "image_intermediate_size": 32}  # widths that groups divide
WIDE = {"hidden_size": 64, "intermediate_size": 96}  # 96 has groups of 32 alone


def weights_of(model: PixWordModel) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_layer_is_its_dequantised_matrix_in_float64(bits: int, rng: np.random.Generator) -> None:
    layer = Linear(96, 8).to_quantized(64, bits)
    x = rng.standard_normal((5, 96))
    codes = np.array(layer.weight).view(np.uint8)  # little-endian: the first weight is in the lowest bits
    codes = codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(8, -1)
    scales, biases = (np.array(a, np.float64).repeat(32, axis=1) for a in (layer.scales, layer.biases))
    exact = x @ (codes * scales + biases).T
    assert layer.group_size == 32
    assert np.abs(np.array(layer(mx.array(x.astype(np.float32)))) - exact).max() < 1e-5
    assert np.abs(np.array(plain_weight(layer), np.float64) - (codes * scales + biases)).max() < 1e-6
    assert layer(mx.ones((2, 96), mx.bfloat16)).dtype == mx.bfloat16


def test_a_layer_whose_width_no_group_divides_stays(small_model: Build) -> None:
    model = small_model(hidden_size=64, intermediate_size=48)
    nn.quantize(model, bits=8)  # as anybody would
    kept = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if type(m) is Linear}
    assert kept == {"down_proj"}
    with pytest.raises(PixWordError, match="no group of 128, 64, 32 weights divides"):
        quantize_model(small_model(hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=24), 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_comes_back_the_same(
    small_model: Build, tmp_path: Path, rng: np.random.Generator, bits: int
) -> None:
    model = small_model(**WIDE, factored_colors=True)
    folder = pw.save_model(quantize_model(model, bits), None, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == quantization_of(model)
    assert config["quantization"]["layers.0.ffn.down_proj"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    loaded, processor = pw.load(folder)
    for name, array in weights_of(loaded).items():
        if "_proj." in name:
            assert mx.array_equal(array, weights_of(model)[name]), name
    file = mx.load(str(folder / "model.safetensors"))
    assert {file[name].dtype for name in ("head.weight", "embed_words.weight", "layers.1.attention.q_proj.scales")} == {
        mx.float16
    }
    again = pw.save_model(loaded, None, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    image = rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)
    batch = processor([[7, 8], image])
    assert np.abs(np.array(loaded(batch) - model(batch))).max() < 1e-2  # tables are rounded to float16
    half, _ = pw.load(folder, dtype="bfloat16")
    assert weights_of(half)["layers.0.attention.q_proj.scales"].dtype == mx.bfloat16
    assert half(batch).dtype == mx.float32


@pytest.mark.parametrize("options", [{}, ALL | NARROW], ids=["plain", "options"])
def test_drawing_and_likelihood_use_the_quantised_weights(
    small_model: Build, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    """A model whose projections are replaced by the dequantised ones is the same model."""
    model, plain = small_model(**WIDE | options), small_model(**WIDE | options)
    quantize_model(model, 4)
    few = {name: m for name, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)}
    assert set(few) >= {f"image_block.{name}" for name in (("state_proj", "summary.window_proj") if options else ())}
    plain.load_weights([(f"{name}.weight", plain_weight(m)) for name, m in few.items()], strict=False)
    plain.load_weights([(n, a) for n, a in weights_of(model).items() if n.rsplit(".", 1)[0] not in few], strict=False)
    processor = pw.Processor(model.args)
    batch = processor([rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    scores = [pw.log_likelihood(m, batch).pixels for m in (model, plain)]
    assert np.abs(scores[0] - scores[1]).max() < 1e-4
    drawn = [np.asarray(pw.generate_image(m, processor, size=(6, 7), seed=5)) for m in (model, plain)]
    assert (drawn[0] == drawn[1]).all()


def test_a_file_of_others_with_bfloat16_scales_is_read(small_model: Build, tmp_path: Path) -> None:
    folder = pw.save_model(quantize_model(small_model(**WIDE), 8), None, tmp_path / "model")
    file = dict(mx.load(str(folder / "model.safetensors")))
    file = {n: a.astype(mx.bfloat16) if a.dtype == mx.float16 else a for n, a in file.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), file)
    pw.load(folder)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_convert_quantises_and_generate_tells_the_memory(
    small_model: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pw.save_model(small_model(**WIDE, dtype="bfloat16"), None, tmp_path / "model")
    convert.main(["--model", str(folder), "--quantize", "8", "--out", str(tmp_path / "small")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'small'}\n"
    assert pw.load(tmp_path / "small")[0].args.dtype == "bfloat16"  # the compute type is kept
    (tmp_path / "a.ppm").write_bytes(b"P6 4 4 255\n" + bytes(48))
    generate.main(["--model", str(tmp_path / "small"), "--image", str(tmp_path / "a.ppm"), "--max-tokens", "2"])
    assert "weights 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": 8}, "quantization must be an object"),
        ({"quantization": {"bits": 7}}, "bits must be one of 2, 3, 4, 5, 6, 8"),
        ({"quantization": {"bits": 8, "group_size": 48}}, "group_size one of 32, 64, 128, got 8 and 48"),
        ({"quantization": {"bits": 8, "mode": "mxfp4"}}, "mode must be affine, got 'mxfp4'"),
        ({"quantization": {"bits": 4, "group_size": 32}}, "asks for "),
        ({"quantization": {"bits": 8, "group_size": 128}}, "groups of 128 do not divide"),
        ({"quantization": {"bits": 8, "group_size": 32, "layers.0.ffn.up_proj": 3}}, "up_proj must be an object"),
        ({"quantization": None}, "is unknown"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    small_model: Build, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = pw.save_model(quantize_model(small_model(**WIDE), 8), None, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(PixWordError, match=words):
        pw.load(folder)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "{tmp}/model", "--quantize", "5"], "--quantize takes 8 or 4"),
        (["--model", "{tmp}/model", "--quantize", "8", "--group-size", "48"], "group_size one of 32, 64, 128"),
        (["--model", "{tmp}/small", "--quantize", "8"], "quantised already"),
        (["--model", "{tmp}/model", "--upw", "x"], "one of the two"),
        ([], "one of the two"),
        (["--model", "{tmp}/model", "--heads", "3"], "--heads and --tokenizer are for --upw"),
        (["--upw", "x"], "--upw needs --heads"),
    ],
)
def test_mistakes_in_convert(small_model: Build, tmp_path: Path, flags: list[str], words: str) -> None:
    pw.save_model(small_model(**WIDE), None, tmp_path / "model")
    pw.save_model(quantize_model(small_model(**WIDE), 8), None, tmp_path / "small")
    with pytest.raises(PixWordError, match=words):
        convert.main([*(f.format(tmp=tmp_path) for f in flags), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_benchmark_measures_each_form(small_model: Build, tmp_path: Path) -> None:
    from mlx_pixword.inputs.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["0123456789"], 300)
    folder = pw.save_model(small_model(**WIDE, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks/quantized.py"), "--model", str(folder)]
    done = subprocess.run([*command, "--count", "3", "--scored", "1"], capture_output=True, text=True, check=True)
    forms = json.loads(done.stdout.splitlines()[-1])["forms"]
    assert list(forms) == ["float32", "8 bits", "4 bits"]
    assert forms["4 bits"]["bytes"] < forms["8 bits"]["bytes"] < forms["float32"]["bytes"]
    assert all(0 <= form["exact_match"] <= 1 and form["bits_a_plate"] > 0 for form in forms.values())
