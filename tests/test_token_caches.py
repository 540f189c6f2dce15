"""Caches of token steps: no pixel copies the sequence, whatever computes the attention over it."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import reports

from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inference.token_caches import Cache, SequenceCache
from mlx_pixword.inference.token_layers import TokenLayers
from mlx_pixword.model.document import BOS, IMAGE, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.dispatch import choose
from mlx_pixword.ops.dispatch.choose import Decision

Build = Callable[..., PixWordModel]
PROMPTS = [[BOS, 7, 9, IMAGE], [BOS, IMAGE]]


def softmax_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One row in float64: scaled ``q [H, d]``, ``keys, values [G, J, d]`` to ``[H, d]``."""
    repeat = len(q) // len(keys)
    scores = np.einsum("hd,hjd->hj", q, np.repeat(keys, repeat, axis=0))
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hj,hjd->hd", shares / shares.sum(axis=1, keepdims=True), np.repeat(values, repeat, axis=0))


@pytest.mark.parametrize("heads, groups", [(4, 2), (3, 3), (4, 1)])
def test_both_caches_are_attention_in_float64(rng: np.random.Generator, heads: int, groups: int) -> None:
    """Two rows, of which the second sees nothing of its first two places; the places are taken 3, 1 and 2 times."""
    rows, size, start, turns = 2, 8, 4, [4, 4, 4, 5, 6, 6]
    firsts, places = [0, 2], 8
    bias = mx.array(np.where(np.arange(places) < np.array(firsts)[:, None], -np.inf, 0).astype(np.float32))
    prompt = rng.normal(size=(2, rows, groups, start, size))
    kept = np.zeros((2, rows, groups, places, size))
    kept[:, :, :, :start] = prompt
    shape = (rows, groups, places, size)
    plain, sequence = Cache(shape, mx.float32), SequenceCache(shape, mx.float32, firsts)
    for cache in (plain, sequence):
        cache.put(*(mx.array(array, mx.float32) for array in prompt), 0)
    for place in turns:
        q, own = rng.normal(size=(rows, heads, 1, size)), rng.normal(size=(2, rows, groups, 1, size))
        kept[:, :, :, place] = own[:, :, :, 0]
        expected = [
            softmax_attention(q[n, :, 0], *(part[n, :, first : place + 1] for part in kept))
            for n, first in enumerate(firsts)
        ]
        for cache in (plain, sequence):
            arguments = (mx.array(array, mx.float32) for array in (q, *own))
            found = cache.attend(*arguments, place, bias[:, None, None])
            assert np.abs(np.array(found).reshape(rows, heads, size) - expected).max() < 1e-5
    closed = [np.array(array) for array in sequence.by_head()]
    assert np.abs(np.stack(closed)[:, :, :, :6] - kept[:, :, :, :6]).max() < 1e-6
    assert not np.any(np.stack(closed)[:, :, :, 6:])  # the open place's lie apart


def test_a_pixel_leaves_the_sequence_alone(small_model: Build) -> None:
    """It is written only when a window begins, once for all pixels of the window before."""
    model = small_model()
    decoder = GrowingImages(model, [make_document([PROMPTS[0]])], [4] * 4, TokenLayers(model.args))
    kept, written = [np.array(cache.keys) for cache in decoder._sequence], []
    for pixel in range(15):
        decoder.put(decoder.same_for_all(pixel))
        now = [np.array(cache.keys) for cache in decoder._sequence]
        changed = [not np.array_equal(*pair) for pair in zip(now, kept, strict=True)]
        assert changed == [changed[0]] * len(now)
        written += [pixel] * changed[0]
        kept = now
    assert written == [4, 8, 12]


def drawn(model: PixWordModel, lengths: list[int]) -> np.ndarray:
    """Logits of every pixel behind two prompts, layer by layer."""
    decoder = GrowingImages(model, [make_document([prompt]) for prompt in PROMPTS], lengths, TokenLayers(model.args))
    assert not decoder._language_stack
    found = [decoder.logits]
    for pixel in range(sum(lengths) - 1):
        decoder.put(mx.array([(5 * pixel + row) % model.args.num_pix for row in range(len(PROMPTS))]))
        found.append(decoder.logits)
    return np.array(mx.stack(found))


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "num_kv_heads": 1}])
@pytest.mark.parametrize("mode", ["on", "verify"])
def test_the_kernel_of_conditional_attention_draws_the_same(
    small_model: Build, emulated: Any, changes: dict[str, Any], mode: str, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Where a block is not one launch, its attention over the sequence is: the sequence is read where it lies."""
    monkeypatch.setenv("PIXWORD_KERNELS", mode)
    monkeypatch.setattr("mlx_pixword.inference.growing_images.stacks_run", lambda _: False)
    model = small_model(**changes)
    plain = drawn(model, [3, 2, 2])
    assert not reports
    request.getfixturevalue("metal")
    found = drawn(model, [3, 2, 2])
    launched = [report for report in reports if "attention_own" in report.kernel]
    assert len(launched) >= 6 * model.args.num_layers  # one a pixel and layer, besides those that read the prompts
    assert np.abs(found - plain).max() < 1e-5 * np.abs(plain).max()


def test_the_attention_of_a_drawing_is_tried_once(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def examine(kernel: Any, args: Any, forward_only: bool = False) -> Decision:
        tried.append(kernel.name)
        return Decision(kernel.name, "", None, 0.0, forward_only, 1.0, 0.5)

    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "_decisions", {})
    monkeypatch.setattr(choose, "examine", examine)
    monkeypatch.setattr("mlx_pixword.inference.growing_images.stacks_run", lambda _: False)
    model = small_model()
    drawn(model, [2] * 20)
    assert tried.count("conditional_attention") == 1
