"""The documents agree with the code: numbers, commands, links and names."""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_pixword as pw
from mlx_pixword.config.run import PRESETS, make_config
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel, num_parameters
from mlx_pixword.ops.rotary import inverse_frequencies
from mlx_pixword.pixels.colors import color_features, num_pix_tokens
from mlx_pixword.pixels.windows import num_windows
from mlx_pixword.pretrain import parse_command

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for folder in (".", "docs", "examples", "benchmarks") for page in (ROOT / folder).glob("*.md"))
COMMANDED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = r"(?:\S*/)?python[\d.]*"
SHELLS = ("", "bash", "sh", "shell", "console", "text")
MODEL_PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
MODEL_TEXT = " ".join(MODEL_PAGE.split())  # line breaks gone, for patterns


def number(text: str) -> int:
    return int(text.replace(",", ""))


def found(pattern: str) -> tuple[str, ...]:
    """The groups of a pattern that occurs once in the model page."""
    (match,) = re.finditer(pattern, MODEL_TEXT)
    return match.groups()


def table_rows(start: str) -> list[list[str]]:
    """Cells of the rows of a table: of the one whose header starts with ``start``."""
    lines = MODEL_PAGE[MODEL_PAGE.index(start) :].splitlines()
    rows = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not re.fullmatch(r"[|\-]+", row)]


def preset_args(name: str) -> ModelArgs:
    return make_config({"preset": name}).model


def count(args: ModelArgs) -> tuple[int, int]:
    """Parameters in training and in a model directory. Arrays are lazy: none of them is computed."""
    model = PixWordModel(args)
    return num_parameters(model), sum(array.size for array in model.plain_weights()[0].values())


# --- numbers of docs/model.md -----------------------------------------------------------------------------------------

HEADER, *PRESET_ROWS = table_rows("| | `tiny`")
COLUMNS = [name.strip("`") for name in HEADER[1:]]


def test_the_table_shows_every_preset() -> None:
    assert list(PRESETS) == COLUMNS


@pytest.mark.parametrize("name", COLUMNS)
def test_presets_are_as_printed(name: str) -> None:
    column = COLUMNS.index(name) + 1
    args = preset_args(name)
    checked = 0
    for row in PRESET_ROWS:
        if setting := re.search(r"\(`(\w+)`\)", row[0]):
            value = getattr(args, setting[1])
            assert row[column] == (["no", "yes"][value] if isinstance(value, bool) else f"{value:,}"), row
            checked += 1
    assert checked == 13
    printed = [number(row[column]) for row in PRESET_ROWS if row[0].startswith("parameters")]
    assert tuple(printed) == count(args)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_formula_counts_parameters(name: str) -> None:
    a = preset_args(name)
    d, k, v = a.hidden_size, a.num_pix, a.vocab_size
    e = a.image_hidden_size or d

    def layers(count: int, a: ModelArgs, d: int) -> int:
        return count * (2 * d**2 + 2 * d * a.num_kv_heads * a.head_size + 3 * d * a.intermediate_size + 2 * d)

    plain = v * d + (k + 1) * e + (v + k) * d + d + layers(a.image_layers, a.image, e) + layers(a.num_layers, a, d)
    plain += (e * d if e != d else 0) + (a.window_size**2 * e * d if a.summary == "concat" else 0)
    features = (27 if a.sine_color_scale else 3) * e + 27 * d
    assert count(a) == (plain + (features if a.factored_colors else 0), plain)


def test_the_program_on_the_page_prints_what_the_table_says() -> None:
    program = re.search(r"<!-- counts -->\n```python\n(.*?)```", MODEL_PAGE, re.DOTALL)
    assert program is not None
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(program[1], {})
    trained, stored = [row[1:] for row in PRESET_ROWS if row[0].startswith("parameters")]
    expected = [f"{name}: {a} {b}" for name, a, b in zip(COLUMNS, trained, stored, strict=True)]
    assert output.getvalue().splitlines() == expected


def test_the_costs_are_the_formulas() -> None:
    header, *rows = table_rows("| $S$ | $w$ |")
    assert header[4:] == ["full: $T^2/2$", "two blocks: $TP/2 + N^2/2$"]
    assert len(rows) >= 2
    for row in rows:
        size, window, pixels, windows = map(number, row[:4])
        assert (pixels, windows) == (size**2, num_windows(size, size, window))
        full, blocks = pixels**2 / 2, (pixels * window**2 + windows**2) / 2
        assert row[4:] == [f"{value:.2e}".replace("e+0", "e").replace("e+", "e") for value in (full, blocks)]


