"""`generate --out-image`: files, completed images, GIFs, and one line for every mistake."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlx_pixword as pw
from mlx_pixword import generate
from mlx_pixword.common import files
from mlx_pixword.common.cli import run_command
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model_folder(small_model: Build, tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["red", "green"], 300)
    model = PixWordModel(small_model(vocab_size=tokenizer.vocab_size).args, pixel_queries=4)
    return pw.save_model(model, tokenizer, tmp_path / "model")


@pytest.fixture
def photo(tmp_path: Path, rng: np.random.Generator) -> Path:
    Image.fromarray(rng.integers(0, 256, (10, 7, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def run(folder: Path, *flags: object) -> None:
    generate.main(["--model", str(folder), *map(str, flags)])


def test_a_drawing_is_the_one_the_function_gives(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a.png"
    run(model_folder, "--out-image", out, "--size", "7x5", "--prompt", "red", "--seed", 4)
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "px" in captured.err and "noise" not in captured.err
    image = pw.generate_image(*pw.load(model_folder), prompt="red", size=(5, 7), seed=4)
    assert pixels(out).tolist() == np.array(image).tolist()


def test_several_drawings_and_a_gif(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    run(model_folder, "--out-image", tmp_path / "a.png", "--size", "6x5", "--count", 3, "--gif")
    names = ["a-1.png", "a-2.png", "a-3.png", "a.gif"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == names
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames > 1  # type: ignore[attr-defined]
        assert gif.width % 18 == 0
    assert pixels(tmp_path / "a-1.png").tolist() != pixels(tmp_path / "a-2.png").tolist()


def test_every_prompt_gets_its_drawings(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = ["--size", "6x5", "--count", 2, "--seed", 3]
    run(model_folder, "--out-image", tmp_path / "a.png", *flags, "--prompt", "red", "--prompt", "green red green")
    paths = [tmp_path / f"a-{n}.png" for n in (1, 2, 3, 4)]
    assert capsys.readouterr().out.split() == list(map(str, paths))
    for n, prompt in ((0, "red"), (2, "green red green")):
        alone = pw.generate_images(*pw.load(model_folder), prompt=prompt, size=(5, 6), count=2, seed=3 + n)
        assert [pixels(path).tolist() for path in paths[n : n + 2]] == [np.array(image).tolist() for image in alone]


def test_words_and_images_then_an_image_then_words(
    model_folder: Path, photo: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, prompt = tmp_path / "a.png", f"red <|image|>{photo}<|/image|> green"
    flags = ["--out-image", out, "--size", "6x5", "--prompt", prompt, "--then-words", "--max-tokens", 7, "--seed", 2]
    run(model_folder, *flags)
    model, processor = pw.load(model_folder)
    parts = ["red ", Image.open(photo), " green"]
    drawn = pw.generate_image(model, processor, parts, (5, 6), seed=2)
    assert pixels(out).tolist() == np.array(drawn).tolist()
    words = pw.generate_text(model, processor, [*parts, drawn], max_tokens=7)
    assert words
    assert capsys.readouterr().out == f"{out}\t{words}\n"
    run(model_folder, *flags, "--force", "--count", 2, "--prompt", "red")
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert [line.split("\t")[0] for line in lines] == [str(tmp_path / f"a-{n}.png") for n in (1, 2, 3, 4)]
    assert lines[0].split("\t")[1] == words


@pytest.mark.parametrize(
    ("keep", "rows", "notices"), [(0.5, 5, 1), (0.0, 0, 0), (1.0, 10, 0), (0.4, 4, 0), (0.75, 7, 1)]
)
def test_completing_keeps_rows_in_their_original_colours(
    model_folder: Path, photo: Path, tmp_path: Path, capsys: Capture, keep: float, rows: int, notices: int
) -> None:
    run(model_folder, "--out-image", tmp_path / "done.png", "--complete", photo, "--keep", keep)
    done, original = pixels(tmp_path / "done.png"), pixels(photo)
    assert done.shape == original.shape
    assert (done[:rows] == original[:rows]).all()
    folded = pw.unfold_colors(pw.fold_colors(done[rows:].copy(), 64), 64)
    assert (done[rows:] == folded).all()  # drawn pixels have folded colours
    assert capsys.readouterr().err.count("falls inside windows") == notices


def test_what_was_scaled_down_or_cut_short_is_said_of_the_image_to_complete(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    Image.new("RGB", (64, 32), "red").save(tmp_path / "large.jpg")
    (tmp_path / "large.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:-2])
    side = pw.load(model_folder)[1].args.image_size
    flags = ["--complete", tmp_path / "large.jpg", "--keep", 1, "--out-image", tmp_path / "a.png"]
    run(model_folder, *flags)
    err = capsys.readouterr().err
    assert f"large.jpg: scaled down from 64x32 to {side}x{side // 2}" in err
    assert "--complete" in err and "large.jpg: cut short, its last bytes are missing" in err


def test_a_model_without_drawn_pixels_warns_once(small_model: Build, tmp_path: Path, capsys: Capture) -> None:
    folder = pw.save_model(small_model(), None, tmp_path / "model")
    run(folder, "--out-image", tmp_path / "a.png", "--size", "4x4")
    assert capsys.readouterr().err.count("--pixel-queries") == 1
    assert (tmp_path / "a.png").exists()


def test_files_are_written_over_with_force_alone(model_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.png").write_text("precious")
    flags = ["--model", model_folder, "--out-image", tmp_path / "a.png", "--size", "4x4"]
    assert "--force" in mistake(capsys, *flags)
    assert (tmp_path / "a.png").read_text() == "precious"
    run(model_folder, *flags[2:], "--force")
    assert pixels(tmp_path / "a.png").shape == (4, 4, 3)


def mistake(capsys: Capture, *flags: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: generate.main([*map(str, flags)]))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


def test_a_closed_folder_is_noticed_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    flags = ["--model", tmp_path / "none", "--out-image", tmp_path / "a.png"]
    assert f"--out-image {tmp_path / 'a.png'}: {tmp_path} cannot be written to" in mistake(capsys, *flags)


def test_a_disk_that_is_full_or_closed_in_the_end_is_one_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def closed(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", closed)
    monkeypatch.setattr(Path, "unlink", closed)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: run(model_folder, "--out-image", tmp_path / "a.png", "--size", "4x4"))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and f"error: cannot write {tmp_path / 'a.png'}: Read-only file system; make it" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out-image", "{tmp}/a.jpg"], "must end in .png"),
        (["--out-image", "{tmp}/none/a.png"], "there is no folder"),
        (["--out-image", "{tmp}/a.png", "--size", "4"], "two positive integers"),
        (["--out-image", "{tmp}/a.png", "--size", "0x4"], "two positive integers"),
        (["--out-image", "{tmp}/a.png", "--size", "4x4.5"], "two positive integers"),
        (["--out-image", "{tmp}/a.png", "--size", "400x400"], "draw a smaller image"),
        (["--out-image", "{tmp}/a.png", "--complete", "{tmp}/photo.png", "--keep", "1.5"], "--keep must lie in 0..1"),
        (["--out-image", "{tmp}/a.png", "--complete", "{tmp}/photo.png", "--size", "4x4"], "leave out --size"),
        (["--out-image", "{tmp}/a.png", "--complete", "{tmp}/none.png"], "no such file"),
        (["--out-image", "{tmp}/a.png", "--complete", "{tmp}/model/config.json"], "config.json: not an image"),
        (["--out-image", "{tmp}/a.png", "--count", "0"], "--count"),
        (["--out-image", "{tmp}/a.png", "--each", "--image", "{tmp}/photo.png"], "--each is for reading; leave it out"),
        (["--out-image", "{tmp}/a.png", "--jsonl"], "--jsonl is for reading"),
        (["--out-image", "{tmp}/a.png", "--min-confidence", "0.5"], "--min-confidence is for reading"),
        (["--size", "4x4", "--prompt", "red"], "give --out-image"),
        (["--then-words", "--prompt", "red"], "give --out-image"),
        (["--prompt", "red", "--prompt", "green"], "give --out-image"),
        (["--out-image", "{tmp}/a.png", "--prompt", "<|image|>{tmp}/no.png<|/image|>"], "no.png: no such file"),
        (["--out-image", "{tmp}/a.png", "--prompt", "red\n{tmp}/photo.png<|/image|>"], "line 2: <|/image|> without"),
        (["--out-image", "{tmp}/a.png", "--prompt", "<|image|>{tmp}/photo.png"], "1 <|image|> marks for 0 images"),
        (["--out-image", "{tmp}/a.png", "--prompt", "<|image|><|/image|>"], "a path is needed"),
        (["--out-image", "{tmp}/a.png", "--prompt", "<|image|><|image|>{tmp}/photo.png<|/image|>"], "inside another"),
        (
            ["--out-image", "{tmp}/a.png", "--prompt", "<|image|>{tmp}/model/config.json<|/image|>"],
            "--prompt {tmp}/model/config.json: not an image",
        ),
        (
            [
                "--out-image",
                "{tmp}/a.png",
                "--image",
                "{tmp}/photo.png",
                "--prompt",
                "<|image|>{tmp}/photo.png<|/image|>",
            ],
            "not both",
        ),
        (
            ["--out-image", "{tmp}/a.png", "--size", "32x32", "--prompt", "red", "--prompt", "red " * 35],
            "smaller image",
        ),
    ],
)
def test_mistakes_leave_no_file(
    model_folder: Path, photo: Path, tmp_path: Path, capsys: Capture, flags: list[str], words: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    flags, words = [f.format(tmp=tmp_path) for f in flags], words.format(tmp=tmp_path)
    assert words in mistake(capsys, "--model", model_folder, *flags)
    assert sorted(tmp_path.rglob("*")) == before
