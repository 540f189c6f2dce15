"""Settings: declared once, checked wherever they come from, and the same from YAML and from the command line."""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_pixword.common.cli import parse
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import add_arguments, build, convert, default_of, flag, setting
from mlx_pixword.config.adapt import AdaptArgs
from mlx_pixword.config.data import DataArgs
from mlx_pixword.config.run import PRESETS
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.convert import ConvertSettings
from mlx_pixword.evaluate import EvaluateArgs
from mlx_pixword.inference.settings import GenerateArgs, SampleArgs
from mlx_pixword.model.args import ModelArgs

RUN_SETTINGS = (ModelArgs, DataArgs, TrainArgs, AdaptArgs)
ALL_SETTINGS = (*RUN_SETTINGS, SampleArgs, GenerateArgs, EvaluateArgs, ConvertSettings)

DROPOUT = {"init": "model", "lora": 2, "lora_dropout": 0.1}

every_preset = pytest.mark.parametrize("preset", PRESETS)


@dataclass(frozen=True)
class Example:
    """An example of settings.

    This line is not the heading.
    """

    count: int = setting(3, "how many")
    share: float = setting(0.5, "which part, 50% for one")
    name: str = setting("", "what it is called", metavar="NAME")
    kind: str = setting("a", "which kind", choices=("a", "b"))
    fast: bool = setting(False, "be fast")
    folder: Path = setting(Path("here"), "where", metavar="DIR")
    other: Path | None = setting(None, "where else", metavar="DIR")
    paths: list[str] = setting([], "what to read", metavar="PATH")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(made, Example, "settings")
    return made


def parsed(*arguments: str) -> dict[str, Any]:
    return vars(parser().parse_args(arguments))


def refused(message: str, cls: type, values: dict[str, Any]) -> None:
    with pytest.raises(PixWordError, match=message) as caught:
        build(cls, values, "here")
    assert "\n" not in str(caught.value)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("count", 7, 7),
        ("count", -7, -7),
        ("share", 2, 2.0),
        ("share", 0.25, 0.25),
        ("name", "", ""),
        ("kind", "b", "b"),
        ("fast", True, True),
        ("folder", "a/b", Path("a/b")),
        ("folder", Path("a"), Path("a")),
        ("other", None, None),
        ("other", "a", Path("a")),
        ("share", "3e-4", 3e-4),
        ("paths", "one", ["one"]),
        ("paths", ("one", "two"), ["one", "two"]),
        ("paths", [], []),
    ],
)
def test_values_take_the_type_of_their_field(name: str, given: Any, kept: Any) -> None:
    value = getattr(build(Example, {name: given}), name)
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("count", 7.0), ("count", "7"), ("count", True), ("count", None), ("count", [7]),
        ("share", "half"), ("share", True), ("share", None),
        ("name", 3), ("name", None), ("kind", 3),
        ("fast", 1), ("fast", "yes"), ("fast", None),
        ("folder", None), ("folder", 3), ("other", 3), ("other", False),
        ("paths", 3), ("paths", None), ("paths", [3]), ("paths", {"one": 1}),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(name: str, wrong: Any) -> None:
    refused(rf"^here: {name} must be (an? \w+|text|true or false), got ", Example, {name: wrong})


def test_numbers_that_are_too_large_are_infinite() -> None:
    assert build(Example, {"share": 10**400}).share == float("inf") == -build(Example, {"share": -(10**400)}).share
    with pytest.raises(PixWordError, match=r"^here: rope_theta|^rope_theta must be positive and below"):
        build(ModelArgs, {"rope_theta": 10**400}, "here")


def test_messages_show_the_beginning_of_large_values() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, 10**5000, deep, {"a\nb": ["x"] * 1000}):
        with pytest.raises(PixWordError, match=r"^here: fast must be true or false, got ") as caught:
            build(Example, {"fast": value}, "here")
        assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
    refused("^here: unknown key 'xxx.*; known", Example, {"x" * 10**6: 1})


