"""Runs on built-in text: what is drawn is named, faces that cannot be used too, and the fonts are the run's."""

import json
import shutil
from pathlib import Path

import pytest
from pretrain_runs import fails, train

from mlx_pixword.data.fonts import bundled_faces

TEXT = (
    "--data", "text", "--text-heights", "6-8", "--text-length", "2", "--text-kinds", "numbers", "--image-size", "32",
    "--max-seq-len", "96",
)  # fmt: skip


def some_font() -> Path:
    """A font file of matplotlib, which is a folder's here."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def test_a_run_names_its_faces_and_keeps_to_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fonts, out = tmp_path / "fonts", tmp_path / "run"
    fonts.mkdir()
    shutil.copy(some_font(), fonts / "same.ttf")
    (fonts / "broken.ttf").write_bytes(b"no font")
    train(out, *TEXT, "--fonts", fonts, "--save-every", 2, steps=2)
    note = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("fonts "))
    assert "dejavu serif" in note.split("; held out: ")[0] and "stixgeneral" in note.split("; held out: ")[1]
    faces = [json.loads(line) for line in (out / "fonts.jsonl").read_text().splitlines()]
    assert {face["name"] for face in faces} == {face.name for face in bundled_faces()}
    assert {face["family"] for face in faces if face["held_out"]} == set(note.split("; held out: ")[1].split(", "))
    assert all(len(face["digest"]) == 64 for face in faces)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert any("broken.ttf" in str(line) for line in skipped), skipped
    (fonts / "same.ttf").write_bytes(some_font().read_bytes() + b"\0")  # another face, as far as anyone can tell
    line = fails(capsys, "--config", out / "config.yaml", "--resume", "--steps", 4)
    assert "data" in line and "--resume" in line
