"""What a run tells: curves of a bounded number of points, and lines that a crash left in part."""

import json
from pathlib import Path

import pytest

from mlx_pixword.training import reporter
from mlx_pixword.training.reporter import keep_metrics, plot_losses


def write(folder: Path, count: int) -> None:
    held = {7: {"heldout_word_loss": 1.0}}
    lines = [json.dumps({"step": n, "word_loss": n / 2} | held.get(n, {})) for n in range(count)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in [*lines, '{"step": 9, "word_loss": NaN}']))


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 1000])
def test_curves_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(reporter, "MOST_POINTS", 10)
    write(tmp_path, count)
    curves = reporter._curves(tmp_path, ["word_loss", "heldout_word_loss", "dense_loss"])
    steps = [step for step, _ in curves["word_loss"]]
    assert all(value == step / 2 for step, value in curves["word_loss"])
    assert min(count, 5) <= len(steps) <= 10 and steps[0] == 0
    assert steps == list(range(0, count, steps[1] if len(steps) > 1 else 1))
    assert curves["heldout_word_loss"] == ([(7, 1.0)] if count > 7 else []) and curves["dense_loss"] == []


def test_a_plot_needs_no_lines(tmp_path: Path) -> None:
    assert plot_losses(tmp_path).exists()
    write(tmp_path, 20)
    assert plot_losses(tmp_path).stat().st_size > 1000


def test_nothing_is_rewritten_where_nothing_is_dropped(tmp_path: Path) -> None:
    keep_metrics(tmp_path, 3)
    write(tmp_path, 3)
    before = (tmp_path / "metrics.jsonl").stat()
    keep_metrics(tmp_path, 100)
    assert (tmp_path / "metrics.jsonl").stat() == before
    keep_metrics(tmp_path, 1)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]
    assert len((tmp_path / "metrics.dropped.jsonl").read_text().splitlines()) == 2