def test_pix_tokens() -> None:
    f, k, g, m = map(number, found(r"At \$f = (\d+)\$ there are ([\d,]+) pix tokens, at \$f = (\d+)\$ there are (\d+)"))
    assert (k, m) == (num_pix_tokens(f), num_pix_tokens(g))


def test_features_of_colours() -> None:
    (features,) = found(r"(\d+) fixed smooth features")
    assert color_features(32).shape == (512, number(features))


def test_frequencies_are_scaled_as_described() -> None:
    theta, factor, context = map(number, found(r"theta = (\d+)\$.*?\(factor (\d+), original context ([\d,]+)"))
    short, long = map(number, found(r"Wavelengths below ([\d,]+) positions .* those above ([\d,]+) become eight times"))
    assert (factor, context, long, short) == (8, long, context, context // 4)
    plain = theta ** (-np.arange(0, 64, 2) / 64)
    wavelength, scaled = 2 * np.pi / plain, inverse_frequencies(64, float(theta))
    assert theta == ModelArgs().rope_theta
    assert np.allclose(scaled[wavelength < short], plain[wavelength < short], rtol=1e-12)
    assert np.allclose(scaled[wavelength > long], plain[wavelength > long] / factor, rtol=1e-12)
    between = (wavelength > short) & (wavelength < long)
    assert between.any() and np.all((scaled < plain)[between] & (scaled > plain / factor)[between])


def test_the_rms_norm_epsilon() -> None:
    (exponent,) = found(r"varepsilon = 10\^\{(-\d+)\}")
    assert ModelArgs().rms_norm_eps == 10.0 ** int(exponent)


def test_windows_of_a_flat_image() -> None:
    width, height, windows, square = map(number, found(r"a (\d+) by (\d+) image has (\d+) windows instead of (\d+)"))
    assert (windows, square) == (num_windows(height, width, 16), num_windows(width, width, 16))


# --- names ------------------------------------------------------------------------------------------------------------

NAME = r"`[\w.]+`"
CLAIM = re.compile(rf"((?:{NAME}(?:,\s|\sand\s)?)+)\s?in\s\[`[^`]+`\]\(([^)\s]+\.py)\)")


def claims() -> list[tuple[Path, str]]:
    """``(file, name)`` of every sentence of the form "`name` in [`file`](file)"."""
    pairs = []
    for page in PAGES:
        for match in CLAIM.finditer(page.read_text(encoding="utf-8")):
            names = re.findall(NAME, match[1])
            pairs += [((page.parent / match[2]).resolve(), name.strip("`")) for name in names]
    return pairs


def defined(path: Path) -> set[str]:
    """Names of a module: functions, classes, their methods as ``Class.method``, and constants."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return names


def test_every_section_on_the_model_names_its_code() -> None:
    sections = re.split(r"^## ", MODEL_PAGE, flags=re.MULTILINE)[1:]
    without = {section.split("\n")[0] for section in sections if "*Code:*" not in section}
    assert without == {"Cost", "References"}
    assert len(claims()) > 50
    marked = re.findall(r"\*(?:Code|Tests):\*", MODEL_PAGE)
    assert all(CLAIM.match(MODEL_PAGE, match.end() + 1) for match in re.finditer(r"\*(?:Code|Tests):\*", MODEL_PAGE))
    assert len(marked) > len(sections) - 2


# --- letters ----------------------------------------------------------------------------------------------------------

LETTERS = dict(re.findall(r"^\| \$([A-Za-z])\$ \| ([^|,:;]+?)(?:[,:;].*)? \|$", MODEL_PAGE, re.MULTILINE))
LEGEND = re.compile(r"[A-Za-z](?:, [A-Za-z])*  \S")
MODULES = sorted(path for folder in ("mlx_pixword", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def legend(path: Path) -> list[tuple[str, str]]:
    """Letters and meanings in a module's first lines: ``B  rows    L  elements of a row, Lq as queries``."""
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    found = []
    for line in filter(LEGEND.match, lines):
        for entry in re.split(r"(?:\s{2,}|, )(?=[A-Za-z]  \S)", line):
            found.append((entry[0], entry[1:].strip()))
    return found


def wrong_letters(entries: list[tuple[str, str]]) -> list[str]:
    """Entries whose letter the page does not know, or knows with another meaning."""
    return [f"{letter}  {text}" for letter, text in entries if not text.startswith(LETTERS.get(letter, "?"))]


def test_letters_mean_the_same_everywhere() -> None:
    assert len(LETTERS) > 20 and sum(bool(legend(path)) for path in MODULES) > 20
    assert {
        path.relative_to(ROOT).as_posix(): wrong for path in MODULES if (wrong := wrong_letters(legend(path)))
    } == {}


def test_a_letter_with_another_meaning_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        '"""A module.\n\nB  rows    L  elements of a row    N  images at once\nX  any\n"""\n'
    )
    assert wrong_letters(legend(tmp_path / "module.py")) == ["N  images at once", "X  any"]


