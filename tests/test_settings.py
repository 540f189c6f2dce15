"""Settings: declared once, checked wherever they come from, and the same from YAML and from the command line."""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml

from mlx_pixword.common.cli import parse
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import add_arguments, build, convert, default_of, flag, setting
from mlx_pixword.config.adapt import AdaptArgs
from mlx_pixword.config.data import DataArgs
from mlx_pixword.config.run import PRESETS, RunConfig, make_config, read_yaml
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.convert import ConvertSettings
from mlx_pixword.evaluate import EvaluateArgs
from mlx_pixword.inference.settings import GenerateArgs, SampleArgs
from mlx_pixword.model.args import MAY_BE_0, METADATA_KEYS, ModelArgs
from mlx_pixword.pretrain import parse_command

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


# --- the configuration of a run ---------------------------------------------------------------------------------------


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_the_command_line_goes_over_yaml_and_yaml_over_the_preset(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "preset: tiny\nseed: 3\nsteps: 5\nimage_size: 32\n")
    preset = make_config({"preset": "tiny"})
    assert make_config({}) == preset and preset.train.steps == PRESETS["tiny"]["steps"]
    config, _ = parse_command(["--config", str(file), "--steps", "9", "--qk-norm"])
    assert (config.train.steps, config.train.seed, config.model.image_size) == (9, 3, 32)
    assert config.model.fold_factor == PRESETS["tiny"]["fold_factor"] and config.preset == "tiny"


def test_a_preset_on_the_command_line_goes_under_the_yaml(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "preset: upw-170m\nnum_layers: 2\n")
    config, _ = parse_command(["--config", str(file), "--preset", "upw-120m"])
    assert (config.preset, config.model.num_layers, config.model.vocab_size) == ("upw-120m", 2, 6)


ODD = {
    "data": ["a: b.jsonl", "ünï 'code'"], "images": "some/where", "compile": "on", "weight_decay": 1,
    "report_to": "wandb", "rms_norm_eps": 1e-7, "max_bad": 0, "pack": False, "seed": 2**31,
}  # fmt: skip


@every_preset
@pytest.mark.parametrize("values", [{}, ODD])
def test_a_configuration_comes_back_from_its_yaml(tmp_path: Path, preset: str, values: dict[str, Any]) -> None:
    config = make_config({"preset": preset, **values})
    file = write(tmp_path / "run.yaml", config.to_yaml())
    assert make_config(read_yaml(file)) == config
    assert parse_command(["--config", str(file)]) == (config, False)
    assert next(iter(yaml.safe_load(config.to_yaml()))) == "preset"


def spelled(config: RunConfig) -> Iterator[str]:
    """A configuration as flags."""
    for name, value in config.to_flat().items():
        if isinstance(value, bool):
            yield flag(name) if value else "--no-" + flag(name)[2:]
        elif value is not None:
            yield from (f"{flag(name)}={v}" for v in (value if isinstance(value, list) else [value]))


