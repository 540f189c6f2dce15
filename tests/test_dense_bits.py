"""The benchmark of bits by the dense objective: variants train and go on, and what is left out is left out."""

import json
from dataclasses import replace
from pathlib import Path

import dense_bits
import mlx.core as mx
import numpy as np
import pytest
from dense_bits import VARIANTS, DenseBitsArgs, DenseTraining, LastSummary
from run_files import refusal

from mlx_pixword.config.run import make_config
from mlx_pixword.model.image_block import Summary

SHORT = {"hidden_size": 16, "num_heads": 2, "num_kv_heads": 2, "num_layers": 1, "group_size": 8, "batch_tokens": 200}


def training(variant: str, folder: Path, **args: object) -> DenseTraining:
    given = replace(DenseBitsArgs(minutes=0.002, crops=4, readings=1, scratch=folder), **args)
    return DenseTraining(given, variant, make_config({**VARIANTS[variant], **SHORT}, where=variant))


@pytest.mark.parametrize("variant", ["today", "no_partial_summary"])
def test_a_variant_trains_for_a_time_and_goes_on(variant: str, tmp_path: Path) -> None:
    result = training(variant, tmp_path).run()
    assert result["scored"] == 4 and result["images"] > 0 and len(result["curve"]) == 1
    assert result["bits_a_pixel"] == pytest.approx(result["bits_an_image"] / (28 * 12))
    assert 0 < result["bits_a_pixel"] < 12
    again = training(variant, tmp_path)
    assert again.state["crops"] == result["images"]
    assert again.run()["bits_an_image"] == pytest.approx(result["bits_an_image"])


def test_small_text_is_scored_too(tmp_path: Path) -> None:
    result = training("options", tmp_path, source="text").run()
    assert result["scored"] == 4 and 0 < result["bits_a_pixel"] < 12


def test_without_partial_sums_the_last_pixel_alone_has_one() -> None:
    args = make_config({**VARIANTS["options"], **SHORT}, where="options").model
    plain, last = Summary(args), LastSummary(args)
    last.update(plain.parameters())
    x = mx.random.normal((3, 16, args.image.hidden_size))
    reads, numbers = mx.array([[15, 0, 7]] * 3, mx.int32), mx.arange(16)[None]
    sums, found = np.array(plain(x, reads, numbers)), np.array(last(x, reads, numbers))
    np.testing.assert_allclose(found[:, 0], sums[:, 0])
    assert (found[:, 1:] == 0).all() and (np.abs(sums[:, 1:]).max(axis=-1) > 0).all()


def test_what_cannot_be_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (line,) = refusal(capsys, dense_bits.main, "--variant", "mine")
    assert "--variant must be one of today, options" in line
    (line,) = refusal(capsys, dense_bits.main, "--variant", "no_partial_summary", "--source", "text")
    assert "is for plates" in line
    (line,) = refusal(capsys, dense_bits.main, "--variant", "today", "--until", "0.5")
    assert "nothing is read here" in line


def test_the_table_has_a_line_a_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = {"source": "plates", "name": "a", "seed": 1, "minutes": 2.0, "images": 3, "bits_an_image": 33.6}
    (tmp_path / "dense_bits-x.json").write_text(json.dumps(result | {"bits_a_pixel": 0.1}))
    dense_bits.main(["--table", "--out", str(tmp_path)])
    line = " ".join(capsys.readouterr().out.split())
    assert line == "plates a seed 1 2.0 min 3 images 33.6 bits an image 0.1000 a pixel"
