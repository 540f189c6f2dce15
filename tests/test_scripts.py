"""The scripts run from start to end, shortened, and `make_plates.py` and `make_text.py` write what they say."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data.fonts import HELD_OUT
from mlx_pixword.data.plates import HEIGHT, WIDTH, PlateSource, is_reserved
from mlx_pixword.data.strings import reserved
from mlx_pixword.data.text_file import TextFile
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.directory import save_model

SCRIPTS = Path(__file__).parents[1] / "scripts"
SHORT = [
    "--image-size", "32", "--window-size", "4", "--hidden-size", "16", "--num-heads", "2", "--num-kv-heads", "1",
    "--num-layers", "1", "--image-layers", "1", "--intermediate-size", "16", "--max-seq-len", "128", "--fold-factor",
    "64", "--batch-tokens", "128", "--accumulate", "1", "--group-size", "8", "--eval-documents", "4", "--steps", "3",
]  # fmt: skip


def run(script: str, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with the interpreter of the tests."""
    command = ["bash"] if script.endswith(".sh") else [sys.executable]
    return subprocess.run(
        [*command, str(SCRIPTS / script), *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment}, check=False,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of six pictures and a text, with a space in its name."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    (folder / "notes.md").write_text("no image")
    for n in range(6):
        image = Image.fromarray(rng.integers(0, 256, (12 + n, 20, 3), dtype=np.uint8))
        image.save(folder / f"{n}.{'png' if n % 2 else 'JPG'}", "PNG" if n % 2 else "JPEG")
    return folder


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_pretrain_plates(tmp_path: Path) -> None:
    environment = {"OUT": "out/first run", "COUNT": "5"}
    result = run("pretrain_plates.sh", *SHORT, folder=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    assert (scores["documents"], scores["read"]) == (5, 5)
    assert pw.load(tmp_path / "out/first run/final")[0].args.hidden_size == 16
    assert "preset: tiny" in (tmp_path / "out/first run/config.yaml").read_text()
    again = run("pretrain_plates.sh", *SHORT, "--steps", "4", "--resume", folder=tmp_path, **environment)
    assert again.returncode == 0, again.stderr
    assert "step-3" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["read"] == 5


def test_pretrain_folder_and_generate(photos: Path, tmp_path: Path) -> None:
    environment = {"OUT": str(tmp_path / "run"), "CACHE": str(tmp_path / "cache")}
    result = run("pretrain_folder.sh", photos, *SHORT, folder=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "preset: upw-120m" in config
    assert "steps: 3" in config
    assert len(list((tmp_path / "cache").rglob("*.windows"))) == 6

    result = run("generate.sh", tmp_path / "run" / "final", photos, folder=tmp_path)
    assert result.returncode == 2 and "trained on images alone" in result.stderr  # the preset's, without words


def test_generate_reads_every_image_of_a_folder(
    photos: Path, tmp_path: Path, small_model: Callable[..., PixWordModel]
) -> None:
    tokenizer = train_tokenizer(["red", "green"], 300)
    model = pw.save_model(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")
    result = run("generate.sh", model, photos, "--max-tokens", 2, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.JPG", "1.png", "2.JPG", "3.png", "4.JPG", "5.png"]
    assert all({"image", "text"} < set(line) for line in lines)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("pretrain_folder.sh", [], "usage: bash"),
        ("pretrain_folder.sh", ["--steps", "3"], "usage: bash"),
        ("pretrain_folder.sh", ["nowhere"], "nowhere"),
        ("pretrain_plates.sh", ["--wrong"], "--wrong"),
        ("generate.sh", ["model"], "usage: bash"),
        ("generate.sh", ["model", "."], "error: . holds no images"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, script: str, arguments: list[str], words: str) -> None:
    result = run(script, *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_shell_scripts_suit_the_bash_of_macos(script: str) -> None:
    text = (SCRIPTS / script).read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in code
    assert re.search(r"^# usage: bash scripts/" + script, text, re.MULTILINE)
    newer = r"mapfile|readarray|declare -[An]|local -n|\|&|&>>|\$\{\w+(,|\^|@)|;;&|coproc|\[-1\]"
    newer += r"|sort -z|readlink -f"
    assert not re.search(newer, code)  # bash 3.2 and the tools of macOS have none of these
    assert '"$@"' not in code.replace('${1+"$@"}', "")  # `set -u` of older versions stops at an empty "$@"


# --- make_plates.py ---------------------------------------------------------------------------------------------------


def plates(folder: Path) -> list[tuple[Path, str]]:
    lines = (folder / "labels.jsonl").read_text().splitlines()
    return [(folder / record["image"], record["caption"]) for record in map(json.loads, lines)]


def test_plates_are_reserved_strings_with_labels(tmp_path: Path) -> None:
    result = run("make_plates.py", "--count", 40, "--out", "plates", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    pairs = plates(tmp_path / "plates")
    files = {path.name for path in (tmp_path / "plates").iterdir()} - {"labels.jsonl"}
    assert len(pairs) == len(files) == 40
    assert {path.name for path, _ in pairs} == files
    assert all(is_reserved(text) and re.fullmatch(r"\d{2,3}", text) for _, text in pairs)
    for path, _ in pairs:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (WIDTH, HEIGHT))


def test_labels_are_what_the_files_show(tmp_path: Path) -> None:
    assert run("make_plates.py", "--count", 8, "--seed", 3, "--out", "plates", folder=tmp_path).returncode == 0
    source = PlateSource(3, reserved=True)
    for n, (path, text) in enumerate(plates(tmp_path / "plates")):
        assert text == source.plate(n).text
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), source.plate(n).draw())


def test_options_change_the_plates(tmp_path: Path) -> None:
    for name, arguments in {"a": [], "b": ["--seed", "2"], "c": ["--colors", "random"], "d": ["--training"]}.items():
        assert run("make_plates.py", "--count", 20, "--out", name, *arguments, folder=tmp_path).returncode == 0
    texts = {name: [text for _, text in plates(tmp_path / name)] for name in "abcd"}
    assert texts["a"] != texts["b"]
    assert not any(map(is_reserved, texts["d"]))
    assert (tmp_path / "a" / "00000.png").read_bytes() != (tmp_path / "c" / "00000.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "full"], "--out full holds something already"),
        (["--out", "file"], "--out file holds something already"),
        (["--count", "0"], "--count must be positive"),
        (["--seed", "-1"], "--seed not negative"),
        (["--colors", "none"], "--colors"),
    ],
)
def test_plates_are_refused_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    result = run("make_plates.py", *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "kept.txt"]


# --- make_text.py -----------------------------------------------------------------------------------------------------


def test_text_comes_in_every_combination_with_its_facts(tmp_path: Path) -> None:
    factors = ["--heights", "4,10", "--contrast", "0.3,1", "--clutter", "0,1", "--kinds", "numbers,words"]
    result = run("make_text.py", *factors, "--no-distort", "--count", 32, "--out", "text", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "text" / "labels.jsonl").read_text().splitlines()]
    cells = [(line["ink_height"], line["contrast"], line["clutter"]) for line in lines]
    assert len(lines) == 32 and {cells.count(cell) for cell in cells} == {4} and len(set(cells)) == 8
    assert all(reserved(line["caption"]) and line["family"] in HELD_OUT for line in lines)
    assert {line["kind"] for line in lines} == {"numbers", "words"}
    assert not any(line[name] for line in lines for name in ("angle", "noise", "blur", "jpeg"))
    for line in lines:
        with Image.open(tmp_path / "text" / line["image"]) as image:
            assert image.mode == "RGB" and image.height > line["ink_height"]


def test_packed_text_is_what_the_folder_holds(tmp_path: Path) -> None:
    options = ["--count", 30, "--seed", 3, "--split", "train", "--curriculum", 20]
    assert run("make_text.py", *options, "--out", "text", folder=tmp_path).returncode == 0
    assert run("make_text.py", *options, "--pack", "a.pwtext", folder=tmp_path).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "text" / "labels.jsonl").read_text().splitlines()]
    packed = TextFile(tmp_path / "a.pwtext")
    assert len(packed) == len(lines) == 30 and packed.about["settings"]["seed"] == "3"
    for n, line in enumerate(lines):
        facts = packed.facts(n)
        with Image.open(tmp_path / "text" / line["image"]) as image:
            assert np.array_equal(np.asarray(image), packed.crop(n))
        assert packed.text(n) == line["caption"] and not reserved(line["caption"])
        named = {key: packed.about[key][int(facts[key])] for key in ("kind", "face", "family", "kernel")}
        assert named == {key: line[key] for key in named}
        assert facts["ink_height"] == pytest.approx(line["ink_height"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "full"], "--out full holds something already"),
        (["--pack", "full/kept.txt"], "--pack full/kept.txt must be a new file whose name ends in .pwtext"),
        (["--count", "0"], "--count must be positive"),
        (["--heights", "4,900"], "--heights must lie in 3..256"),
        (["--clutter", "2"], "--clutter must lie in 0..1"),
        (["--kinds", "poems"], "--kinds must be some of"),
        (["--image-size", "20"], "needs an image_size of at least"),
        (["--fonts", "full"], "--fonts full: no usable face (no .ttf or .otf file)"),
    ],
)
def test_text_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PixWordError, match=re.escape(words)):
        runpy.run_path(str(SCRIPTS / "make_text.py"))["main"](arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "kept.txt"]