@every_preset
@pytest.mark.parametrize("values", [{}, ODD])
def test_a_configuration_comes_back_from_its_flags(preset: str, values: dict[str, Any]) -> None:
    config = make_config({"preset": preset, **values})
    assert parse_command(list(spelled(config))) == (config, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "huge"}, "preset must be one of tiny, numbers, upw-120m, upw-170m, reader, got 'huge'"),
        ({"x" * 5000: 1}, "unknown key 'x{96}\\.\\.\\.; known"),
        ({"preset": "x" * 5000}, "preset must be one of .*, got 'x{96}\\.\\.\\.$"),
        ({"preset": None}, "preset must be one of .*, got None"),
        ({"preset": ["tiny"]}, "preset must be one of .*, got "),
        ({"stepz": 3}, "unknown key 'stepz'; known keys are preset, accumulate, "),
        ({"config": "a.yaml"}, "unknown key 'config'"),
        ({"steps": "many"}, "steps must be an integer, got 'many'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, got 'sgd'"),
        ({"dtype": "int8"}, "dtype must be one of auto, "),
        ({"plate_colors": "grey"}, "plate_colors must be one of schemes, random"),
        ({"image_size": 30}, "image size must be a positive multiple"),
        ({**DROPOUT, "grad_checkpoint": True}, "lora_dropout 0.1 with grad_checkpoint: layers that are computed again"),
        ({**DROPOUT, "lora_image_block": True, "window_chunk": 4}, "lora_dropout 0.1 with window_chunk: layers"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PixWordError, match=message):
        make_config(values)
    file = write(tmp_path / "run.yaml", yaml.safe_dump(values))
    with pytest.raises(PixWordError, match=message) as caught:
        make_config(read_yaml(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["stepz: 3", "preset: huge", "seed: x"])
def test_the_file_of_a_mistake_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(PixWordError, match=r"run\.yaml: "):
        read_yaml(write(tmp_path / "run.yaml", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "must hold names and values, got list"),
        (b"just text", "must hold names and values, got str"),
        (b"1: 2", "must hold names and values"),
        (b"steps: [", "is not YAML"),
        (b"steps: \xff", "is not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"steps: 5\n\x00", "is not YAML"),
        (b"steps: 2001-99-99", "is not YAML: no value: month must be in 1..12"),
        (b"steps: " + b"1" * 5000, "is not YAML: no value"),
        (b"steps: !!int ''", "is not YAML: no value"),
        (b"pack: !!bool maybe", "is not YAML: no value"),
        (b"steps: !!timestamp x", "is not YAML: no value"),
        (b"steps: " + b"[" * 5000, "is not YAML: nested too deeply for settings"),
        (b"steps: " + b"{" * 5000, "is not YAML: nested too deeply for settings"),
        (b"steps: !" + b"1" * 5000, "is not YAML: could not determine a constructor .{,260} line 1, column 8: .{,60}$"),
        (b"data: &a [x]\nimages: *a", "is not YAML: an alias, and no setting needs one"),
        (b"#" * (2**16 + 1), "has 65,537 bytes, a configuration has at most 65,536"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(PixWordError, match=rf"--config .*run\.yaml {message}") as caught:
        read_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_a_small_file_of_a_huge_value_is_refused_at_once(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    file = write(tmp_path / "run.yaml", "\n".join(["a0: &a0 [x]", *levels, "data: *a39"]))
    with pytest.raises(PixWordError, match="an alias"):
        read_yaml(file)


def test_an_empty_file_changes_nothing_and_a_missing_one_is_named(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path / "run.yaml", "# nothing\n")) == {}
    with pytest.raises(PixWordError, match=r"--config .*none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")


AT_LEAST_ONE = [
    "steps", "accumulate", "streams", "log_every", "eval_every", "save_every", "batch_tokens", "group_size", "threads",
]  # fmt: skip
NOT_NEGATIVE = [
    "seed", "warmup", "weight_decay", "word_weight", "boundary_weight", "eval_documents", "sample_images", "max_bad",
]  # fmt: skip
POSITIVE = [
    "learning_rate", "muon_learning_rate", "clip_norm", "rope_theta", "rms_norm_eps",
    *(f.name for f in fields(ModelArgs) if f.type is int and f.name not in MAY_BE_0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, value) for name in AT_LEAST_ONE + POSITIVE for value in (0, -1)]
    + [(name, -1) for name in (*NOT_NEGATIVE, *sorted(MAY_BE_0))],
)
def test_numbers_out_of_range_are_refused_by_name(name: str, wrong: int) -> None:
    with pytest.raises(PixWordError, match=f"^{name} must .*, got {wrong}"):
        make_config({name: wrong})


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_zero_is_welcome_where_it_means_none(name: str) -> None:
    make_config({name: 0})


# --- config.json ------------------------------------------------------------------------------------------------------


def test_the_shape_of_a_model_comes_back_from_its_dict() -> None:
    args = ModelArgs(vocab_size=99, qk_norm=True, dtype="float32")
    assert ModelArgs.from_dict(args.to_dict()) == args


def test_metadata_of_the_hub_and_underscore_keys_are_ignored() -> None:
    assert {"model_type", "architectures", "quantization"} <= set(METADATA_KEYS)
    metadata = dict.fromkeys((*METADATA_KEYS, "_name_or_path", "_commit_hash", "_"), "anything")
    assert ModelArgs.from_dict({"vocab_size": 99, **metadata}) == ModelArgs(vocab_size=99)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden": 8}, "unknown key 'hidden'; known keys are attention_bias, dtype, "),
        ({"steps": 8}, "unknown key 'steps'"),
        ({"hidden_size": 8.0}, "hidden_size must be an integer, got 8.0"),
        ({"qk_norm": 1}, "qk_norm must be true or false, got 1"),
        ({"dtype": "int8"}, "dtype must be one of auto, "),
    ],
)
def test_other_keys_and_wrong_values_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(PixWordError, match=f"^config.json: {message}"):
        ModelArgs.from_dict(config)


def test_yaml_means_what_its_writer_meant(tmp_path: Path) -> None:
    """YAML 1.1 reads `3e-4` as text and `on` as true."""
    (tmp_path / "run.yaml").write_text("learning_rate: 3e-4\ncompile: on\n")
    config = make_config(read_yaml(tmp_path / "run.yaml"))
    assert (config.train.learning_rate, config.train.compile) == (3e-4, "on")


def test_every_path_of_a_written_configuration_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is resumed from any folder; repositories and built-in data have no place."""
    monkeypatch.chdir(tmp_path)
    for name in ("here", "owner"):
        (tmp_path / name).mkdir()
    parts: dict[str, Any] = {f.name: f for cls in (DataArgs, TrainArgs, AdaptArgs) for f in fields(cls)}
    paths = {name for name, f in parts.items() if f.metadata["path"] or "Path" in str(f.type)}
    assert {"data", "out", "cache", "fonts", "init", "language_from", "tokenizer"} <= paths
    for name in paths:
        given = ["here"] if get_origin(parts[name].type) is list else "here"
        flat = make_config({name: given}).with_absolute_paths().to_flat()
        assert flat[name] in (str(tmp_path / "here"), [str(tmp_path / "here")]), name
    flat = make_config({"data": ["text", "./text"], "init": "owner/name"}).with_absolute_paths().to_flat()
    assert (flat["data"], flat["init"]) == (["text", str(tmp_path / "text")], "owner/name")


@pytest.mark.parametrize("cls", ALL_SETTINGS)
def test_the_home_folder_stands_for_a_tilde_in_every_path(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    for f in fields(cls):
        if set(str(f.metadata["metavar"]).replace(".", "_").split("_")) & {"DIR", "FILE", "PATH", "F", "RUN"}:
            given = ["~/x"] if get_origin(f.type) is list else "~/x"
            value = convert(f, given, "here")
            assert str(value[0] if isinstance(value, list) else value) == "/home/of/mine/x", f.name
