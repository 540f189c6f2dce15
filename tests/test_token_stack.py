"""A block's layers as one array: drawing with the kernel, emulated, gives the logits of drawing layer by layer."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import reports, traffic

from mlx_pixword.config.run import make_config
from mlx_pixword.inference import token_stack
from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inference.token_layers import TokenLayers
from mlx_pixword.inference.token_layers_numpy import NumpyTokenLayers
from mlx_pixword.inference.token_stack import stacks_run
from mlx_pixword.model.document import BOS, IMAGE, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops import decode_step
from mlx_pixword.ops.decode_step import DECODE_STEP
from mlx_pixword.ops.dispatch import choose
from mlx_pixword.ops.dispatch.choose import Decision, KernelError

Build = Callable[..., PixWordModel]
PROMPTS = [[BOS, 7, 9, IMAGE], [BOS, IMAGE]]
LENGTHS = [4, 3, 2]  # pixels of each window


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


def test_windows_longer_than_the_small_array(
    small_model: Build, emulated: Any, metal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its places are written to the window's cache two at a time, and a new window begins at the first place again."""
    model = small_model()
    decoder = partial(GrowingImages, model, [make_document([PROMPTS[0]])], [5, 4])
    monkeypatch.setattr("mlx_pixword.inference.growing_images.RECENTS", 2)
    kernels, plain = decoder(TokenLayers(model.args)), decoder(NumpyTokenLayers(model.args))
    assert kernels._image_stack and kernels._image_stack._recent_keys.shape[3] == 2
    for pixel in range(8):
        for each in (kernels, plain):
            each.put(each.same_for_all(pixel))
        assert np.abs(np.array(kernels.logits) - plain.logits).max() < 1e-5 * np.abs(plain.logits).max()


def test_what_was_chosen_is_called_without_another_trial(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial a block, though a drawing's caches grow through several classes."""
    tried: list[Any] = []

    def examine(kernel: Any, args: Any, forward_only: bool = False) -> Decision:
        tried.append(kernel.key(args))
        return Decision(kernel.name, "", None, 0.0, forward_only, 1.0, 2.0)

    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "_decisions", {})
    monkeypatch.setattr(choose, "examine", examine)
    monkeypatch.setattr("mlx_pixword.ops.window_attention.dispatch", lambda kernel, *args: kernel.reference(*args))
    monkeypatch.setattr(token_stack, "DECODE_STEP", replace(DECODE_STEP, metal=DECODE_STEP.reference, reference=None))
    model = small_model()
    decoder = GrowingImages(model, [make_document([PROMPTS[0]])], [2] * 20, TokenLayers(model.args))
    for _ in range(30):
        decoder.put(decoder.same_for_all(1))
    assert len(tried) == 2


def test_verify_compares_every_token_step(small_model: Build, metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was chosen and is wrong later on is found, not drawn with."""
    monkeypatch.setenv("PIXWORD_KERNELS", "verify")

    def wrong_at_the_third_place(x: mx.array, *rest: Any) -> Any:
        state, *others = DECODE_STEP.reference(x, *rest)
        return state * (1.1 if rest[-2] == 2 else 1), *others

    monkeypatch.setattr(decode_step, "DECODE_STEP", replace(DECODE_STEP, metal=wrong_at_the_third_place))
    monkeypatch.setattr("mlx_pixword.ops.window_attention.dispatch", lambda kernel, *args: kernel.reference(*args))
    model = small_model()
    decoder = GrowingImages(model, [make_document([PROMPTS[0]])], [4], TokenLayers(model.args))
    for pixel in range(2):
        decoder.put(decoder.same_for_all(pixel))
    with pytest.raises(KernelError, match="decode_step differs"):
        decoder.put(decoder.same_for_all(2))


def test_a_pixel_writes_no_cache(small_model: Build, emulated: Any, metal: None) -> None:
    """Its keys go into a small array; the language block's cache is written by the first pixel of the next window."""
    model = small_model()
    decoder = GrowingImages(model, [make_document([PROMPTS[0]])], [4] * 6, TokenLayers(model.args))
    language, image = decoder._language_stack, decoder._image_stack
    assert language and image
    caches = [[np.array(stack._keys) for stack in (language, image)]]
    for pixel in range(23):
        decoder.put(decoder.same_for_all(pixel))
        caches.append([np.array(stack._keys) for stack in (language, image)])
    written = [not np.array_equal(before[0], after[0]) for before, after in pairwise(caches)]
    assert [pixel for pixel, new in enumerate(written) if new] == [4, 8, 12, 16, 20]
    assert not np.any(caches[-1][1])  # the whole window is the small array
    assert language._recent_keys.shape[3] == 1 and image._recent_keys.shape[3] == 4


def test_bytes_of_a_pixel(emulated: Any, metal: None) -> None:
    """Of `tiny` on 64x64 pixels: two launches, and no copies of caches, which were a third of all."""
    args = make_config({"preset": "tiny", "dtype": "float32"}).model
    model = PixWordModel(args)
    decoder = GrowingImages(model, [make_document([[BOS, IMAGE]])], [16] * 256, TokenLayers(args))
    for pixel in range(3):
        decoder.put(decoder.same_for_all(pixel))
    stacks = [stack for stack in (decoder._language_stack, decoder._image_stack) if stack]
    now = sum(map(traffic, reports[-2:]))
    copies = sum(2 * 2 * stack._keys.nbytes for stack in stacks)  # keys and values, read and written
    assert [report.kernel.count("decode_step") for report in reports[-3:]] == [1, 1, 1]
    page = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert f"| {(now + copies) / 1e3:,.0f} KB | {now / 1e3:,.0f} KB |" in page, (now, copies)


def test_where_stacks_run(small_model: Build, metal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    args = small_model().args
    assert stacks_run(args)
    assert not stacks_run(replace(args, hidden_size=4096, num_heads=32))
    monkeypatch.setenv("PIXWORD_KERNELS", "off")
    assert not stacks_run(args)


def test_without_metal_there_are_none(small_model: Build) -> None:
    assert not stacks_run(small_model().args)
