"""The benchmarks of small text: every variant can be trained, goes on after a stop, and what is read is held out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_text
from default_run import ELEMENTS, crops, report
from run_files import refusal
from small_text import VARIANTS, SmallTextArgs, Training, with_halo

from mlx_pixword.config.run import make_config
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.strings import reserved
from mlx_pixword.evaluation.readings import read_documents
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.training.setup import build_model

SHORT = {"hidden_size": 16, "num_heads": 2, "num_kv_heads": 2, "num_layers": 1, "group_size": 8, "batch_tokens": 100}


def test_every_variant_is_a_model() -> None:
    for name, values in VARIANTS.items():
        model = make_config(values, where=name).model
        assert model.image_size == 96 or (name == "halo" and model.image_size // model.window_size == 96 // 4)


def test_a_halo_is_the_row_above_a_window_and_the_column_beside_it() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 10, 3), dtype=np.uint8)
    haloed = with_halo(rgb, 4)
    assert haloed.shape == (9, 13, 3)  # 2 x 3 windows, of which the last are ragged, as those of 4 px are
    assert (haloed[5:9, 5:10] == rgb[3:7, 3:8]).all() and (haloed[5:9, 10:13] == rgb[3:7, 7:10]).all()
    assert (haloed[:5, :5] == rgb[[0, 0, 1, 2, 3]][:, [0, 0, 1, 2, 3]]).all()  # nothing lies before the first one


@pytest.mark.parametrize("variant", ["ours", "today", "linear_patches", "halo"])
def test_a_variant_trains_for_a_time_and_goes_on(variant: str, tmp_path: Path) -> None:
    args = SmallTextArgs(minutes=0.004, crops=10, readings=1, scratch=tmp_path)
    config = make_config({**VARIANTS[variant], **SHORT}, where=variant)
    training = Training(args, variant, config, halo=variant == "halo")
    sizes = [training.held_out.crop(n).draw().shape[:2] for n in range(9)]  # every variant has the same windows
    assert [d.images[0].grid for d in training._test(9)] == [(-(-high // 4), -(-wide // 4)) for high, wide in sizes]
    result = training.run()
    assert result["crops"] > 0 and result["steps"] > 0 and 0 <= result["exact_match"] <= 1
    assert (
        len(result["curve"]) == 1
        and result["curve"][0]["nats"] > 0
        and set(result["by_height"]) <= {"4.5", "6", "8", "10"}
    )
    again = Training(args, variant, config, halo=variant == "halo")
    assert again.state["crops"] == result["crops"] and again.run()["steps"] == result["steps"]  # its time is up


def test_a_run_ends_where_enough_is_read(tmp_path: Path) -> None:
    args = SmallTextArgs(minutes=0.02, crops=10, readings=4, scratch=tmp_path, until=0.0)
    result = Training(args, "ours", make_config({**VARIANTS["ours"], **SHORT}, where="ours")).run()
    assert len(result["curve"]) == 1 and 0.005 <= result["trained_minutes"] < 0.015


def test_settings_are_given_as_names_and_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (line,) = refusal(capsys, small_text.main, "--variant", "ours", "--set", "seed", "--scratch", tmp_path)
    assert "--set must be NAME=VALUE" in line
    (line,) = refusal(capsys, small_text.main, "--variant", "mine")
    assert "--variant must be one of today, ours" in line


def test_the_table_has_a_line_a_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = {"name": "a", "seed": 1, "minutes": 2.0, "crops": 3, "exact_match": 0.5, "by_height": {"6": 0.25}}
    curve = [{"minutes": n + 0.5, "exact_match": n / 4} for n in range(4)]
    for found in ([], curve):
        (tmp_path / f"small_text-{len(found)}.json").write_text(json.dumps(result | {"curve": found}))
    small_text.main(["--table", "--out", str(tmp_path)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = "a seed 1 2.0 min 3 crops exact match 0.500 half at"
    assert lines == [f"{start} never 6: 0.25", f"{start} 2.5 6: 0.25"]


def test_the_default_run_is_scored_on_held_out_numbers_of_two_and_three_digits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config({"preset": "numbers"})
    tokenizer = train_tokenizer([str(n) for n in range(1000)], 100)
    args = replace(config.model, vocab_size=tokenizer.vocab_size)
    documents = crops(Encoder(args, tokenizer, SkipLog()), 1, (10, 12), 30, args.image_size)
    read = read_documents(build_model(args, config.train), Processor(args, tokenizer), documents, ELEMENTS)
    written = [text for _, text in read]
    assert len(written) == 30 and {len(text) for text in written} == {2, 3} and all(map(reserved, written))
    found = report("10 to 12 px", [True] * 3 + [False])
    assert found["exact_match"] == 0.75 and found["n"] == 4 and found["interval"][0] < 0.75 < found["interval"][1]
    assert "exact match 0.750" in capsys.readouterr().out
