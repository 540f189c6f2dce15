"""`generate`, `evaluate` and `doctor` as a user meets them: output, help, and one line for every mistake."""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from run_files import refusal
from source_files import png_header

import mlx_pixword as pw
from mlx_pixword import doctor, evaluate, generate
from mlx_pixword.common.cli import run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.evaluation import measure, readings
from mlx_pixword.generate import arrange
from mlx_pixword.inference.read import Reading
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model_folder(small_model: Build, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["red", "green", "blue 123"], 300)
    return pw.save_model(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, size in zip(paths, [(9, 6), (16, 20), (1, 1)], strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def labels(tmp_path: Path, pictures: list[str], texts: list[str]) -> str:
    lines = [json.dumps({"image": Path(p).name, "caption": t}) for p, t in zip(pictures, texts, strict=True)]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "labels.jsonl")


def mistake(capsys: Capture, main: Callable[[list[str]], None], *arguments: object) -> str:
    """Run a command line that must exit 2; gives its one line, the last one."""
    *said, line = refusal(capsys, main, *arguments)
    assert all("documents" in text for text in said)  # what evaluate says of its data
    return line


# --- generate ---------------------------------------------------------------------------------------------------------


def test_text_goes_to_standard_output_and_speed_to_standard_error(
    model_folder: Path, pictures: list[str], capsys: Capture
) -> None:
    generate.main(["--model", str(model_folder), "--image", pictures[0], "--max-tokens", "5"])
    captured = capsys.readouterr()
    model, processor = pw.load(model_folder)
    with Image.open(pictures[0]) as image:
        assert captured.out == pw.generate_text(model, processor, [image], max_tokens=5) + "\n"
    assert "words/s" in captured.err
    assert "peak memory" in captured.err


def test_each_image_alone_equals_reading_it_in_a_batch(
    model_folder: Path, pictures: list[str], capsys: Capture
) -> None:
    flags = [text for path in pictures for text in ("--image", path)]
    generate.main(["--model", str(model_folder), *flags, "--each", "--jsonl", "--max-tokens", "6"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == pictures
    for line in lines:
        generate.main(["--model", str(model_folder), "--image", line["image"], "--jsonl", "--max-tokens", "6"])
        alone = json.loads(capsys.readouterr().out)
        assert alone.pop("log_probability") == pytest.approx(line.pop("log_probability"), abs=1e-4)
        assert alone.pop("confidence") == pytest.approx(line.pop("confidence"), rel=1e-3)
        assert alone == line


def test_a_prompt_from_standard_input_places_images_at_its_marks(
    model_folder: Path, pictures: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for prompt in ("red <|image|> green", "<|image|>red  green"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(prompt))
        generate.main(["--model", str(model_folder), "--image", pictures[1], "--prompt", "-", "--max-tokens", "9"])
        texts.append(capsys.readouterr().out)
    assert arrange("red <|image|> green", ["a"]) == ["red ", Path("a"), " green"]
    assert texts[0] != texts[1]  # the place matters


def test_a_prompt_may_name_its_images(model_folder: Path, pictures: list[str], capsys: Capture) -> None:
    named, placed = f"red <|image|> {pictures[1]} <|/image|> green", "red <|image|> green"
    flags = ["--model", str(model_folder), "--max-tokens", "9"]
    generate.main([*flags, "--prompt", named])
    text = capsys.readouterr().out
    generate.main([*flags, "--prompt", placed, "--image", pictures[1]])
    assert capsys.readouterr().out == text
    assert arrange(named, []) == ["red ", Path(pictures[1]), " green"]


@pytest.mark.parametrize(
    ("prompt", "paths", "expected"),
    [
        ("", ["a", "b"], [Path("a"), Path("b")]),
        ("read", ["a"], [Path("a"), "read"]),
        ("<|image|>", ["a"], [Path("a")]),
        ("x<|image|><|image|>y", ["a", "b"], ["x", Path("a"), Path("b"), "y"]),
        ("only words", [], ["only words"]),
    ],
)
def test_images_stand_at_their_marks_or_first(prompt: str, paths: list[str], expected: list[object]) -> None:
    assert arrange(prompt, paths) == expected


@pytest.mark.parametrize(("prompt", "paths"), [("<|image|>", []), ("<|image|>", ["a", "b"]), ("<|image|>" * 3, ["a"])])
def test_marks_that_do_not_match_the_images_are_refused(prompt: str, paths: list[str]) -> None:
    with pytest.raises(PixWordError, match="one mark an image"):
        arrange(prompt, paths)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "{tmp}/model"], "give --image FILE"),
        (["--model", "{tmp}/model", "--image", "{tmp}/no.png"], "no.png: no such file"),
        (["--image", "http://x.org/a.png"], "a.png: no such file; addresses are not fetched, download it first"),
        (["--image", "{tmp}/*.png"], "*.png: no such file; a shell fills in names only outside of quotes"),
        (["--image", "-"], "-: no such file; images are not read from standard input"),
        (["--image", ""], "argument --image: the path is empty; a variable may not be set"),
        (["--image", "{tmp}/0.png", "--model", ""], "argument --model: the path is empty"),
        (["--model", "{tmp}/model", "--image", "{tmp}/broken.png"], "broken.png"),
        (["--model", "{tmp}/model", "--image", "{tmp}/wide.png"], "windows"),
        (
            ["--model", "{tmp}/model", "--image", "{tmp}/bomb.png"],
            "bomb.png: too large, the limit is 89,478,485",
        ),
        (["--model", "{tmp}/none/such", "--image", "{tmp}/0.png"], "no model at"),
        (["--model", "{tmp}/model", "--image", "{tmp}/0.png", "--temp", "-1"], "--temp"),
        (["--model", "{tmp}/model", "--image", "{tmp}/0.png", "--top-k", "many"], "--top-k"),
    ],
)
def test_mistakes_in_generate(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture, flags: list[str], words: str
) -> None:
    (tmp_path / "broken.png").write_bytes(Path(pictures[1]).read_bytes()[:50])
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    Image.new("RGB", (16, 32)).save(tmp_path / "wide.png")
    config = json.loads((model_folder / "config.json").read_text())
    if words == "windows":  # 32 windows of 4x4 pixels do not fit, which config.json already shows
        config["max_seq_len"] = 20
    (model_folder / "config.json").write_text(json.dumps(config))
    assert words in mistake(capsys, generate.main, *(f.format(tmp=tmp_path) for f in flags))