@pytest.mark.parametrize(("path", "name"), claims(), ids=lambda value: getattr(value, "name", value))
def test_named_code_exists(path: Path, name: str) -> None:
    assert name in defined(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_exist(page: Path) -> None:
    for name in re.findall(r"\bpw\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8")):
        assert hasattr(pw, name), f"{page.name}: pw.{name}"


# --- links ------------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(text)) + re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r'<img[^>]*src="([^"]+)"', text)
    for link in set(links):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {link}"
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), f"{page.name}: {link}"


# --- commands ---------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised in place of going on, once a command's arguments have been read."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
        parse_args(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def commands(text: str) -> Iterator[list[str]]:
    """Words of each command of this project on a page: in fenced blocks, and in the text where it has arguments."""
    fenced = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced.findall(text) if language in SHELLS]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fenced.sub("", text)) if " --" in code]
    for line in lines:
        if re.search(rf"{PYTHON} ", line):
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for separator, group in groupby(lexer, key=lambda word: bool(re.fullmatch(r"[|&;<>]+", word))):
                words = ["1" if re.fullmatch(r"[A-Z][A-Z_]*", word) else word for word in group]  # FILE, N, ...
                if not separator and re.search(rf"{PYTHON} (-m mlx_pixword|\S+\.py)", " ".join(words)):
                    yield words


def load_main(words: list[str]) -> tuple[Any, list[str]]:
    """The ``main`` of a command and its arguments."""
    at = next(n for n, word in enumerate(words) if re.fullmatch(PYTHON, word)) + 1
    if words[at] == "-m":
        return importlib.import_module(words[at + 1]).main, words[at + 2 :]
    spec = importlib.util.spec_from_file_location(f"documented_{Path(words[at]).stem}", ROOT / words[at])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.main, words[at + 1 :]


@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.name)
@pytest.mark.usefixtures("parse_only")
def test_documented_commands_are_understood(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        main, arguments = load_main(words)
        try:
            main(arguments)
        except Parsed:
            continue
        except SystemExit:
            pytest.fail(f"{page.name}: {shlex.join(words)}")
        pytest.fail(f"{page.name}: arguments are not read: {shlex.join(words)}")


def test_documented_runs_have_a_configuration() -> None:
    """Settings that parse may not fit each other, such as an image size and the windows that the sequence holds."""
    checked = 0
    for words in (words for page in COMMANDED for words in commands(page.read_text(encoding="utf-8"))):
        if "mlx_pixword.pretrain" in words and not {"--init", "--language-from", "--config"} & set(words):
            config, _ = parse_command(words[words.index("mlx_pixword.pretrain") + 1 :])
            checked += config.model.image_size > 0
    assert checked >= 10


@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.name)
def test_documented_programs_and_scripts_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m (mlx_pixword(?:\.\w+)*)", text)):
        assert importlib.util.find_spec(module) is not None, f"{page.name}: {module}"
    for path in set(re.findall(r"(?<![\w/])(?:scripts|benchmarks|examples|docs|tests)/[\w/.-]*\w\.\w+", text)):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.usefixtures("parse_only")
def test_the_check_of_commands_finds_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    page = """Text with `python -m mlx_pixword.doctor` and
```bash
python -m mlx_pixword.generate --model m \\
    --image a.png --wrong 1 | tail  # a comment
$ test -e plates || .venv/bin/python3 scripts/make_plates.py --count N --out "a b" > log.txt && echo
# python -m mlx_pixword.generate --nothing
```
"""
    first, second = commands(page)
    assert first[-2:] == ["--wrong", "1"]
    main, arguments = load_main(first)
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--wrong" in capsys.readouterr().err
    main, arguments = load_main(second)
    assert arguments == ["--count", "1", "--out", "a b"]
    with pytest.raises(Parsed):
        main(arguments)
