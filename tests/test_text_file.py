"""Files of packed crops: what goes in comes out, memory-mapped, and damage is one line."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.data import DataArgs
from mlx_pixword.data import text_file
from mlx_pixword.data.open import open_split
from mlx_pixword.data.sources import open_source
from mlx_pixword.data.text_file import TextFile, write_text_file
from mlx_pixword.data.text_images import TextSource

Rows = list[tuple[np.ndarray, str, dict[str, float]]]


@pytest.fixture
def rows() -> Rows:
    crops = [TextSource(1).crop(n) for n in range(40)]
    rows = [(crop.draw(), crop.text, {"ink_height": crop.looks.height, "clutter": 1}) for crop in crops]
    rows[3] = (rows[3][0], "naïve", rows[3][2])
    return rows


@pytest.fixture
def path(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_file, "SHARD_BYTES", 20_000)  # so that there are several
    assert write_text_file(tmp_path / "a.pwtext", iter(rows), {"kind": ["numbers"]}) == len(rows)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pwtext"]
    return tmp_path / "a.pwtext"


def test_what_goes_in_comes_out(path: Path, rows: Rows) -> None:
    source = open_source(path)
    assert isinstance(source, TextFile) and len(source) == len(rows) and source.captioned and not source.endless
    assert len([name for name in zipfile.ZipFile(path).namelist() if name.startswith("pixels-")]) > 3
    for index in np.random.default_rng(0).permutation(len(rows)).tolist():
        pixels, text, values = rows[index]
        np.testing.assert_array_equal(source.crop(index), pixels)
        assert source.text(index) == text
        assert source.facts(index) == pytest.approx(values)
        picture, caption = source.parts(index)
        assert not isinstance(picture, str) and caption == text
        np.testing.assert_array_equal(picture.rgb(64), pixels)
    assert list(source.texts()) == [text for _, text, _ in rows]
    assert source.about["kind"] == ["numbers"] and source.columns["ink_height"].dtype == np.float32


def test_numpy_reads_the_file_without_pickle(path: Path, rows: Rows) -> None:
    with np.load(path, allow_pickle=False) as stored:
        first = rows[0][0]
        np.testing.assert_array_equal(stored["pixels-0"][: first.size].reshape(first.shape), first)
        assert stored["text"][3].decode() == "naïve"


def test_the_digest_follows_the_contents(path: Path, rows: Rows, tmp_path: Path) -> None:
    write_text_file(tmp_path / "b.pwtext", rows, {"kind": ["numbers"]})
    rows[7][0][0, 0, 0] ^= 1
    write_text_file(tmp_path / "c.pwtext", rows, {"kind": ["numbers"]})
    digests = [TextFile(tmp_path / name).digest() for name in ("a.pwtext", "b.pwtext", "c.pwtext")]
    assert digests[0] == digests[1] != digests[2]


def test_a_crop_is_never_scaled(path: Path, rows: Rows) -> None:
    """Or what the file says of its ink would be wrong; at the start of a run, not when its turn comes."""
    side = max(max(row[0].shape[:2]) for row in rows)
    assert open_split(DataArgs(data=[str(path)]), 0, 1, side).train[0].name == str(path)
    with pytest.raises(PixWordError, match=rf"a\.pwtext, crop \d+ has {side} pixels .* image_size is {side - 1};"):
        open_split(DataArgs(data=[str(path)]), 0, 1, side - 1)
    picture, _ = TextFile(path).parts(0)
    assert not isinstance(picture, str)
    with pytest.raises(PixWordError, match=r"make_text.py --image-size 16"):
        picture.rgb(16)


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    def broken() -> Rows:
        yield np.zeros((4, 4, 3), np.uint8), "1", {}  # type: ignore[misc]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text_file(tmp_path / "a.pwtext", broken(), {})
    with pytest.raises(PixWordError, match="no crops to write"):
        write_text_file(tmp_path / "a.pwtext", [], {})
    with pytest.raises(PixWordError, match="cannot create"):
        write_text_file(tmp_path / "missing" / "a.pwtext", [], {})
    assert not list(tmp_path.iterdir())


def damage(path: Path, **arrays: np.ndarray | None) -> None:
    """Write the file again with other arrays; None leaves one out."""
    with np.load(path, allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files if name != "about.json"}
        about = stored["about.json"]
    kept |= {name: array for name, array in arrays.items() if array is not None}
    kept = {name: array for name, array in kept.items() if arrays.get(name, array) is not None}
    np.savez(path.with_suffix(".npz"), **kept)  # type: ignore[arg-type]
    path.with_suffix(".npz").rename(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("about.json", about)


def test_damage_is_one_line(path: Path, rows: Rows) -> None:
    count, whole = len(rows), path.read_bytes()
    wrongs: list[dict[str, np.ndarray | None]] = [
        {"start": np.full(count, 10**6)},
        {"shard": np.full(count, -1)},
        {"height": np.zeros(count, np.int32)},
        {"width": np.ones(count - 1, np.int32)},
        {"text": np.arange(count)},
        {"text": None},
        {"width": np.ones((count, 2), np.int32)},
    ]
    for wrong in wrongs:
        path.write_bytes(whole)
        damage(path, **wrong)
        with pytest.raises(PixWordError, match=r"a\.pwtext is no file of packed text, or a damaged one"):
            TextFile(path)
    for content in (b"", b"PK\3\4", whole[: len(whole) // 2], json.dumps([1]).encode()):
        path.write_bytes(content)
        with pytest.raises(PixWordError, match="is no file of packed text"):
            TextFile(path)
    path.write_bytes(whole)
    assert len(TextFile(path)) == count
