"""Reading with confidence: probabilities are those of `log_likelihood`, boxes are cut out, calibration is a file's."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from run_files import train

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.evaluate import EvaluateArgs, evaluate
from mlx_pixword.evaluation.scores import calibration_error
from mlx_pixword.generate import main
from mlx_pixword.inference import word_steps
from mlx_pixword.inference.read import read_batch, reading_of
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.calibration import Calibration
from mlx_pixword.model.document import EOS
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.images import crop
from mlx_pixword.weights.directory import load, save_model

Build = Callable[..., PixWordModel]


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tokenizer; it has learnt next to nothing."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, steps=1)
    return out / "final"


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temp", [0.0, 2.0])
def test_the_probability_is_the_likelihoods(small_model: Build, picture: np.ndarray, temp: float) -> None:
    """`log_likelihood` scores the same document in one pass, without caches or sampling."""
    model = small_model()
    model.head.weight = model.head.weight * 8  # far from even
    processor = Processor(model.args)
    reading = pw.read(model, processor, picture, temp=temp, max_tokens=5)
    words = [int(word) for word in reading.text.split()]
    scores = pw.log_likelihood(model, processor([picture, [*words, EOS] if reading.finished else words])).words
    expected = scores[1:]  # the image's mark comes first
    assert len(expected) == len(words) + reading.finished
    assert reading.log_probability == pytest.approx(float(expected.sum()), abs=1e-4)
    assert reading.confidence == pytest.approx(math.exp(reading.log_probability), rel=1e-6)


def test_readings_of_a_batch_are_those_of_single_images(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor = Processor(model.args)
    pictures = [rng.integers(0, 256, (4 + n, 9, 3), dtype=np.uint8) for n in range(3)]
    batch = read_batch(model, processor, processor.batch([[one] for one in pictures]), max_tokens=9)
    for one, reading in zip(pictures, batch, strict=True):
        alone = pw.read(model, processor, one, max_tokens=9)
        assert (reading.text, reading.finished) == (alone.text, alone.finished)
        assert reading.log_probability == pytest.approx(alone.log_probability, abs=1e-4)


def test_rows_have_limits_of_their_own(
    small_model: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_steps, "SMALL", 0)  # token steps of NumPy do not ask the model for logits
    model = small_model()
    processor = Processor(model.args)
    classes = model.args.vocab_size + model.args.num_pix
    model.logits = lambda x: mx.broadcast_to(mx.arange(classes) == 7, (*x.shape[:-1], classes)).astype(mx.float32)
    batch = processor.batch([[rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)], [[8, 9]]])
    readings = read_batch(model, processor, batch, [2, 5])
    assert [(reading.text, reading.finished) for reading in readings] == [("7 7", False), ("7 7 7 7 7", False)]


def test_characters_wait_for_their_bytes(trained: Path) -> None:
    """A letter outside the vocabulary is two byte words, and has the probability of both."""
    _, processor = load(trained)
    words = processor.tokenizer.encode("7\u00e9")  # type: ignore[union-attr]
    scores = [-0.1 * (n + 1) for n in range(len(words) + 1)]
    reading = reading_of(processor, [*words, EOS], scores, Calibration())
    assert reading.text == "7\u00e9" and reading.finished and len(words) > 2
    assert [character for character, _ in reading.characters] == ["7", "\u00e9"]
    product = math.prod(probability for _, probability in reading.characters)
    assert product == pytest.approx(math.exp(sum(scores[:-1])))
    assert reading.log_probability == pytest.approx(sum(scores))


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_is_read_as_its_pixels_alone(small_model: Build, picture: np.ndarray) -> None:
    model = small_model()
    processor = Processor(model.args)
    part = picture[2:7, 3:11]
    reading = pw.read(model, processor, picture, (3, 2, 8, 5))
    assert reading.log_probability == pw.read(model, processor, part).log_probability
    assert reading.log_probability == pw.read(model, processor, Image.fromarray(picture), (3, 2, 8, 5)).log_probability
    assert reading.image is not None and reading.image.size == (8, 5)


@pytest.mark.parametrize("box", [(0, 0, 15, 1), (-1, 0, 2, 2), (0, 9, 1, 1), (0, 0, 0, 3), (13, 8, 1, 2)])
def test_a_box_outside_the_image_is_refused(picture: np.ndarray, box: Any) -> None:
    with pytest.raises(PixWordError, match=r"the box .* does not lie inside the image of 14x9 pixels"):
        crop(picture, box)


def test_a_crop_of_more_windows_than_the_sequence_holds(small_model: Build) -> None:
    model = small_model(max_seq_len=70)
    with pytest.raises(PixWordError, match="has 72 windows"):
        pw.read(model, Processor(model.args), np.zeros((40, 40, 3), np.uint8), (0, 0, 36, 32))


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_is_a_line_through_log_odds() -> None:
    assert Calibration()(math.log(0.3)) == pytest.approx(0.3)
    assert Calibration()(0.0) == pytest.approx(1) and Calibration()(-2000.0) == pytest.approx(0)
    assert Calibration(0.5, 0.0)(math.log(0.8)) == pytest.approx(2 / 3)  # odds 4 become odds 2
    assert Calibration(1.0, math.log(3))(math.log(0.5)) == pytest.approx(0.75)


def test_calibration_travels_with_the_model(small_model: Build, picture: np.ndarray, tmp_path: Path) -> None:
    model = small_model()
    save_model(model, None, tmp_path / "plain")
    assert "_calibration" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    model.calibration = Calibration(0.5, 1.25)
    save_model(model, None, tmp_path / "calibrated")
    again, processor = load(tmp_path / "calibrated")
    assert again.calibration == Calibration(0.5, 1.25)
    reading = pw.read(again, processor, picture)
    assert reading.confidence == pytest.approx(Calibration(0.5, 1.25)(reading.log_probability))


@pytest.mark.parametrize(
    "wrong", [{"slope": -1}, {"slope": "1"}, {"other": 1}, [1], {"offset": float("nan")}, {"slope": True}]
)
def test_a_wrong_calibration_is_refused(wrong: Any) -> None:
    with pytest.raises(PixWordError, match="_calibration must be"):
        Calibration.from_config({"_calibration": wrong})


def test_calibration_error_by_hand() -> None:
    assert calibration_error([1.0, 1.0, 0.0], [True, True, False]) == 0
    assert calibration_error([0.95, 0.99, 0.1, 0.12], [True, False, False, False]) == pytest.approx(
        (abs(0.95 + 0.99 - 1) + 0.1 + 0.12) / 4  # 0.95 and 0.99 share a bin of fifteen, 0.1 and 0.12 too
    )
    assert calibration_error([0.5], [True], bins=2) == 0.5


def test_calibration_error_of_calibrated_readings_is_small(rng: np.random.Generator) -> None:
    confidences = rng.random(20_000)
    right = rng.random(20_000) < confidences
    assert calibration_error(confidences.tolist(), right.tolist()) < 0.02
    assert calibration_error((confidences**4).tolist(), right.tolist()) > 0.2


# --- command lines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def plate(tmp_path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(tmp_path / "plate.png")
    return tmp_path / "plate.png"


@pytest.mark.parametrize("each", [[], ["--each"]])
def test_json_has_confidence(trained: Path, plate: Path, each: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", str(trained), "--image", str(plate), "--jsonl", "--max-tokens", "4", *each])
    line = json.loads(capsys.readouterr().out)
    reading = pw.read(*load(trained), Image.open(plate), max_tokens=4)
    assert line["image"] == str(plate) and line["text"] == reading.text
    assert line["log_probability"] == pytest.approx(reading.log_probability, abs=1e-4)
    assert line["confidence"] == pytest.approx(reading.confidence, abs=1e-6)


def test_an_unsure_reading_is_left_empty(trained: Path, plate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(trained), "--image", str(plate), "--max-tokens", "4"]
    main([*command, "--min-confidence", "1.0"])
    assert capsys.readouterr().out == "\n"
    main([*command, "--min-confidence", "1.0", "--jsonl", "--each"])
    assert json.loads(capsys.readouterr().out)["text"] == ""
    reading = pw.read(*load(trained), Image.open(plate), max_tokens=4)
    assert reading.text_from(reading.confidence) == reading.text and reading.text_from(1.0) == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-confidence", "2"], "must lie in 0..1"),
        (["--min-confidence", "0.5", "--out-image", "x.png"], "is for reading"),
    ],
)
def test_wrong_confidences(flags: list[str], message: str, plate: Path) -> None:
    with pytest.raises(PixWordError, match=message):
        main(["--model", "m", "--image", str(plate), *flags])


def test_evaluate_reports_the_calibration_error(trained: Path, tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "labels.jsonl").write_text('{"image": "a.png", "caption": "7"}\n')
    scores = evaluate(EvaluateArgs(model=str(trained), data=[str(tmp_path / "labels.jsonl")]))
    error = scores["expected_calibration_error"]
    assert isinstance(error, float) and 0 <= error <= 1


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_a_reading_shows_its_picture_and_escapes_its_text(small_model: Build, picture: np.ndarray) -> None:
    model = small_model()
    reading = replace(pw.read(model, Processor(model.args), picture), text="<b", characters=(("<", 0.5), ("b", 1.0)))
    page = reading._repr_html_()
    assert "data:image/png;base64," in page and "&lt;" in page and "<b" not in page.replace("<br", "")
    assert "confidence" in page and "50.0%" in page


def test_heat_maps_hold_each_pixels_nats_where_it_lies(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor = Processor(model.args)
    pictures = [rng.integers(0, 256, (6, 7, 3), dtype=np.uint8), rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)]
    scores = pw.log_likelihood(model, processor(pictures))
    first, second = scores.heat_maps()
    assert first.shape == (6, 7) and second.shape == (4, 4)
    assert first.sum() + second.sum() == pytest.approx(-scores.pixels.sum(), rel=1e-5)
    assert first[0, 4] == -scores.pixels[16] and first[4, 0] == -scores.pixels[28]  # windows of 4: 16 and 12 pixels
    assert "nats a pixel" in scores._repr_html_()


def test_a_drawing_animates(small_model: Build, tmp_path: Path) -> None:
    model = small_model()
    animation = pw.animate(model, Processor(model.args), size=(6, 9), seed=3)
    assert len(animation.frames) == 6
    assert animation.image.tobytes() == pw.generate_image(model, Processor(model.args), size=(6, 9), seed=3).tobytes()
    animation.save(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as file:
        assert file.is_animated and file.n_frames == 6
        file.seek(5)
        last = np.asarray(file.convert("RGB").resize((9, 6), Image.Resampling.NEAREST))
        assert np.array_equal(last, np.asarray(animation.image))
    assert "data:image/gif;base64," in animation._repr_html_()
