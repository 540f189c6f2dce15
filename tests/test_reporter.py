"""What a run tells: curves of a bounded number of points, and lines that a crash left in part."""

import json
import sys
from pathlib import Path

import pytest
from run_files import train

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


FAKE = """
import json, pathlib
class Run:
    def __init__(self, **options):
        self.path = pathlib.Path(options["dir"]) / "told.jsonl"
        self.tell("init", **{name: options[name] for name in ("id", "resume", "project")})
    def tell(self, what, **values):
        with self.path.open("a") as file:
            file.write(json.dumps([what, values]) + "\\n")
    def log(self, values, step):
        self.tell("log", step=step, has_loss="word_loss" in values)
    def finish(self):
        self.tell("finish")
def init(**options):
    return Run(**options)
"""


def test_a_resumed_run_goes_on_with_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that writes down what it is told stands in for wandb, which asks the network."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name, flags, steps in (("run", [], 1), ("run", ["--resume"], 3), ("other", [], 1)):
        train(tmp_path / name, "--report-to", "wandb", "--eval-documents", 0, *flags, steps=steps)
    monkeypatch.delitem(sys.modules, "wandb")
    told = [json.loads(line) for line in (tmp_path / "run/told.jsonl").read_text().splitlines()]
    starts = [values for what, values in told if what == "init"]
    assert starts[0] == starts[1] and (starts[0]["resume"], starts[0]["project"]) == ("allow", "mlx-pixword")
    assert starts[0]["id"] == (tmp_path / "run/wandb-run.txt").read_text().strip()
    assert [values["step"] for what, values in told if what == "log" and values["has_loss"]] == [1, 2, 3]
    assert [what for what, _ in told].count("finish") == 2 and told[-1][0] == "finish"
    assert json.loads((tmp_path / "other/told.jsonl").read_text().splitlines()[0])[1]["id"] != starts[0]["id"]
