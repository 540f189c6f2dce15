"""The configuration of a run: preset, YAML and command line, and back."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import convert, flag
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
