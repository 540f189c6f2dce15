"""The benchmarks run, measure what they name, and keep what they say they keep."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from million import KINDS, make, start
from PIL import Image

import mlx_pixword as pw
from mlx_pixword.data.sources import open_source
from mlx_pixword.model.network import PixWordModel

ROOT = Path(__file__).parents[1]
TINY = ["--rounds", "3", "--seconds", "0.02", "--image-size", "32", "--window-size", "8"]


def loader(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of five small pictures, one of them grey."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, size in enumerate([(40, 60, 3), (64, 64, 3), (9, 80, 3), (50, 30, 3), (70, 48)]):
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(folder / f"{n}.{'png' if n % 2 else 'jpg'}")
    return folder


def test_a_folder_is_measured_and_the_result_is_kept(photos: Path, tmp_path: Path) -> None:
    result = loader("--data", photos, "--threads", 3, "--save", tmp_path / "results", *TINY)
    assert result.returncode == 0, result.stderr
    *table, line = result.stdout.splitlines()
    measured = json.loads(line)
    assert [row.split()[0] for row in table] == ["path", "pillow", "loader", "cached"]
    for name, speeds in measured["rounds"].items():
        assert len(speeds) == 3
        assert min(speeds) > 0
        assert measured["images_per_second"][name] == pytest.approx(statistics.median(speeds), abs=0.1)
    for name, ratio in measured["ratio_to_pillow"].items():
        pairs = zip(measured["rounds"][name], measured["rounds"]["pillow"], strict=True)
        assert ratio == pytest.approx(statistics.median(a / b for a, b in pairs), rel=0.01)
    assert set(measured["rounds"]) == {"pillow", "loader", "cached"}
    assert measured["images"] == {"count": 5, "made": False}
    assert measured["settings"]["threads"] == 3
    assert {"python", "mlx", "numpy", "pillow", "mlx-pixword"} == set(measured["versions"])
    (kept,) = (tmp_path / "results").iterdir()
    assert kept.name.startswith("loader-")
    assert json.loads(kept.read_text()) == measured
    assert str(tmp_path) not in kept.read_text()


def test_photos_are_made_where_none_are_given() -> None:
    result = loader("--made-images", 2, "--rounds", 1, "--seconds", 0.01)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["images"] == {"count": 2, "made": True}
    assert measured["ratio_to_pillow"]["cached"] > 1  # no decoding


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--seconds", "0"], "--seconds must be positive"),
        (["--image-size", "100"], "multiple of the window size"),
        (["--data", "nowhere"], "nowhere"),
        (["--wrong"], "--wrong"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str) -> None:
    result = loader(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_an_image_that_cannot_be_read_is_a_mistake(photos: Path) -> None:
    (photos / "broken.png").write_text("not an image")
    result = loader("--data", photos, *TINY)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "broken.png" in line


def test_bits_of_model_histogram_and_png(small_model: Callable[..., PixWordModel], tmp_path: Path) -> None:
    model = small_model(fold_factor=64)
    model.head.weight = 0 * model.head.weight  # uniform: 6 bits a pixel at f = 64
    folder = pw.save_model(model, None, tmp_path / "model")
    command = [sys.executable, str(ROOT / "benchmarks/bits.py"), "--model", str(folder), "--count", "30"]
    command += ["--training", "50", "--save", str(tmp_path / "results")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *table, line = result.stdout.splitlines()
    measured = json.loads(line)
    assert [row.split()[0] for row in table] == ["model", "histogram", "png"]
    assert measured["bits_a_plate"]["model"] == pytest.approx(6 * 28 * 12, rel=1e-3)
    assert measured["bits_a_plate"]["png"] < measured["bits_a_plate"]["histogram"] < 6 * 28 * 12
    (kept,) = (tmp_path / "results").iterdir()
    assert json.loads(kept.read_text()) == measured


def test_a_million_files_in_small(tmp_path: Path) -> None:
    """The same files as every kind, and one start over them."""
    folders = [make(kind, tmp_path, 40) for kind in KINDS]
    sources = [open_source(folder) for folder in folders]
    assert [len(source) for source in sources] == [40] * 3
    for source in sources:
        assert [part.name[-16:] for part in source.parts(39)] == ["0000/0000039.png"]  # type: ignore[union-attr]
    values = start(["--data", str(folders[0]), "--steps", "1", "--out", str(tmp_path / "run")], tmp_path / "index")
    assert 0 < values["start_seconds"] < values["whole_seconds"] and 0.02 < values["start_gb"] <= values["peak_gb"] < 2
