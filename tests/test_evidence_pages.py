"""The tables of the evidence's page, made again from kept JSON: the same to the last digit."""

import shutil
from pathlib import Path

import pytest
from evidence.analysis import Evidence
from evidence.files import pack_column, pack_texts, unpack_column, unpack_texts
from evidence.pages import BEGIN, END, markdown, write_pages
from evidence.tables import all_tables

from mlx_pixword.common.errors import PixWordError

STORED = Path(__file__).parent / "stored" / "evidence"


def test_kept_json_gives_the_tables_to_the_last_digit() -> None:
    found = markdown(all_tables(Evidence(STORED)), "evidence")
    assert found == (STORED / "expected.txt").read_text(encoding="utf-8")


def test_the_results_are_a_part_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written by hand stays; the HTML page needs no other file."""
    monkeypatch.setattr("evidence.analysis.fit_mixed_model", lambda *_, **__: {})
    page = tmp_path / "page.md"
    page.write_text(f"# Claims\n\nBy *hand*.\n\n{BEGIN}\nformer\n{END}\n\nThe end.\n", encoding="utf-8")
    write_pages(STORED, page, tmp_path / "figures")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Claims\n\nBy *hand*.\n") and text.endswith("\n\nThe end.\n")
    assert "former" not in text and "| 1b - 7 | equal time | -15.8" in text
    html = (tmp_path / "figures" / "index.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 3 and "src=" not in html and "By <i>hand</i>." in html
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png", ".html"}
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(PixWordError, match="no place for results"):
        write_pages(STORED, page, tmp_path / "figures")


def test_a_run_that_is_missing_is_not_run(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "kept")
    for run in (tmp_path / "kept" / "runs").glob("i-main-*"):
        run.unlink()
    evidence = Evidence(tmp_path / "kept")
    assert {verdict.name for verdict in evidence.verdicts.values()} == {"not run"}


def test_columns_are_kept_as_they_are() -> None:
    import numpy as np

    assert unpack_texts(pack_texts(["a", "", "1,2"])) == ["a", "", "1,2"]
    column = np.arange(5, dtype=np.float32)
    assert unpack_column(pack_column(column)).tolist() == column.tolist()