def test_choices_are_kept_to() -> None:
    refused(r"^here: kind must be one of a, b, got 'c'$", Example, {"kind": "c"})


def test_unknown_keys_are_refused_and_known_ones_listed() -> None:
    refused(r"^here: unknown key 'cuont'; known keys are count, fast, folder,", Example, {"cuont": 1, "zoo": 2})


def test_list_defaults_are_not_shared() -> None:
    one, two = build(Example, {}), build(Example, {})
    one.paths.append("x")
    assert two.paths == [] == default_of(fields(Example)[-1])


def test_given_lists_are_copied() -> None:
    given = ["one"]
    assert convert(fields(Example)[-1], given, "here") is not given


# --- flags ------------------------------------------------------------------------------------------------------------


def test_flags_spell_names_with_dashes() -> None:
    assert flag("batch_tokens") == "--batch-tokens"


def test_flags_that_are_not_used_leave_nothing_behind() -> None:
    assert parsed() == {}
    assert parsed("--count", "7") == {"count": 7}


def test_every_kind_of_flag() -> None:
    line = "--count 7 --share 2 --name x --kind b --fast --folder a --other b --paths p --paths q"
    assert build(Example, parsed(*line.split())) == Example(7, 2.0, "x", "b", True, Path("a"), Path("b"), ["p", "q"])
    assert parsed("--no-fast") == {"fast": False}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--count x", "--count: invalid int value: 'x'"),
        ("--count 1.5", "--count: invalid int value"),
        ("--count", "--count: expected one argument"),
        ("--share x", "--share: invalid float value"),
        ("--kind c", "--kind: invalid choice: 'c'"),
        ("--fast=1", "--no-fast: ignored explicit argument '1'"),
        ("--cou 1", "unrecognized arguments: --cou 1"),
    ],
)
def test_flags_with_wrong_values_are_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*line.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_required_flags_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Example, "example", [], required=("name",))
    assert "required: --name" in capsys.readouterr().err
    assert parse(Example, "example", ["--name", "x"], required=("name",)) == Example(name="x")


def test_help_shows_texts_defaults_and_choices() -> None:
    text = " ".join(parser().format_help().split())
    for words in (
        "how many (default 3)",
        "which part, 50% for one (default 0.5)",
        "--kind {a,b}",
        "--other DIR where else",
    ):
        assert words in text
    assert "settings: --count" in text
    assert "be fast (default" not in text and "what to read (default" not in text


# --- all settings of the package --------------------------------------------------------------------------------------


def actions(cls: type) -> Iterator[argparse.Action]:
    made = argparse.ArgumentParser(add_help=False)
    add_arguments(made, cls, "settings")
    return iter(made._actions)


@pytest.mark.parametrize("cls", ALL_SETTINGS)
def test_every_flag_has_a_help_text(cls: type) -> None:
    assert is_dataclass(cls) and cls.__doc__
    shown = list(actions(cls))
    assert [action.dest for action in shown] == [f.name for f in fields(cls)]
    for action in shown:
        assert action.help and len(action.help) > 5 and action.help[0] != " ", action.dest


def test_no_setting_of_a_run_is_declared_twice() -> None:
    count = Counter(f.name for cls in RUN_SETTINGS for f in fields(cls))
    assert [name for name, times in count.items() if times > 1] == []
    assert not {"preset", "config", "print_config"} & set(count)


def test_presets_hold_known_settings_alone() -> None:
    known = {f.name for cls in RUN_SETTINGS for f in fields(cls)}
    assert all(set(values) <= known for values in PRESETS.values())


@pytest.mark.parametrize("cls", RUN_SETTINGS)
def test_defaults_are_good_values_of_their_type(cls: type) -> None:
    for f in fields(cls):
        assert convert(f, default_of(f), "default") == default_of(f)
