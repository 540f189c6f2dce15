"""A block's layers as one array: drawing with the kernel, emulated, gives the logits of drawing layer by layer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import reports

from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inference.token_layers import TokenLayers
from mlx_pixword.inference.token_stack import stacks_run
from mlx_pixword.model.document import BOS, IMAGE, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.dispatch import choose

Build = Callable[..., PixWordModel]
PROMPTS = [[BOS, 7, 9, IMAGE], [BOS, IMAGE]]
LENGTHS = [4, 3, 2]  # pixels of each window


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a Mac on which every kernel is faster."""
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "choose", lambda kernel, args: kernel.metal)
    monkeypatch.setattr("mlx_pixword.inference.token_stack.choose", lambda kernel, args: kernel.metal)


def all_logits(model: PixWordModel, prompts: list[list[int]]) -> np.ndarray:
    decoder = GrowingImages(model, [make_document([prompt]) for prompt in prompts], LENGTHS, TokenLayers(model.args))
    found = [decoder.logits]
    for pixel in range(sum(LENGTHS) - 1):
        decoder.put(mx.array([(5 * pixel + row) % model.args.num_pix for row in range(len(prompts))]))
        found.append(decoder.logits)
    return np.array(mx.stack(found))


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS, PROMPTS[:1] * 3], ids=["one", "two lengths", "three alike"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "num_kv_heads": 1, "image_layers": 1}])
def test_drawing_with_the_kernel(
    small_model: Build, emulated: Any, prompts: Any, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    model = small_model(**changes)
    plain = all_logits(model, prompts)
    assert not reports
    request.getfixturevalue("metal")
    drawn = all_logits(model, prompts)
    decoded = [report for report in reports if "decode_step" in report.kernel]
    assert len(decoded) == 2 * (sum(LENGTHS) - 1)  # a launch for each block and pixel
    assert np.abs(drawn - plain).max() < 1e-5 * np.abs(plain).max()


def test_where_stacks_run(small_model: Build, metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    args = small_model().args
    assert stacks_run(args)
    assert not stacks_run(replace(args, hidden_size=4096, num_heads=32))
    monkeypatch.setenv("PIXWORD_KERNELS", "off")
    assert not stacks_run(args)


def test_without_metal_there_are_none(small_model: Build) -> None:
    assert not stacks_run(small_model().args)