def test_one_flag_takes_what_a_shell_expands(model_folder: Path, pictures: list[str], capsys: Capture) -> None:
    generate.main(["--model", str(model_folder), "--each", "--image", *pictures, "--max-tokens", "3"])
    lines = capsys.readouterr().out.splitlines()
    generate.main(
        ["--each", "--image", *pictures[:2], "--max-tokens", "3", "--image", pictures[2], "--model", str(model_folder)]
    )
    assert capsys.readouterr().out.splitlines() == lines
    assert [line.split("\t")[0] for line in lines] == pictures


def test_each_goes_on_past_bad_files_and_says_so(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # who opens it waits for ever
    bad = [str(tmp_path / f"{name}.png") for name in ("bad", "absent", "folder", "pipe")]
    images = [pictures[0], *bad, *pictures[1:]]
    with pytest.raises(SystemExit) as stop:
        run_command(
            lambda: generate.main(["--model", str(model_folder), "--each", "--image", *images, "--max-tokens", "3"])
        )
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert [line.split("\t")[0] for line in captured.out.splitlines()] == pictures
    for name in (
        *("bad.png: not an image of a known format", "absent.png: no such file", "folder.png: a folder; give"),
        *("pipe.png: a pipe or a device, and no file", "4 could not be read"),
    ):
        assert name in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("flags", [["--image", "{}"], ["--prompt", "<|image|>{}<|/image|>"]])
def test_what_is_no_file_is_not_taken_for_one_that_is_missing(
    flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "a pipe or a device, and no file; save it to one first"), ("", "a folder")):
        assert words in mistake(capsys, generate.main, *(flag.format(tmp_path / name) for flag in flags))


