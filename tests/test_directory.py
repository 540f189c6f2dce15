"""Model directories: what is saved comes back, and what does not fit is named in one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights import directory as module
from mlx_pixword.weights.lora import adapter_config, add_adapters, save_adapters

Build = Callable[..., PixWordModel]


@pytest.fixture
def folder(small_model: Build, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["some words", "a few more"], 300)
    return pw.save_model(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_what_is_saved_comes_back(small_model: Build, tmp_path: Path, rng: np.random.Generator) -> None:
    model = small_model(factored_colors=True)
    directory = pw.save_model(model, None, tmp_path / "deep" / "model")
    loaded, processor = pw.load(directory)
    batch = processor([[7, 8], rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)])
    assert np.abs(np.array(loaded(batch) - model(batch))).max() < 1e-6
    assert processor.tokenizer is None
    assert not loaded.args.factored_colors
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in directory.parent.iterdir()] == ["model"]  # no draft left behind


def test_loading_leaves_the_random_state_alone(folder: Path, tmp_path: Path) -> None:
    """The weights that a model is built with are read over at once."""
    model, _ = pw.load(folder)
    config = adapter_config(model, rank=2, scale=4.0, layers=1, image_block=True)
    save_adapters(add_adapters(model, config), config, tmp_path / "adapters")
    mx.random.seed(2**63 + 5)
    expected = mx.random.normal((4,)).tolist()
    for adapters in (None, tmp_path / "adapters"):
        mx.random.seed(2**63 + 5)
        pw.load(folder, adapter_path=adapters)
        assert mx.random.normal((4,)).tolist() == expected


def test_the_tokenizer_comes_back(folder: Path) -> None:
    _, processor = pw.load(str(folder))
    assert processor.tokenizer is not None
    assert processor.decode(processor.tokenizer.encode("a few words")) == "a few words"


def test_equal_models_give_equal_bytes(small_model: Build, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mx.random.seed(3)
        pw.save_model(small_model(), None, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_large_models_are_sharded_with_an_index(
    small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    model = small_model()
    directory = pw.save_model(model, None, tmp_path / "model")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in directory.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    loaded, _ = pw.load(directory)
    for name, array in dict(tree_flatten(model.parameters())).items():
        assert mx.array_equal(dict(tree_flatten(loaded.parameters()))[name], array), name


def test_projections_take_the_compute_type_and_tables_stay_float32(folder: Path) -> None:
    model, _ = pw.load(folder, dtype="bfloat16")
    weights = dict(tree_flatten(model.parameters()))
    assert weights["layers.0.ffn.up_proj.weight"].dtype == mx.bfloat16
    assert {weights[n].dtype for n in ("head.weight", "norm.weight", "embed_words.weight")} == {mx.float32}


def test_hub_metadata_in_the_configuration_is_ignored(folder: Path) -> None:
    edit_config(folder, architectures=["X"], _name_or_path="y", quantization=None, transformers_version="5")
    pw.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 1}, "unknown key 'hidden'"),
        ({"hidden_size": "32"}, "hidden_size must be"),
        ({"hidden_size": 64}, "asks for floats"),
        ({"num_layers": 3}, "layers.2.* is missing"),
        ({"num_layers": 1}, "layers.1.* is unknown"),
        ({"fold_factor": 5}, "power of two"),
        ({"vocab_size": 7}, "asks for floats"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"num_layers": 10**6}, "describes a model of .* parameters, the weights are"),
        ({"num_layers": 20_000, "hidden_size": 8, "intermediate_size": 1}, "describes 20,002 layers"),
        ({"hidden_size": 2**30}, "describes a model of"),
        ({"rope_theta": 10**400}, "rope_theta must be positive"),
        ({"dtype": "x" * 10**5}, "dtype must be one of .{,150}$"),
        ({"_pixel_queries": "x" * 10**5}, "_pixel_queries must be .{,150}$"),
        ({"x" * 10**5: 1}, "unknown key 'x{,100}"),
        ({"vocab_size": 2**31 - 1}, "describes a model of"),
        ({"rope_theta": float("nan")}, "rope_theta must be positive"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be positive"),
        ({"num_heads": -4}, "num_heads must be positive"),
        ({"max_seq_len": 2**40}, "max_seq_len must be positive and below"),
        ({"qk_norm": "yes"}, "qk_norm must be true or false"),
        ({"_pixel_queries": -1}, "_pixel_queries must be an integer"),
        ({"_pixel_queries": [3]}, "_pixel_queries must be an integer"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "unknown key 'auto_map'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(PixWordError, match=words):
        pw.load(folder)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(train_tokenizer(["xyz uvw 12345"], 400).contents)
    with pytest.raises(PixWordError, match="words but the model"):
        pw.load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PixWordError, match=r"model\.safetensors"):
        pw.load(folder)


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00." * 20, b"{}" * 30, b"\x08\0\0\0\0\0\0\0[1, 2, 3]", b"PK\x03\x04" * 9]
)
def test_foreign_weights_are_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(PixWordError, match="safetensors file"):
        pw.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000, " " * 2**21])
def test_a_broken_configuration_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(PixWordError, match=r"config\.json"):
        pw.load(folder)


def test_the_folder_of_a_run_is_told_from_its_model(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("best", "final"):
        run.mkdir(exist_ok=True)
        shutil.copytree(folder, run / name)
        with pytest.raises(PixWordError, match=f"run is the folder of a run; its model is .*/run/{name}$"):
            pw.load(run)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(PixWordError, match=missing):
        pw.load(folder)


def test_a_path_that_is_no_model_and_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PixWordError, match="no model at"):
        pw.load(tmp_path / "nothing" / "here")


def test_a_repository_is_downloaded_without_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pw.load("owner/name", revision="abc")
    assert asked["name"] == "owner/name"
    assert asked["revision"] == "abc"
    assert set(asked["allow_patterns"]) == {"*.json", "*.safetensors", "tokenizer.model"}


def test_a_weight_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(PixWordError, match=r"is in model-2\.safetensors and in model\.safetensors"):
        pw.load(folder)


def test_names_of_weights_stay_on_one_line(folder: Path) -> None:
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, dict(mx.load(path)) | {"a\nb": mx.zeros(1), "a" * 500: mx.zeros(1)})
    for _ in range(2):  # an unknown weight, then the same one twice
        with pytest.raises(PixWordError, match=r"weight '?a.* is") as error:
            pw.load(folder)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
        (folder / "model-2.safetensors").write_bytes(Path(path).read_bytes())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "tokenizer.json", "model-2.safetensors"])
def test_pipes_are_refused_before_anybody_waits(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(PixWordError, match=rf"{name} is no file"):
        pw.load(folder)


def test_weights_of_another_type_are_refused(folder: Path) -> None:
    path = str(folder / "model.safetensors")
    weights = dict(mx.load(path))
    mx.save_safetensors(path, weights | {"norm.weight": weights["norm.weight"].astype(mx.int32)})
    with pytest.raises(PixWordError, match=r"weight norm\.weight is .*int32"):
        pw.load(folder)


def test_offline_a_repository_that_was_never_downloaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PixWordError, match="no folder owner/name, and the hub gave no repository") as error:
        pw.load("owner/name", revision="0123456789012345678901234567890123456789")
    assert "\n" not in str(error.value)


def test_offline_a_downloaded_revision_is_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789012345678901234567890123456789"
    snapshots = tmp_path / "cache/models--owner--name/snapshots"
    snapshots.mkdir(parents=True)
    folder.rename(snapshots / commit)
    (snapshots / commit / "evil.py").write_text("raise SystemExit('executed')")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model, _ = pw.load("owner/name", revision=commit)
    assert model.args.hidden_size == 32
    with pytest.raises(PixWordError, match="owner/name"):
        pw.load("owner/name", revision="f" * 40)


def test_a_repository_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_name: str, **_options: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(PixWordError, match="owner/name") as error:
        pw.load("owner/name")
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_something_is_never_overwritten(small_model: Build, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(PixWordError, match="exists already"):
        pw.save_model(small_model(), None, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "precious"
