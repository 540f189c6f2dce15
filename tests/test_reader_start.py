"""The recipe's first minutes are compared with the kept record, at equal steps."""

import json
from pathlib import Path

import pytest
import reader_start

from mlx_pixword.common.errors import PixWordError


def run_folder(out: Path, losses: dict[int, float]) -> Path:
    """A run's folder whose held-out word losses are these, a line of training before each."""
    out.mkdir()
    lines = []
    for step, loss in losses.items():
        lines.append({"step": step - 10, "word_loss": 9.0, "seconds": 30.0})
        lines.append({"step": step, "heldout_word_loss": loss, "heldout_exact_match": 0.01})
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def start(*arguments: str | Path) -> None:
    reader_start.main(["--no-train", *map(str, arguments)])


def test_a_record_is_kept_and_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "results" / "start.json"
    start("--out", run_folder(tmp_path / "first", {250: 6.0, 500: 4.0}), "--record", record, "--save")
    kept = json.loads(record.read_text())
    assert kept["curve"][1] == {"step": 500, "minutes": 1.0, "exact_match": 0.01, "word_loss": 4.0}
    capsys.readouterr()
    start("--out", run_folder(tmp_path / "as_good", {250: 7.0, 500: 4.39, 750: 9.0}), "--record", record)
    said = capsys.readouterr().out
    assert "learns as the record did" in said and "4.3900   4.0000" in said and "750" not in said
    with pytest.raises(SystemExit, match="1"):
        start("--out", run_folder(tmp_path / "worse", {250: 5.0, 500: 4.41}), "--record", record)
    assert "learns less than the record" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(PixWordError, match="holds no run"):
        start("--out", tmp_path / "none")
    with pytest.raises(PixWordError, match=r"there is no record .*; --save keeps one"):
        start("--record", tmp_path / "none.json")
    with pytest.raises(PixWordError, match="has read no held-out crops yet"):
        start("--out", run_folder(tmp_path / "young", {}))
    record = tmp_path / "start.json"
    start("--out", run_folder(tmp_path / "a", {250: 6.0}), "--record", record, "--save")
    with pytest.raises(PixWordError, match="no step in common; the record has \\[250\\]"):
        start("--out", run_folder(tmp_path / "b", {300: 6.0}), "--record", record)
    with pytest.raises(PixWordError, match="--minutes must be positive"):
        start("--minutes", "0")
