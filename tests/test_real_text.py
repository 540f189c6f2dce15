"""Crops of real sets: cut, split in thirds by document, read, and which crops were read."""

import base64
import gzip
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import real_text
from PIL import Image

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data.text_file import TextFile
from mlx_pixword.inference.read import Reading


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


def test_confidences_are_compared_with_what_was_right(
    crops: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = TextFile(crops / "plates-31x8-development.pwtext")
    written = iter([source.text(int(n)) for n in real_text.chosen_crops(len(source), 8)])

    def read(images: Sequence[np.ndarray]) -> list[Reading]:
        if np.all(images[0] == 255):
            return [Reading("", 0.0, 0.0, ())]
        return [Reading(next(written), 0.0, 0.75, ()) for _ in images]

    monkeypatch.setitem(real_text.ENGINES, "ours", lambda _: read)
    monkeypatch.setattr(real_text, "stay_on_one_core", lambda: None)
    real_text.main(["--crops", str(crops), "--sets", "plates-31x8", "--limit", "8", "--one-core"])
    first, second = capsys.readouterr().out.splitlines()
    assert "plates-31x8    1.000" in first and "calibration error 0.250" in first and "ms a crop" in first
    assert second == "all            calibration error 0.250 of 8"


WORD = '<word xMin="{}" yMin="{}" xMax="{}" yMax="{}">{}</word>'


def poppler(*command: str) -> "subprocess.CompletedProcess[bytes]":
    """What poppler does with a page of 72x36 points that has four words, one of them upright and one in Greek."""
    if command[0] == "pdftotext":
        boxes = [(6, 6, 26, 12, "12.50"), (30, 6, 44, 12, "(x)"), (60, 4, 64, 30, "turned"), (6, 20, 30, 26, "λόγος")]
        page = '<page width="72" height="36">' + "".join(WORD.format(*box) for box in boxes) + "</page>"
        text = f'<html xmlns="http://www.w3.org/1999/xhtml">{page}\x0c</html>'
        return subprocess.CompletedProcess(command, 0, text.encode())
    dpi = int(command[2])
    pixels = np.arange(dpi * dpi // 2, dtype=np.uint32).reshape(dpi // 2, dpi)  # each says where it is
    rgb = np.stack([pixels >> 16, pixels >> 8, pixels], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(f"{command[-1]}-3.ppm")
    return subprocess.CompletedProcess(command, 0)


@pytest.mark.parametrize("dpi", [36, 72])
def test_words_of_pdfs_stand_where_poppler_says(dpi: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_text, "_poppler", poppler)
    for name, content in (("a.pdf", b"%PDF one"), ("b.pdf", b"%PDF one"), ("d.pdf", b"text"), ("e.txt", b"%PDF no")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.pdf.gz").write_bytes(gzip.compress(b"%PDF two"))
    (tmp_path / "link.pdf").symlink_to("nowhere.pdf")
    found = list(real_text.pdf_words(tmp_path, dpi))
    assert [(text, document) for _, text, document in found] == [  # a copy is the same document
        ("12.50", "pdf a.pdf"), ("(x)", "pdf a.pdf"), ("12.50", "pdf c.pdf.gz"), ("(x)", "pdf c.pdf.gz"),
    ]  # fmt: skip
    scale = dpi // 36
    for pixels, text, _ in found:
        left, right = (3, 13) if text == "12.50" else (15, 22)
        where = pixels.astype(int) @ [2**16, 2**8, 1]
        assert where.shape == (3 * scale + 1, (right - left) * scale + 3)
        assert divmod(where[0, 0], dpi) == (3 * scale, left * scale - 1)


def test_without_poppler_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PixWordError, match="pdftotext: No such file or directory; apt-get install poppler-utils"):
        list(real_text.pdf_words(tmp_path, 36))
