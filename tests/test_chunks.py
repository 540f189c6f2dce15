"""Work in chunks: the same values and gradients on any number of streams, and the memory of one chunk."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.chunks import in_chunks

SIZE = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(SIZE, SIZE) for _ in range(6)]

    def part(self, shared: mx.array, x: mx.array, scale: mx.array) -> mx.array:
        y = x * scale + shared
        for layer in self.layers:
            y = mx.tanh(layer(y)) + y
        return y


def run(block: Block, x: mx.array, scale: mx.array, shared: mx.array, size: int, streams: int) -> tuple[mx.array, dict]:
    """Value and gradients with chunks of a size; 0 for the whole at once."""
    chunks = [(x[n : n + size], scale[n : n + size]) for n in range(0, len(x), size)] if size else []
    own = [mx.new_stream(mx.default_device()) for _ in range(streams)]

    def total(shared: mx.array) -> mx.array:
        y = in_chunks(block, block.part, shared, chunks, own) if chunks else block.part(shared, x, scale)
        return (y**2).sum()

    value, gradients = nn.value_and_grad(block, total)(shared)
    of_shared = mx.grad(total)(shared)
    return value, {**dict(tree_flatten(gradients)), "shared": of_shared}


@pytest.mark.parametrize("size", [1, 3, 4, 10, 20])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_values_and_gradients_are_those_of_the_whole(size: int, streams: int, rng: np.random.Generator) -> None:
    block = Block()
    x, scale, shared = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((10, SIZE), (10, 1), (SIZE,)))
    before = {name: np.array(value) for name, value in tree_flatten(block.parameters())}
    expected, expected_gradients = run(block, x, scale, shared, 0, 1)
    value, gradients = run(block, x, scale, shared, size, streams)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert np.abs(np.array(gradient - expected_gradients[name])).max() < 1e-3 * mx.abs(gradient).max().item()
    for name, parameter in tree_flatten(block.parameters()):
        assert np.array_equal(np.array(parameter), before[name])  # and no trace of the backward pass is left in it


def test_memory_does_not_grow_with_the_number_of_chunks(rng: np.random.Generator) -> None:
    block = Block()
    peaks = {}
    for size in (256, 0):
        for rows in (1024, 8192):
            x, scale, shared = mx.zeros((rows, SIZE)), mx.ones((rows, 1)), mx.zeros((SIZE,))
            mx.eval(block.parameters(), x, scale, shared)
            mx.reset_peak_memory()
            start = mx.get_active_memory()
            mx.eval(run(block, x, scale, shared, size, 1))
            peaks[size, rows] = mx.get_peak_memory() - start - 4 * x.nbytes  # results and their gradients do grow
    assert peaks[256, 8192] < 1.5 * peaks[256, 1024]
    assert peaks[0, 8192] > 4 * peaks[0, 1024]  # what the chunks are for
