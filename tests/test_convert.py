"""Converted checkpoints compute what the float64 reference computes, and mistakes are named in one line."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference as ref

import mlx_pixword as pw
from mlx_pixword.common.cli import run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.convert import ConvertSettings, convert, main
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.weights.safetensors import read_safetensors

SIZES = {"D": 32, "heads": 4, "kv_heads": 2, "layers": 2, "image_layers": 2, "ffn": 48, "V": 11, "f": 64}
CFG = ref.Config(heads=4, kv_heads=2, window_size=4, fold_factor=64)


def random_weights(**sizes: int) -> ref.Weights:
    return ref.random_weights(np.random.default_rng(0), **SIZES | sizes)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, weights: ref.Weights, prefix: str = "") -> Path:
    mx.save_safetensors(str(path), {prefix + name: mx.array(value) for name, value in weights.items()})
    return path


def settings(checkpoint: Path, out: Path, **changes: object) -> ConvertSettings:
    values: dict[str, object] = {"upw": checkpoint, "out": out, "heads": 4, "image_size": 48, "window_size": 4}
    return ConvertSettings(**values | changes)  # type: ignore[arg-type]


def disagreement(folder: Path, weights: ref.Weights, cfg: ref.Config, parts: list[Any]) -> float:
    """Largest difference of the logits, relative to the largest logit of the reference."""
    model, processor = pw.load(folder, dtype="float32")
    found = np.array(model(processor(parts, special_words=False)))[0]
    expected = ref.logits(weights, cfg, parts)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "upw.safetensors", random_weights())


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "window_size", "image_size"),
    [
        ({}, 4, 48),
        ({"kv_heads": 4, "layers": 1, "image_layers": 1}, 4, 48),
        ({"D": 48, "heads": 6, "kv_heads": 1, "image_layers": 3}, 5, 50),
        ({"heads": 1, "kv_heads": 1, "f": 32}, 16, 64),
        ({"D": 64, "f": 128, "layers": 3, "image_layers": 1}, 1, 48),
        ({"f": 256, "ffn": 20}, 3, 48),
        ({"f": 16, "layers": 1, "image_layers": 1}, 8, 48),
    ],
)
def test_logits_agree_with_the_reference(
    tmp_path: Path, sizes: dict[str, int], window_size: int, image_size: int
) -> None:
    sizes = SIZES | sizes
    weights = random_weights(**sizes)
    upw = save(tmp_path / "upw.safetensors", weights)
    changes: dict[str, Any] = {"heads": sizes["heads"], "window_size": window_size, "image_size": image_size}
    folder = Path(convert(settings(upw, tmp_path / "out", **changes))[0])
    cfg = ref.Config(sizes["heads"], sizes["kv_heads"], window_size, sizes["f"])
    assert disagreement(folder, weights, cfg, [[1, 7, 4], image(13, 18), [5, 9, 10]]) < 1e-4


def test_a_long_text_and_two_images_agree_and_mistakes_would_show(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(convert(settings(checkpoint, tmp_path / "out"))[0])
    words = [int(i) for i in np.random.default_rng(2).integers(0, 11, 150)]
    parts = [words, image(1, 1), [4], image(9, 30), [5, 2]]
    weights = random_weights()
    assert disagreement(folder, weights, CFG, parts) < 1e-4
    for wrong in ({"rope_factor": 1.0}, {"theta": 10000.0}, {"heads": 2, "kv_heads": 1}, {"qk_norm": True}):
        assert disagreement(folder, weights, ref.Config(**vars(CFG) | wrong), parts) > 1e-3


@pytest.mark.parametrize("prefix", ["module.", "model.", "model.module."])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    upw = save(tmp_path / "upw.safetensors", random_weights(), prefix)
    folder = Path(convert(settings(upw, tmp_path / "out"))[0])
    assert disagreement(folder, random_weights(), CFG, [[1, 4], image(5, 6), [5]]) < 1e-4


def test_unused_norm_may_be_absent_and_half_precision_is_widened(tmp_path: Path) -> None:
    weights = {name: value.astype(np.float16) for name, value in random_weights().items()}
    del weights["imgblk.norm.weight"]
    folder = Path(convert(settings(save(tmp_path / "upw.safetensors", weights), tmp_path / "out"))[0])
    assert {v.dtype for v in read_safetensors(folder / "model.safetensors").values()} == {mx.float32}
    assert disagreement(folder, weights, CFG, [[1, 4], image(5, 6), [5]]) < 1e-4


def test_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    upw = save(tmp_path / "upw.safetensors", random_weights(layers=3, kv_heads=1))
    (tmp_path / "out").mkdir()  # an empty folder is welcome
    args = pw.load(convert(ConvertSettings(upw=upw, out=tmp_path / "out", heads=4))[0])[0].args
    assert (args.vocab_size, args.fold_factor, args.hidden_size, args.intermediate_size) == (11, 64, 32, 48)
    assert (args.num_layers, args.image_layers, args.num_heads, args.num_kv_heads) == (3, 2, 4, 1)
    assert (args.image_size, args.window_size, args.max_seq_len, args.qk_norm) == (224, 16, 1024, False)


def test_an_image_of_the_given_size_fits_the_sequence(checkpoint: Path, tmp_path: Path) -> None:
    _, processor = pw.load(convert(settings(checkpoint, tmp_path / "out", image_size=160))[0])
    assert len(processor.document([image(160, 160)])) == 40 * 40 + 3


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["seven red plates", "two plates"], 300)
    (tmp_path / "words.model").write_bytes(tokenizer.contents)
    upw = save(tmp_path / "upw.safetensors", random_weights(V=tokenizer.vocab_size))
    folder = Path(convert(settings(upw, tmp_path / "out", tokenizer=tmp_path / "words.model"))[0])
    model, processor = pw.load(folder)
    assert processor.decode(processor.document(["two red plates"]).elements.tolist()) == "two red plates"
    assert model(processor(["two", image(4, 4)])).shape[-1] == tokenizer.vocab_size + 64


def test_tokenizer_of_another_size_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "words.model").write_bytes(train_tokenizer(["two plates"], 300).contents)
    with pytest.raises(PixWordError, match=r"tok_embeddings.weight has 11 rows"):
        convert(settings(checkpoint, tmp_path / "out", tokenizer=tmp_path / "words.model"))


# --- .pth files, with a stand-in for PyTorch --------------------------------------------------------------------------


class Tensor:
    """As much of a torch tensor as a conversion touches."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def detach(self) -> "Tensor":
        return self

    def float(self) -> "Tensor":
        return Tensor(self.value.astype(np.float32))

    def numpy(self) -> np.ndarray:
        return self.value