# --- draw_sheet.py ----------------------------------------------------------------------------------------------------


def test_a_sheet_of_drawn_plates(tmp_path: Path, small_model: Any) -> None:
    tokenizer = train_tokenizer(["12 345"], 300)
    save_model(small_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--rows", 2, "--columns", 3)
    result = run("draw_sheet.py", *arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 3 * (WIDTH + 2), 4 * 2 * (HEIGHT + 2))
    again = run("draw_sheet.py", *arguments, folder=tmp_path)
    assert again.returncode == 2 and "sheet.png exists" in again.stderr


def test_the_receipt_is_the_picture_of_the_pages(tmp_path: Path) -> None:
    result = run("make_receipt.py", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    box, total = re.findall(r"--box (\S+)  (\S+)", result.stdout)[-1]
    assert total == "9.35" and f"--box {box} " in (SCRIPTS.parent / "README.md").read_text()
    with Image.open(tmp_path / "receipt.png") as made, Image.open(SCRIPTS.parent / "docs/images/receipt.png") as kept:
        pixels, expected = np.asarray(made).astype(int), np.asarray(kept).astype(int)
    assert pixels.shape == expected.shape and np.abs(pixels - expected).mean() < 2  # FreeType's versions differ
    x, y, width, height = map(int, box.split(","))
    dark = expected.mean(axis=2) < 150
    assert dark[y : y + height, x : x + width].sum() > 30
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    assert not dark[y : y + height, x : x + width][edge].any()  # nothing is cut, and the rule stays outside
    again = run("make_receipt.py", folder=tmp_path)
    assert again.returncode == 2 and "receipt.png exists" in again.stderr


# --- what a Mac makes of the kernels ----------------------------------------------------------------------------------

PYTHON_STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *dump_kernels.py* | -c*) exec {python} "$@" ;;
  *pretrain*) trap 'echo "step 7 saved"; exit 0' TERM; echo "a warning of kernels"; while :; do sleep 0.1; done ;;
  *benchmarks/kernels.py*) echo "kernels are wrong"; exit 1 ;;
  *) echo "ran $*" ;;