def test_what_was_scaled_down_is_said_and_a_part_is_read_at_its_own_size(
    model_folder: Path, tmp_path: Path, capsys: Capture, rng: np.random.Generator
) -> None:
    photo = rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(photo[10:34, 20:60]).save(tmp_path / "part.png")
    flags = ["--model", str(model_folder), "--max-tokens", "4", "--image"]
    generate.main([*flags, str(tmp_path / "photo.png")])
    assert "photo.png: scaled down from 120x80 to 32x21; --box X,Y,W,H" in capsys.readouterr().err
    generate.main([*flags, str(tmp_path / "photo.png"), "--box", "20,10,40,24"])
    captured = capsys.readouterr()
    model, processor = pw.load(model_folder)
    whole = tokens_of(photo[10:34, 20:60], processor.args)  # 40 pixels, more than the model's image size
    assert captured.out == pw.generate_text(model, processor, [whole], max_tokens=4) + "\n"
    assert "scaled down" not in captured.err


def test_only_some_scaled_images_have_a_line_each(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    paths = [str(tmp_path / f"{n}.png") for n in range(5)]
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    generate.main(["--model", str(model_folder), "--each", "--max-tokens", "1", "--image", *paths])
    err = capsys.readouterr().err
    assert err.count("scaled down from 64x64 to 32x32") == 3 and "and 2 more images were scaled down" in err


def test_a_cut_jpeg_is_read_and_named(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.new("RGB", (28, 12), "red").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])
    generate.main(["--model", str(model_folder), "--image", str(tmp_path / "a.jpg"), "--max-tokens", "2"])
    assert "a.jpg: cut short, its last bytes are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ("100,0,40,10", "does not lie inside the image of 120x80 pixels"),
        ("0,0,0,10", "is empty"),
        ("1,2,3", "must be four numbers"),
        ("a,0,1,1", "must be four numbers"),
        ("0,0,120,80", "--box 0,0,120,80 is too large for this model: a 120x80 image has 600 windows"),
    ],
)
def test_boxes_that_cannot_be_read(model_folder: Path, tmp_path: Path, capsys: Capture, box: str, words: str) -> None:
    Image.new("RGB", (120, 80)).save(tmp_path / "a.png")
    assert words in mistake(capsys, generate.main, "--model", model_folder, "--image", tmp_path / "a.png", "--box", box)


def test_a_box_needs_an_image(model_folder: Path, capsys: Capture) -> None:
    assert "--box" in mistake(capsys, generate.main, "--model", model_folder, "--prompt", "red", "--box", "0,0,1,1")


