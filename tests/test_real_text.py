"""Crops of real sets: cut, split in thirds by document, read, and which crops were read."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import real_text
from PIL import Image

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data.text_file import TextFile


@pytest.fixture
def crops(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Prepared crops of sixty plates, two pictures each."""
    folder = tmp_path / "plates" / "data" / "test"
    folder.mkdir(parents=True)
    for n in range(60):
        for copy in range(2):
            pixels = rng.integers(0, 256, (24, 94, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"省A{n:05}_{copy}.jpg")
    real_text.main(["--prepare", "--plates", str(tmp_path / "plates"), "--crops", str(tmp_path / "crops"),
                    "--sets", "plates-47x12, plates-31x8"])  # fmt: skip
    return tmp_path / "crops"


def test_thirds_share_no_document_and_a_document_has_a_number(crops: Path) -> None:
    parts = {part: TextFile(crops / f"plates-47x12-{part}.pwtext") for part in real_text.PARTS}
    texts = {part: {source.text(n) for n in range(len(source))} for part, source in parts.items()}
    assert sum(map(len, texts.values())) == 60 == len(set.union(*texts.values()))
    for source in parts.values():
        documents = [source.facts(n)["document"] for n in range(len(source))]
        assert len(set(documents)) == len(documents) / 2  # two pictures of each plate
    assert not list(crops.glob("plates-94x24*"))


def test_what_was_read_is_kept_crop_by_crop(crops: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = crops / "plates-47x12-development.pwtext"
    source = TextFile(path)
    written = [source.text(int(n)) for n in real_text.chosen_crops(len(source), 10)]
    monkeypatch.setitem(real_text.ENGINES, "tesseract", lambda _: lambda images: ["", *written[1:]])
    kept = dict[str, object]()
    monkeypatch.setattr(real_text, "keep", lambda result, _: kept.update(result))
    real_text.main(
        ["--crops", str(crops), "--sets", "plates-47x12", "--engine", "tesseract", "--limit", "10", "--save"]
    )
    score = kept["scores"]["tesseract"]["plates-47x12"]  # type: ignore[index]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(score["right"]), np.uint8), count=score["read"])
    assert bits.tolist() == [0] + [1] * 9 and score["exact_match"] == 0.9
    with pytest.raises(PixWordError, match=re.escape("holds no crops of meters of the part development")):
        real_text.main(["--crops", str(crops), "--sets", "meters"])
