"""`pretrain` from the command line: every kind of data trains, runs resume, and mistakes are one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pretrain_runs import fails, train, write_jsonl, write_texts, write_zip

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data import loader
from mlx_pixword.pretrain import main, parse_command
from mlx_pixword.training import trainer

# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_on_built_in_plates_leaves_everything_promised(tmp_path: Path) -> None:
    out = tmp_path / "run"
    metrics = train(out, "--image-size", 32, "--max-seq-len", 80, "--eval-every", 2, "--save-every", 2, steps=4)
    present = {str(p.relative_to(out)) for p in out.rglob("*")}
    assert present >= {
        "config.yaml", "metrics.jsonl", "loss.png", "tokenizer.model", "samples/step-2.png", "samples/step-4.png",
        "samples/step-4-drawn.png", "machines.jsonl",
        "checkpoints/step-2/model.safetensors", "checkpoints/step-4/optimizer.safetensors",
        "checkpoints/step-2/manifest.json", "best/model.safetensors", "best/tokenizer.model",
        "final/config.json", "final/model.safetensors", "final/tokenizer.model",
    }  # fmt: skip
    (machine,) = [json.loads(line) for line in (out / "machines.jsonl").read_text().splitlines()]
    assert machine["step"] == 0 and machine["ranks"] == 1 and machine["device"].startswith(("cpu, ", "gpu, "))
    kept = json.loads((out / "samples" / "step-4.json").read_text())
    assert kept["step"] == 4 and all(0 <= line["confidence"] <= 1 for line in kept["readings"])
    assert all(line["picture"].startswith("data:image/png;base64,") for line in kept["readings"])
    assert [m["step"] for m in metrics if "word_loss" in m] == [1, 2, 3, 4]
    expected = {"heldout_word_loss", "heldout_boundary_loss", "heldout_dense_loss", "heldout_exact_match"}
    assert expected <= metrics[-1].keys()
    model, processor = pw.load(out / "final")
    assert model.args.vocab_size == processor.tokenizer.vocab_size  # type: ignore[union-attr]
    assert not model.args.factored_colors
    with Image.open(out / "loss.png") as plot:
        assert plot.size == (960, 540)


@pytest.mark.parametrize("kind", ["folder", "zip", "jsonl", "texts"])
def test_every_kind_of_data_trains_and_losses_fall(tmp_path: Path, photos: Path, kind: str) -> None:
    images = photos
    data = {"folder": lambda p: p, "zip": write_zip, "jsonl": write_jsonl, "texts": write_texts}[kind](photos)
    metrics = train(tmp_path / "run", "--data", data, "--images", images, steps=30)
    first, last = metrics[0], [m for m in metrics if "boundary_loss" in m][-1]
    for name in ("word_loss", "boundary_loss"):
        assert last[name] < 0.8 * first[name]
    assert (tmp_path / "run/final/tokenizer.model").exists() == (kind in ("jsonl", "texts"))


def test_several_sources_with_cache_and_packing(tmp_path: Path, photos: Path) -> None:
    flags = ["--data", write_zip(photos), "--data", write_texts(photos), "--images", photos, "--pack"]
    plain = train(tmp_path / "a", *flags)
    cached = [train(tmp_path / name, *flags, "--cache", tmp_path / "cache") for name in ("b", "c")]
    assert len(list((tmp_path / "cache").rglob("*.windows"))) == 16
    for metrics in cached:
        assert [m["word_loss"] for m in metrics[:3]] == [m["word_loss"] for m in plain[:3]]


def test_accumulated_micro_batches_on_two_streams_equal_one(tmp_path: Path) -> None:
    runs = [
        train(tmp_path / str(n), "--accumulate", 4, "--streams", n, "--image-size", 32, "--max-seq-len", 80)
        for n in (1, 2)
    ]
    for one, two in zip(*runs, strict=True):
        assert one["boundary_loss"] == pytest.approx(two["boundary_loss"], rel=1e-4) if "boundary_loss" in one else True
    assert runs[0][0]["word_loss"] == pytest.approx(runs[1][0]["word_loss"], rel=1e-6)


@pytest.mark.parametrize("flags", [["--grad-checkpoint"], ["--optimizer", "adamw"], ["--schedule", "linear"],
                                   ["--dtype", "bfloat16"], ["--no-factored-colors"], ["--pixel-queries", "0"],
                                   ["--window-chunk", "4"], ["--caption-first", "0.5"], ["--pack"]])  # fmt: skip
def test_other_settings_train_too(tmp_path: Path, flags: list[str]) -> None:
    metrics = train(tmp_path / "run", *flags, "--image-size", 32, "--max-seq-len", 80)
    assert all(math.isfinite(m["boundary_loss"]) for m in metrics if "boundary_loss" in m)


def test_image_only_presets_drop_captions_with_one_notice(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "--data", write_jsonl(photos), "--vocab-size", 6)
    assert capsys.readouterr().err.count("the texts are dropped") == 1
    assert pw.load(tmp_path / "run/final")[0].args.vocab_size == 6


# --- bad data ---------------------------------------------------------------------------------------------------------


def test_bad_images_are_skipped_named_and_counted(tmp_path: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "0.png").read_bytes()[:60])
    (photos / "notes.doc").write_text("not an image")
    metrics = train(tmp_path / "run", "--data", photos, "--max-bad", 0.5, "--eval-documents", 0)
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert {Path(line["file"]).name for line in lines} == {"broken.png", "notes.doc"}
    assert all(line["reason"] for line in lines)
    assert metrics[-1]["skipped"] == 1  # a foreign file is named and is no bad image


def test_a_resumed_run_names_a_bad_image_once(tmp_path: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    flags = ["--data", photos, "--max-bad", 0.5, "--eval-documents", 0]
    train(tmp_path / "run", *flags, steps=2)
    train(tmp_path / "run", *flags, "--resume", steps=4)
    assert len((tmp_path / "run/skipped.jsonl").read_text().splitlines()) == 1


def test_too_many_bad_images_end_the_run(tmp_path: Path, photos: Path) -> None:
    for n in range(4):
        (photos / f"broken{n}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(PixWordError, match="of 12 images are bad"):
        train(tmp_path / "run", "--data", photos, steps=30)
    assert not (tmp_path / "run/final").exists()


def test_a_finished_model_is_published_before_the_complaint(tmp_path: Path, photos: Path) -> None:
    for n in range(4):
        (photos / f"broken{n}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(PixWordError, match="of 12 images are bad"):
        train(tmp_path / "run", "--data", photos, "--eval-documents", 0, steps=1)  # done before the epoch is over
    pw.load(tmp_path / "run/final")


def test_bad_images_are_judged_once_there_are_enough(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        (photos / f"broken{n}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    monkeypatch.setattr(trainer, "ENOUGH", 4)
    flags = ["--data", photos, "--group-size", 4, "--eval-documents", 0]
    with pytest.raises(PixWordError, match=r"\d of \d images are bad|\d of 1[0-4] images are bad"):
        train(tmp_path / "run", *flags, steps=30)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (5, "5 documents in a row cannot be read, the last one"),
        (0, r"\d+ documents in a row cannot be read: the first is .*"),
    ],
)
def test_data_that_disappears_stops_the_run_with_all_it_had(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, lost: int, words: str
) -> None:
    if lost:
        monkeypatch.setattr(loader, "LOST", lost)
    flags = ["--data", photos, "--group-size", 8, "--eval-documents", 0]
    save, gone = trainer.Run.record_update, tmp_path / "gone"

    def unplug(run: trainer.Run, *values: object) -> None:
        save(run, *values)  # type: ignore[arg-type]
        if photos.exists():
            photos.rename(gone)

    monkeypatch.setattr(trainer.Run, "record_update", unplug)
    with pytest.raises(PixWordError, match=rf"{words}.*; put the data back"):
        train(tmp_path / "run", *flags, steps=400)
    monkeypatch.undo()
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    gone.rename(photos)
    step = int(saved.name[5:])
    metrics = train(tmp_path / "run", *flags, "--resume", steps=step + 9)
    assert metrics[-1]["step"] == step + 9 and metrics[-1]["skipped"] == 0


def test_a_drive_that_goes_away_in_a_large_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defaults, after as many images as bad ones are judged by: the run is saved, and goes on."""
    drive, gone = tmp_path / "drive", tmp_path / "gone"
    drive.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    for n in range(1600):
        (drive / f"{n}.png").hardlink_to(tmp_path / "red.png")
    flags = ["--data", drive, "--group-size", 256, "--batch-tokens", 2048, "--eval-documents", 0, "--save-every", 10**6]
    update = trainer.Run.record_update

    def unplug(run: trainer.Run, *values: object) -> None:
        update(run, *values)  # type: ignore[arg-type]
        if run.skips.tries > trainer.ENOUGH and drive.exists():
            drive.rename(gone)

    monkeypatch.setattr(trainer.Run, "record_update", unplug)
    with pytest.raises(
        PixWordError, match=r"300 documents in a row cannot be read, the last one: .*file not found; put"
    ):
        train(tmp_path / "run", *flags, steps=100)
    monkeypatch.undo()
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    gone.rename(drive)
    metrics = train(tmp_path / "run", *flags, "--resume", steps=int(saved.name[5:]) + 6)
    assert metrics[-1]["skipped"] == 0 and metrics[-1]["step"] == int(saved.name[5:]) + 6
    assert (tmp_path / "run/skipped.jsonl").read_bytes() == b""


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "{tmp}/nothing"], "nothing"),
        (["--data", "{tmp}/empty"], "holds no images"),
        (["--fold-factor", "12"], "fold factor"),
        (["--image-size", "30", "--window-size", "4"], "multiple of the window size"),
        (["--image-size", "512", "--window-size", "4"], "raise max_seq_len"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--learning-rate", "-1"], "learning_rate must be positive"),
        (["--tokenizer", "{tmp}/absent.model"], "absent.model"),
        (["--tokenizer", "{tmp}/a.yaml"], "a.yaml"),
        (["--config", "{tmp}/a.yaml"], "unknown key 'stepz'"),
        (["--config", "{tmp}/absent.yaml"], "absent.yaml"),
        (["--out", "{tmp}"], "holds something else already; choose another folder"),
        (["--out", "{tmp}/a.yaml"], "is a file"),
        (["--report-to", " ,wandb"], "--report-to"),
        (["--report-to", "carrier-pigeon"], "carrier-pigeon"),
        (["--preset", "huge"], "--preset"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.yaml").write_text("stepz: 3\n")
    before = sorted(tmp_path.rglob("*"))
    arguments = [f.format(tmp=tmp_path) for f in flags]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "run")]
    assert words in fails(capsys, *out, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


# --- configuration ----------------------------------------------------------------------------------------------------


def test_a_printed_configuration_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "upw-120m", "--steps", "7", "--print-config"])
    printed = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(printed)
    config, print_only = parse_command(["--config", str(tmp_path / "run.yaml")])
    assert not print_only
    assert config.train.steps == 7
    assert config.to_flat() == yaml.safe_load(printed)


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: tiny\nsteps: 5\nseed: 3\n")
    config, _ = parse_command(["--config", str(tmp_path / "run.yaml"), "--steps", "9"])
    assert (config.train.steps, config.train.seed, config.model.fold_factor) == (9, 3, 32)


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_pixword.pretrain", "--data", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
