"""The model that comes with the library: used where no other is named, and what asks too much of it is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_files import refusal

import mlx_pixword as pw
from mlx_pixword import demo, evaluate, generate, server
from mlx_pixword.apps.settings import DemoArgs, ServerArgs
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import make_config
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.calibration import Calibration
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training.setup import build_model
from mlx_pixword.weights import directory

Build = Callable[..., PixWordModel]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def shipped(small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in the place of the shipped one, trained to read alone."""
    tokenizer = train_tokenizer(["red", "12.50"], 300)
    model = small_model(vocab_size=tokenizer.vocab_size)
    model.words_only = True
    monkeypatch.setattr(directory, "SHIPPED", tmp_path / "pretrained" / "reader")
    (tmp_path / "pretrained").mkdir()
    return pw.save_model(model, tokenizer, tmp_path / "pretrained" / "reader")


@pytest.fixture
def photo(tmp_path: Path, rng: np.random.Generator) -> Path:
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def mistake(capsys: Capture, main: Callable[[list[str]], None], *arguments: object) -> str:
    """The one line of a command line that must exit 2."""
    (line,) = refusal(capsys, main, *arguments)
    return line


def test_no_argument_loads_the_shipped_model(shipped: Path) -> None:
    model, processor = pw.load()
    assert processor.tokenizer is not None and model.args == pw.load(shipped)[0].args
    with pytest.raises(PixWordError, match="revision main is of a repository"):
        pw.load(revision="main")


def test_generate_reads_a_box_with_it(shipped: Path, photo: Path, capsys: Capture) -> None:
    generate.main(["--image", str(photo), "--box", "5,7,20,9", "--jsonl", "--max-tokens", "4"])
    line = json.loads(capsys.readouterr().out)
    reading = pw.read(*pw.load(shipped), Image.open(photo), box=(5, 7, 20, 9), max_tokens=4)
    assert line["text"] == reading.text and line["confidence"] == pytest.approx(reading.confidence, abs=1e-5)


def test_evaluate_measures_it_and_no_pixels(shipped: Path, photo: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.open(photo).crop((0, 0, 20, 9)).save(tmp_path / "a.png")
    (tmp_path / "labels.jsonl").write_text('{"image": "a.png", "caption": "12.50"}\n')
    evaluate.main(["--data", str(tmp_path / "labels.jsonl")])
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"word_loss", "exact_match", "expected_calibration_error"} <= set(scores) and "boundary_loss" not in scores


def test_demo_and_server_need_no_model_either(shipped: Path) -> None:
    assert DemoArgs().model == "" and ServerArgs().model_name == "reader"
    assert ServerArgs(model="runs/x").model_name == "runs/x"


@pytest.mark.parametrize("module", [generate, evaluate, demo, server])
def test_without_it_one_line_says_what_to_do(
    module: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(directory, "SHIPPED", tmp_path / "nothing")
    (tmp_path / "labels.jsonl").write_text('{"image": "photo.png", "caption": "7"}\n')
    flags = {generate: ["--image", photo], evaluate: ["--data", tmp_path / "labels.jsonl"]}.get(module, [])
    line = mistake(capsys, module.main, *flags)
    assert "comes without its reader" in line and "--model DIR_OR_REPO" in line


RECEIPT = Path(__file__).parents[1] / "docs/images/receipt.png"


@pytest.mark.parametrize(("top", "price"), [(20, "2.40"), (38, "5.80"), (56, "1.15"), (74, "9.35")])
def test_the_model_that_comes_with_the_library_reads_the_receipt(top: int, price: str, capsys: Capture) -> None:
    generate.main(["--image", str(RECEIPT), "--box", f"99,{top},30,13", "--jsonl"])
    line = json.loads(capsys.readouterr().out)
    assert line["text"] == price and line["confidence"] > 0.5


def test_its_folder_is_small_whole_and_described() -> None:
    files = {path.name: path.stat().st_size for path in directory.SHIPPED.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.model", "README.md"}
    assert sum(files.values()) < 8e6
    card = (directory.SHIPPED / "README.md").read_text(encoding="utf-8")
    record = json.loads((RECEIPT.parents[2] / "benchmarks/results/reader.json").read_text())
    assert f"{record['scores']['exact_match']:.4f}" in card and "library_name: mlx-pixword" in card
    model, processor = pw.load()
    assert model.words_only and processor.tokenizer is not None
    kept = Calibration.from_config({"_calibration": record["calibration"]})
    assert model.calibration.to_dict() == pytest.approx(kept.to_dict())


# --- what it cannot serve ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--box", "50,0,20,9"], "does not lie inside the image of 60x40 pixels"),
        (["--box", "5,5,0,9"], "is empty"),
        (["--box", "0,0,60,40"], "too large for this model: a 60x40 image has 150 windows"),
        (["--out-image", "{tmp}/new.png", "--size", "9x6"], "trained to read alone"),
        (["--out-image", "{tmp}/new.png", "--complete", "{tmp}/photo.png"], "trained to read alone"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    shipped: Path, photo: Path, tmp_path: Path, capsys: Capture, flags: list[str], words: str
) -> None:
    assert words in mistake(capsys, generate.main, "--image", photo, *(flag.format(tmp=tmp_path) for flag in flags))
    assert not (tmp_path / "new.png").exists()


def test_python_refuses_to_draw_with_it_too(shipped: Path) -> None:
    with pytest.raises(PixWordError, match="trained to read alone"):
        pw.generate_image(*pw.load(), size=(4, 4))


def test_runs_know_whether_pixels_are_learnt(tmp_path: Path) -> None:
    shape = {"image_size": 32, "window_size": 4, "max_seq_len": 128, "hidden_size": 16, "num_heads": 2,
             "num_kv_heads": 1, "num_layers": 1, "intermediate_size": 16}  # fmt: skip
    for changes, alone in (
        ({"boundary_weight": 0.0}, False),  # the preset's query pixels have weight
        ({"boundary_weight": 0.0, "pixel_queries": 0}, True),
        ({"boundary_weight": 0.0, "dense_weight": 0.0}, True),
        ({"pixel_queries": 0}, False),
    ):
        config = make_config({**shape, **changes})
        assert build_model(config.model, config.train).words_only == alone
    model = build_model(config.model, config.train)
    for alone in (True, False):
        model.words_only = alone
        folder = pw.save_model(model, None, tmp_path / str(alone))
        assert pw.load(folder)[0].words_only == alone == ("_words_only" in (folder / "config.json").read_text())
    config_file = tmp_path / "True" / "config.json"
    config_file.write_text(config_file.read_text().replace('"_words_only": true', '"_words_only": 1'))
    with pytest.raises(PixWordError, match="_words_only must be true or false, got 1"):
        pw.load(tmp_path / "True")
