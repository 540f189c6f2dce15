"""`pretrain --resume`: a run ends where an undisturbed one does, or says why it does not go on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from pretrain_runs import SMALL_FLAGS, train, untimed, write_jsonl

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.pretrain import main


@pytest.mark.parametrize("pack", ["--pack", "--no-pack"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path, photos: Path, pack: str) -> None:
    flags = ["--data", write_jsonl(photos), "--save-every", 3, "--group-size", 5, pack]
    whole = train(tmp_path / "whole", *flags, steps=8)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in ("step-6", "step-8"):
        shutil.rmtree(tmp_path / "cut/checkpoints" / step)  # as if it had ended after step 3
    resumed = train(tmp_path / "cut", *flags, "--resume", steps=8)
    assert untimed(resumed) == untimed(whole)
    weights = [(tmp_path / name / "final/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "run", tmp_path):
        with pytest.raises(PixWordError, match="holds no run; leave --resume out"):
            train(folder, "--resume", steps=1)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_moved_goes_on_where_it_is(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named from elsewhere, too: paths in config.yaml are absolute."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(photos)
    train(Path("run"), "--data", "photos/captions.jsonl", "--cache", "cache", "--max-bad", 1, steps=1)
    written = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (written["out"], written["cache"]) == (str(tmp_path / "run"), str(tmp_path / "cache"))
    assert written["data"] == [str(photos / "captions.jsonl")]
    Path("elsewhere").mkdir()
    Path("run").rename("elsewhere/moved")
    monkeypatch.chdir("/")
    main(["--config", str(tmp_path / "elsewhere/moved/config.yaml"), "--resume", "--steps", "2"])
    assert "resuming from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and (tmp_path / "elsewhere/moved/checkpoints/step-2").exists()
    assert yaml.safe_load((tmp_path / "elsewhere/moved/config.yaml").read_text())["out"].endswith("elsewhere/moved")


def test_epochs_are_steps_of_the_data_there_is(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", photos, "--eval-documents", 0, "--batch-tokens", 1, "--accumulate", 2]
    args = ["--out", str(tmp_path / "run"), *SMALL_FLAGS, *map(str, flags), "--epochs", "2.5"]
    main(args)
    assert "epochs   2.5 of 8 documents: 10 steps" in capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (written["steps"], written["epochs"]) == (10, None)
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics if "epoch" in m] == [0] * 4 + [1] * 4 + [2] * 2
    with pytest.raises(PixWordError, match="give --steps or --epochs, not both"):
        main([*args, "--steps", "3"])
    with pytest.raises(PixWordError, match="built-in data does not"):
        main(["--out", str(tmp_path / "other"), *SMALL_FLAGS, "--epochs", "1"])
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_is_due_after_some_minutes(tmp_path: Path) -> None:
    train(tmp_path / "often", "--save-minutes", 1e-9, "--keep", 0, steps=3)
    train(tmp_path / "never", "--save-minutes", 0, "--keep", 0, steps=3)
    for name, steps in (("often", {"step-1", "step-2", "step-3"}), ("never", {"step-3"})):
        assert {path.name for path in (tmp_path / name / "checkpoints").iterdir()} == steps


def test_a_resume_with_another_shape_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=1)
    with pytest.raises(PixWordError, match="num_layers 1, now 2"):
        train(tmp_path / "run", "--resume", "--num-layers", 2)


def test_other_data_another_preset_or_tokenizer_are_refused_with_the_difference(tmp_path: Path, photos: Path) -> None:
    data, out = write_jsonl(photos), tmp_path / "run"
    train(out, "--data", data, "--no-pack", steps=1)
    (tmp_path / "other.model").write_bytes(train_tokenizer(["other words"], 300).contents)
    before = (out / "config.yaml").read_bytes()
    for flags, difference in (
        (["--data", photos], "now .*photos"),
        ([], "data .*captions.jsonl .8 documents, .*, now built-in plates .digest"),
        (["--data", data, "--data", data], "1 sources of data, now 2"),
        (["--data", data, "--seed", 1], "seed 0, now 1"),
        (["--data", data, "--pack"], "pack False, now True"),
        (["--data", data, "--preset", "upw-120m"], "preset tiny, now upw-120m; fold_factor 32, now 16"),
        (["--data", data, "--tokenizer", tmp_path / "other.model"], r"tokenizer \w{12}, now \w{12}"),
    ):
        with pytest.raises(PixWordError, match=f"step-1 is of another run: .*{difference}"):
            train(out, "--no-pack", *flags, "--resume", steps=2)
    assert (out / "config.yaml").read_bytes() == before
    data.write_text(data.read_text().replace("picture 3", "picture X"))
    with pytest.raises(PixWordError, match=r"captions\.jsonl"):
        train(out, "--data", data, "--no-pack", "--resume", steps=2)


def test_data_may_be_moved_and_harmless_settings_changed(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "--data", photos, steps=1)
    photos.rename(tmp_path / "moved")
    flags = ["--data", tmp_path / "moved", "--threads", 1, "--learning-rate", 0.003]
    metrics = train(tmp_path / "run", *flags, "--resume", steps=2)
    assert [m["step"] for m in metrics] == [1, 1, 2, 2]
    error = capsys.readouterr().err
    assert "--resume: learning_rate 0.01, now 0.003" in error and "--resume: steps 1, now 2" in error
    assert "threads" not in error


def test_the_best_model_is_that_of_the_lowest_held_out_loss(tmp_path: Path, photos: Path) -> None:
    flags = ["--data", photos, "--eval-every", 1, "--learning-rate", 3.0, "--zero-init"]
    metrics = train(tmp_path / "run", *flags, steps=5)
    losses = {m["step"]: m["heldout_loss"] for m in metrics if "heldout_loss" in m}
    best = min(losses, key=losses.__getitem__)
    assert best != 5
    state = json.loads((tmp_path / "run/checkpoints/step-5/state.json").read_text())["progress"]
    assert (state["best_step"], state["best_loss"]) == (best, losses[best])
    again = train(tmp_path / "again", *flags, "--no-keep-best", steps=best)
    assert again[-1]["heldout_loss"] == losses[best]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run/best", "run/final")]
    assert weights[0] != weights[1] and not (tmp_path / "again/best").exists()


def test_metrics_after_the_checkpoint_are_kept_apart(tmp_path: Path) -> None:
    whole = train(tmp_path / "run", "--save-every", 2, steps=4)
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "torn')
    resumed = train(tmp_path / "run", "--save-every", 2, "--resume", steps=4)
    assert untimed(resumed) == untimed(whole)
    dropped = (tmp_path / "run/metrics.dropped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in dropped[:-1]] == whole[2:] and dropped[-1].endswith("torn")


def test_a_run_without_a_complete_checkpoint_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train(tmp_path / "run", steps=1)
    (tmp_path / "run/checkpoints/step-1/model.safetensors").write_bytes(b"")
    assert untimed(train(tmp_path / "run", "--resume", steps=1)) == untimed(whole)
    error = capsys.readouterr().err
    assert "passing over" in error and "model.safetensors has 0 of" in error and "starting at step 0" in error