esac
"""
XCRUN_STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *--version*) echo "Apple metal version 1" ;;
  *metal4.0*decode_step-0.metal) echo "error: no such attribute"; exit 1 ;;
  *-fsyntax-only*) grep -q 'mlx/backend/metal/kernels/utils.h' "${@: -1}" ;;
esac
"""


@pytest.mark.parametrize("has_xcrun", [True, False])
def test_mac_check(tmp_path: Path, has_xcrun: bool) -> None:
    """Stand-ins for a Mac's tools: every part is in the file, also of those that fail, and no path of the machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("python", PYTHON_STAND_IN.format(python=sys.executable)), ("xcrun", XCRUN_STAND_IN)):
        if name == "python" or has_xcrun:
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
    environment = {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}", "SECONDS_OF_TRAINING": "1"}
    result = run("mac_check.sh", "check.txt", folder=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "written: check.txt; paste it into an issue\n"
    text = (tmp_path / "check.txt").read_text()
    assert "ran -m mlx_pixword.doctor --report" in text and "kernels are wrong\nFAILED: status 1" in text
    assert "a warning of kernels" in text and "step 7 saved" in text
    assert str(SCRIPTS.parent) not in text and str(tmp_path) not in text
    if not has_xcrun:
        assert "skipped: no xcrun" in text
        return
    counts = [list(map(int, re.findall(r": (\d+) texts compile, (\d+) do not", text)[n])) for n in range(3)]
    assert counts[0] == counts[1] == [sum(counts[2]), 0] and counts[2][1] == 1 and counts[0][0] > 10
    assert "decode_step-0.metal, metal 4.0:\nerror: no such attribute" in text


def test_mac_check_goes_on_without_texts_and_without_the_package(tmp_path: Path) -> None:
    """It takes the interpreter of the checkout's environment, and says what is missing instead of ending half-way."""
    for folder in ("scripts", ".venv/bin", "tools"):
        (tmp_path / folder).mkdir(parents=True)
    script = (SCRIPTS / "mac_check.sh").read_text()
    failing = (
        '#!/usr/bin/env bash\ncase "$*" in -c*) echo "no package"; exit 1 ;; *dump*) echo "no texts"; exit 3 ;; esac\n'
    )
    for name, text in (
        ("scripts/mac_check.sh", script), ("tools/xcrun", XCRUN_STAND_IN), (".venv/bin/python", failing)
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "SECONDS_OF_TRAINING": "1"}
    environment.pop("PYTHON", None)
    command = ["bash", str(tmp_path / "scripts" / "mac_check.sh")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = (tmp_path / "mac-check.txt").read_text()
    assert "no package\nFAILED: install the package first: bash scripts/setup.sh\n" in found
    assert "syntax of the kernels' texts\nFAILED: status 3\n" in found and "texts compile" not in found
    assert found.count("\n===== ") == 5


def test_dumped_kernels_are_the_texts_of_every_source(tmp_path: Path) -> None:
    result = run("dump_kernels.py", "--out", tmp_path / "texts", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    paths = [Path(line) for line in result.stdout.splitlines()]
    sources = {path.stem for path in (SCRIPTS.parent / "metal").glob("*.metal")}
    assert {path.stem.rpartition("-")[0] for path in paths} == sources
    texts = [path.read_text() for path in paths]
    assert all("[[kernel]]" in text and "multiply_add" in text for text in texts) and len(set(texts)) == len(texts)