def test_home_folders_are_found_wherever_a_path_is_taken(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    texts = []
    for flags in (
        ["--model=~/model", "--image=~/0.png"],
        ["--model=~/model", "--prompt", "<|image|>~/0.png<|/image|>"],
        [f"--model={model_folder}", f"--image={pictures[0]}"],
    ):
        generate.main([*flags, "--max-tokens", "5"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    model, _ = pw.load("~/model")
    assert pw.save_model(model, None, "~/copy") == tmp_path / "copy"


def test_a_folder_of_another_user_that_mlx_compiles_in_is_one_line(
    capsys: Capture,
) -> None:
    def compile_something() -> None:
        raise RuntimeError("[Compile::eval_cpu] Failed to compile function f with error code 256.")

    with pytest.raises(SystemExit) as stopped:
        run_command(compile_something)
    assert stopped.value.code == 2
    assert "set TMPDIR to a folder of yours" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="other"):  # whatever else goes wrong keeps its traceback
        run_command(lambda: (_ for _ in ()).throw(RuntimeError("other")))


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_last_line_is_the_table_as_json(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading("red", math.log(0.5), 0.5, ())
    monkeypatch.setattr(readings, "read_batch", lambda _m, _p, _b, limits, **_: [reading] * len(limits))
    data = labels(tmp_path, pictures, ["red", "green", "blue"])
    evaluate.main(["--model", str(model_folder), "--data", data])
    *table, last = capsys.readouterr().out.splitlines()
    scores = json.loads(last)
    assert scores["documents"] == scores["read"] == 3
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["exact_match_95"][0] < scores["exact_match"] < scores["exact_match_95"][1]
    assert scores["word_perplexity"] == pytest.approx(np.exp(scores["word_loss"]))
    assert [line.split()[0] for line in table] == list(scores)


def test_a_malformed_document_costs_itself_alone(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in (("a", "red green"), ("b", "red <|image|> never closed"), ("c", "blue 123")):
        (texts / f"{name}.txt").write_text(text)
    evaluate.main(["--model", str(model_folder), "--data", str(texts), "--max-bad", "1"])
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scores["documents"], scores["skipped"]) == (2, 1)
    line = mistake(capsys, evaluate.main, "--model", model_folder, "--data", texts)
    assert "1 of 1 images are bad" in line and "b.txt" in line


def test_losses_of_unlabelled_images_and_of_text(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("red green blue")
    for data in ([*pictures[:1]], [str(tmp_path / "texts")], [*pictures, str(tmp_path / "texts")]):
        flags = [text for path in data for text in ("--data", path)]
        evaluate.main(["--model", str(model_folder), *flags])
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert scores["documents"] == len(data)
        assert ("boundary_loss" in scores) == any(path.endswith("png") for path in data)
        assert "exact_match" not in scores


def test_limit_and_bad_images_in_evaluate(
    model_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture
) -> None:
    data = labels(tmp_path, pictures, ["a", "b", "c"])
    evaluate.main(["--model", str(model_folder), "--data", data, "--limit", "2"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["documents"] == 2
    Path(pictures[1]).write_bytes(b"nothing")
    assert "1 of 3 images are bad" in mistake(capsys, evaluate.main, "--model", model_folder, "--data", data)


def test_bad_images_in_evaluate_are_judged_early(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(measure, "ENOUGH", 20)
    monkeypatch.setattr(measure, "JUDGED", 10)
    for n in range(200):
        (tmp_path / f"{n:03}.png").write_bytes(b"nothing")
    assert "21 of 21 images are bad" in mistake(capsys, evaluate.main, "--model", model_folder, "--data", tmp_path)


@pytest.mark.parametrize("captioned", [False, True])
def test_texts_that_a_model_of_images_leaves_out_are_told_of(
    small_model: Build, pictures: list[str], tmp_path: Path, capsys: Capture, captioned: bool
) -> None:
    folder = pw.save_model(small_model(vocab_size=6), None, tmp_path / "images-alone")
    data = labels(tmp_path, pictures, ["a", "b", "c"]) if captioned else pictures[0]
    evaluate.main(["--model", str(folder), "--data", data])
    captured = capsys.readouterr()
    assert ("knows no words: the texts are left out" in captured.err) == captioned
    assert "boundary_loss" in json.loads(captured.out.splitlines()[-1])


def test_built_in_data_is_no_file(model_folder: Path, capsys: Capture) -> None:
    line = mistake(capsys, evaluate.main, "--model", model_folder, "--data", "plates")
    assert "plates is built in" in line and "scripts/make_plates.py" in line


# --- all --------------------------------------------------------------------------------------------------------------


def test_the_doctor_reports_and_advises(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SIZE", 64)
    doctor.main([])
    report = capsys.readouterr().out
    for word in ("mlx-pixword", "device", "memory", "BLAS", "float32 matmul", "PIXWORD_KERNELS", "kernel fold_colors"):
        assert word in report
    assert mx.default_device().type.name in report


@pytest.mark.parametrize("program", ["pretrain", "generate", "evaluate", "convert", "doctor"])
def test_help_answers_within_a_second(program: str) -> None:
    """Of processor time, which other work on the machine does not take; the least of three."""
    command, best = [sys.executable, "-m", f"mlx_pixword.{program}", "--help"], float("inf")
    for _ in range(3):
        before = processor_seconds_of_children()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        best = min(best, processor_seconds_of_children() - before)
    assert done.stdout.startswith(f"usage: python -m mlx_pixword.{program}")
    assert best < 1.0


def processor_seconds_of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system
