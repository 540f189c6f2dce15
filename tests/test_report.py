"""A report of runs: everything in one file, nothing from elsewhere, and what bad folders get."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mlx_pixword.apps import run_files
from mlx_pixword.apps.report_page import MARK, names, write_report
from mlx_pixword.apps.run_files import lines_of, read_run
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import make_config
from mlx_pixword.inference.views import data_url, png
from mlx_pixword.report import main

HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_run(folder: Path, steps: int = 30, **settings: object) -> Path:
    """The files of a run that is at a step."""
    (folder / "samples").mkdir(parents=True)
    config = make_config({"preset": "tiny", "steps": 40, **settings})
    (folder / "config.yaml").write_text(config.to_yaml())
    lines = [
        {"step": n, "word_loss": 5 / n, "tokens_per_second": 100.0 + n, "peak_gb": 0.5} for n in range(1, steps + 1)
    ]
    lines += [{"step": steps, "heldout_loss": 0.25, "heldout_exact_match": 0.5, "new_number": 7}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = data_url(png(Image.new("RGB", (8, 4), "red")))
    for step in (steps // 2, steps):
        Image.new("RGB", (9, 9), "blue").save(folder / "samples" / f"step-{step}.png")
        readings = [
            {"read": "47", "written": "47", "confidence": 0.91, "picture": picture},
            {"read": HOSTILE, "written": "B 20", "confidence": 0.125, "picture": "javascript:alert(1)"},
        ]
        (folder / "samples" / f"step-{step}.json").write_text(json.dumps({"step": step, "readings": readings}))
    skipped = [{"file": f"photo-{n}.jpg", "reason": "not an image of a known format"} for n in range(5)]
    skipped.append({"file": HOSTILE, "reason": "damaged image: truncated"})
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
    (folder / "machines.jsonl").write_text('{"step": 0, "device": "cpu, x86_64, 2 cores", "mlx": "0.32.4"}\n')
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside in ("script", "style") else data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("report")
    runs = [make_run(out / "one"), make_run(out / "two", learning_rate=0.5)]
    return Page(write_report(runs, out / "both.html").read_text())


def test_a_report_says_everything(page: Page) -> None:
    words = " ".join(page.text.split())
    for said in (
        "30 of 40", "not finished", "0.1667", "0.2500", "0.500", "1 of 2 held-out readings are right", "B 20", "0.125",
        "photo-0.jpg, photo-1.jpg, photo-2.jpg", "damaged image: truncated", "cpu, x86_64, 2 cores", "learning_rate",
    ):  # fmt: skip
        assert said in words, said
    assert HOSTILE in page.text  # as text
    (differs,) = [n for n, (tag, attrs) in enumerate(page.tags) if tag == "tr" and attrs.get("class") == "differs"]
    assert page.tags[differs + 1][0] == "td"


def test_a_report_loads_nothing_and_runs_no_names(page: Page) -> None:
    sources = [value or "" for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    samples = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "sample"]
    assert [attrs["data-step"] for attrs in samples] == ["15", "30"] * 2
    assert [("hidden" in attrs) for attrs in samples] == [True, False] * 2
    sliders = [attrs for tag, attrs in page.tags if tag == "input"]
    assert [(attrs["type"], attrs["max"], attrs["value"]) for attrs in sliders] == [("range", "1", "1")] * 2


def test_a_report_has_a_plot_for_every_number(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "run")]).read_text()
    for title in ("Loss", "Speed", "Memory", "Held-out readings that are right", "new_number"):
        assert f'"text":"{title}"' in text, title
    assert "HoverTool" in text and "BoxZoomTool" in text
    assert len(re.findall(r'data-root-id="', text)) == 6
    assert len(text) < 2_500_000


def test_a_run_that_goes_on_can_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "word_lo')  # in the writing
    main([str(folder)])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    first = (folder / "report.html").read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('ss": NaN}\n{"step": 32, "word_loss": 0.125}\n')
    main([str(folder)])  # a report may be replaced
    assert "30 of 40" in first and "32 of 40" in (folder / "report.html").read_text()
    assert read_run(folder, "run").curves["word_loss"][-1] == (32, 0.125)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("preset: of-another-version\nsome_new_setting: 3\n")
    text = write_report([tmp_path]).read_text()
    assert "No line of metrics yet." in text and "some_new_setting" in text and "No samples yet." in text


def test_readings_without_a_picture_stand_behind_those_with_one(tmp_path: Path) -> None:
    """A run keeps the pictures of some readings, and has hundreds of others."""
    run = make_run(tmp_path / "run")
    picture = data_url(png(Image.new("RGB", (8, 4), "red")))
    readings = [{"read": "1", "written": "2", "confidence": 0.5}, {"read": "3", "written": "4", "picture": picture}]
    (run / "samples" / "step-30.json").write_text(json.dumps({"step": 30, "readings": readings}))
    text = write_report([run], tmp_path / "r.html").read_text()
    cells = re.findall(r"<tr><td>(.*)</td>\n<td class=\"wrong\">(\d)</td><td>(\d)</td>", text)
    assert cells == [(f'<img src="{picture}" alt="">', "3", "4"), ("", "1", "2")]


def test_names_that_are_no_utf8_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "skipped.jsonl").write_text(json.dumps({"file": "caf\udce9.png", "reason": "file not found"}) + "\n")
    assert "caf\\udce9.png" in write_report([run], tmp_path / "r.html").read_text()


def test_long_runs_show_some_of_their_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "MOST_SAMPLES", 3)
    folder = make_run(tmp_path / "run")
    contents = io.BytesIO()
    Image.new("RGB", (1, 1)).save(contents, "PNG")
    for step in range(1, 12):
        (folder / "samples" / f"step-{step}.png").write_bytes(contents.getvalue())
    run = read_run(folder, "run")
    assert run.sample_steps == 13 and [sample.step for sample in run.samples] == [1, 6, 11, 30]


def test_names_are_short_and_differ(tmp_path: Path) -> None:
    assert names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    with pytest.raises(PixWordError, match="given twice"):
        names([tmp_path / "a", tmp_path / "a"])


# --- what bad input gets ----------------------------------------------------------------------------------------------


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "it has no config.yaml")):
        with pytest.raises(PixWordError, match=message):
            write_report([folder])
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(PixWordError, match="holds no settings"):
        write_report([tmp_path])
    (tmp_path / "config.yaml").write_text("a: [\n")
    with pytest.raises(PixWordError, match=r"config\.yaml cannot be read"):
        write_report([tmp_path])


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(PixWordError, match="lines, line 2: not a JSON object"):
        list(lines_of(tmp_path / "lines"))
    assert list(lines_of(tmp_path / "none")) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"readings": [3]}', '{"readings": [{"read": "4"}]}'])
def test_damaged_readings_are_named(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "samples" / "step-30.json").write_text(content)
    with pytest.raises(PixWordError, match=r"step-30\.json is damaged"):
        read_run(folder, "run")


def test_a_file_that_is_no_report_stays(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run"), tmp_path / "mine.html"
    out.write_text("my own page")
    with pytest.raises(PixWordError, match=r"mine\.html exists and is no report; .* give --force"):
        write_report([folder], out)
    assert out.read_text() == "my own page"
    main([str(folder), "--out", str(out), "--force"])
    assert out.read_text().startswith(MARK)
    for wrong, message in ((tmp_path / "none" / "x.html", "there is no folder"), (folder, "is a folder")):
        with pytest.raises(PixWordError, match=message):
            write_report([folder], wrong)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_pixword.apps.report_page.find_spec", lambda name: None)
    with pytest.raises(PixWordError, match=r"pip install 'mlx-pixword\[report\]'"):
        write_report([tmp_path])


def test_no_run_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "RUN" in capsys.readouterr().err