def use_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, contents: object, version: str = "2.13.0+cpu") -> Path:
    """Stand in for PyTorch, which finds ``contents`` in the returned file."""
    path = tmp_path / "upw.pth"
    path.touch()

    def load(file: Path, *, weights_only: bool, map_location: str) -> object:
        assert (Path(file), weights_only, map_location) == (path, True, "cpu")
        if isinstance(contents, Exception):
            raise contents
        return contents

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load, __version__=version))
    return path


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pth_agrees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nested: bool, prefix: str) -> None:
    weights = random_weights()
    tensors = {prefix + name: Tensor(value.astype(np.float64)) for name, value in weights.items()}
    upw = use_torch(monkeypatch, tmp_path, {"model": tensors, "optimizer": {}, "step": 7} if nested else tensors)
    folder = Path(convert(settings(upw, tmp_path / "out"))[0])
    assert disagreement(folder, weights, CFG, [[1, 4], image(5, 6), [5]]) < 1e-4


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], r"expected a dict of tensors, got list"),
        ({"norm.weight": 3}, r"norm.weight: expected a tensor, got int"),
        (RuntimeError("Weights only load failed.\nMore."), r"cannot read it as weights: Weights only load failed\.$"),
        (EOFError(), r"cannot read it as weights: EOFError$"),
    ],
)
def test_pth_mistakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, contents: object, message: str) -> None:
    with pytest.raises(PixWordError, match=message):
        convert(settings(use_torch(monkeypatch, tmp_path, contents), tmp_path / "out"))


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117"])
def test_an_older_pytorch_reads_no_pth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    upw = use_torch(monkeypatch, tmp_path, {}, version)
    with pytest.raises(PixWordError, match=r"PyTorch .* can be made to run code by a \.pth"):
        convert(settings(upw, tmp_path / "out"))


