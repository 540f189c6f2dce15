"""Gradients with the windows in chunks: those of the whole batch, in the memory of one chunk."""

import gc
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.config.train import TrainArgs
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.training.chunked_gradient import make_chunked_gradient
from mlx_pixword.training.step import _objective

Build = Callable[..., PixWordModel]


def batch_of(args: ModelArgs, rng: np.random.Generator, size: tuple[int, int], queries: int = 0) -> Batch:
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    documents = [make_document([[BOS, 7, IMAGE], tokens_of(rgb, args), [END_IMAGE, 8]], closed=True) for _ in range(2)]
    rows = [[document] for document in documents]
    return collate(rows, args, exact=True, pixel_queries=queries)


def arrays(tree: object) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in dict(tree_flatten(tree)).items()}


@pytest.mark.parametrize(
    ("size", "streams", "compiled"), [(1, 1, False), (3, 2, False), (3, 1, True), (5, 3, False), (100, 2, False)]
)
@pytest.mark.parametrize("queries", [0, 2])
def test_chunks_give_the_same_loss_and_gradients(
    small_model: Build, rng: np.random.Generator, size: int, streams: int, queries: int, compiled: bool
) -> None:
    model = small_model()
    batch, normalizer = batch_of(model.args, rng, (9, 13), queries), mx.array(50.0)
    before = arrays(model.parameters())
    objective = _objective(model, TrainArgs(window_chunk=size, pixel_queries=queries))
    (expected, sums), expected_gradients = nn.value_and_grad(model, objective)(batch.arrays(), normalizer)
    own = [mx.new_stream(mx.default_device()) for _ in range(streams)]
    (loss, found), gradients = make_chunked_gradient(model, objective, size, own, compiled)(batch.arrays(), normalizer)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert [s.item() for s in found] == pytest.approx([s.item() for s in sums], rel=1e-5)
    whole, parts = arrays(expected_gradients), arrays(gradients)
    scale = max(np.abs(g).max() for g in whole.values())
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert np.abs(parts[name] - gradient).max() < 1e-5 * scale, name
    after = arrays(model.parameters())
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def mean_square(
    _arrays: dict[str, mx.array], normalizer: mx.array, states: mx.array | None
) -> tuple[mx.array, mx.array]:
    assert states is not None
    return (states**2).mean() / normalizer, normalizer


def test_memory_does_not_grow_with_the_image(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model(image_size=256, window_size=8, max_seq_len=2100)
    peaks = {}
    streams = [mx.default_stream(mx.default_device())]
    for chunk in (8, 10_000):
        gradient = make_chunked_gradient(model, mean_square, chunk, streams, False)
        for side in (64, 256):
            batch = batch_of(model.args, rng, (side, side))
            mx.eval(model.parameters(), batch.arrays())
            gc.collect()  # what earlier tests left would be freed meanwhile
            mx.synchronize()
            mx.reset_peak_memory()
            start = mx.get_active_memory()
            gradient(batch.arrays(), mx.array(1.0))
            peaks[chunk, side] = mx.get_peak_memory() - start
    assert peaks[8, 256] < 1.2 * peaks[8, 64]
    assert peaks[10_000, 256] > 8 * peaks[10_000, 64]  # what the chunks are for