def test_pth_without_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "upw.pth").touch()
    with pytest.raises(PixWordError, match=r"needs PyTorch; pip install torch"):
        convert(settings(tmp_path / "upw.pth", tmp_path / "out"))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def blank(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None}, r"norm.weight is missing, expected shape \(32,\)"),
        ({"tok_embeddings.weight": None}, r"tok_embeddings.weight is missing"),
        ({"layers.0.attention.wq.weight": None}, r"layers.0.attention.wq.weight is missing, expected shape \(32, 32\)"),
        ({"layers.3.ffn_norm.weight": blank(32)}, r"layers.2.attention_norm.weight is missing"),
        ({"layers.1.feed_forward.w2.weight": blank(48, 32)}, r"w2.weight has shape \(48, 32\), expected \(32, 48\)"),
        ({"imgblk.layers.0.attention.wk.weight": blank(32, 32)}, r"^imgblk\S+ has shape .*, expected \(16, 32\)"),
        ({"output.weight": blank(74, 32)}, r"output.weight has shape \(74, 32\), expected \(75, 32\)"),
        ({"tok_embeddings.weight": blank(11)}, r"tok_embeddings.weight has shape \(11,\), expected a matrix"),
        ({"tok_embeddings.weight": blank(5, 32)}, r"6 special words"),
        ({"imgblk.pix_emb.weight": blank(64, 32)}, r"pix_emb.weight has 64 rows, expected \(256 / f\)\^3 \+ 1"),
        ({"layers.0.attention.wk.weight": blank(12, 32)}, r"wk.weight has 12 rows: with --heads 4"),
        ({"layers.0.attention.wk.weight": blank(24, 32)}, r"wk.weight has 24 rows: with --heads 4"),
        ({"rope.freqs": blank(4)}, r"rope.freqs does not belong to the model, expected only 40 known weights"),
        ({"norm.weight": np.zeros(32, np.int32)}, r"norm.weight holds \S*int32, expected floating-point"),
        ({"module.norm.weight": blank(32)}, r"two keys are the same without module. and model."),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    weights = {name: value for name, value in (random_weights() | changes).items() if value is not None}
    upw = save(tmp_path / "upw.safetensors", weights)
    with pytest.raises(PixWordError, match=message):
        convert(settings(upw, tmp_path / "new" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["upw.safetensors"]  # nothing half-written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, r"--heads 5 must divide the width of tok_embeddings.weight, 32"),
        ({"heads": 32}, r"--heads 32 must divide .* into even heads"),
        ({"heads": 0}, r"--heads 0 must divide"),
        ({"heads": 1}, r"wk.weight has 16 rows: with --heads 1"),
        ({"image_size": 50}, r"positive multiple of the window size"),
        ({"window_size": 0}, r"positive multiple of the window size"),
        ({"upw": Path("nowhere.safetensors")}, r"nowhere.safetensors: no such file"),
        ({"upw": Path(__file__)}, r"expected a .safetensors or a .pth file"),
        ({"tokenizer": Path("nowhere.model")}, r"tokenizer nowhere.model"),
    ],
)
def test_settings_that_do_not_fit(checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PixWordError, match=message):
        convert(settings(checkpoint, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_damaged_files(checkpoint: Path, tmp_path: Path, size: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    with pytest.raises(PixWordError, match=r"upw.safetensors"):
        convert(settings(checkpoint, tmp_path / "out"))


def test_a_number_type_that_mlx_does_not_know(tmp_path: Path) -> None:
    header = json.dumps({"norm.weight": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
    upw = tmp_path / "upw.safetensors"
    upw.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(PixWordError, match=r"upw.safetensors is no safetensors file.*F99"):
        convert(settings(upw, tmp_path / "out"))


def test_out_must_be_new_or_empty(checkpoint: Path, tmp_path: Path) -> None:
    for out in (tmp_path, checkpoint):
        with pytest.raises(PixWordError, match=r"exists and is not an empty folder"):
            convert(settings(checkpoint, out))
    with pytest.raises(PixWordError, match=r"cannot create .*Not a directory"):
        convert(settings(checkpoint, checkpoint / "out"))


# --- command line -----------------------------------------------------------------------------------------------------


def test_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--upw", str(checkpoint), "--heads", "4", "--image-size", "48", "--window-size", "4"]
    main([*flags, "--out", str(tmp_path / "a" / "out")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a' / 'out'}\n"
    assert disagreement(tmp_path / "a" / "out", random_weights(), CFG, [[1, 4], image(5, 6), [5]]) < 1e-4
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*flags, "--out", str(tmp_path)]))
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_module_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_pixword.convert", "--upw", "nowhere.pth", "--heads", "4"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: nowhere.pth: no such file"  # advice about BLAS may come first
    assert "Traceback" not in done.stderr
