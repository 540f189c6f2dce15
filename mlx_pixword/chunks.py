"""Work in chunks whose memory is that of one chunk a stream, in the backward pass too."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from .elementary import custom

Function = Callable[..., mx.array]
Chunk = tuple[mx.array, ...]


def in_chunks(
    module: nn.Module, function: Function, shared: mx.array, chunks: Sequence[Chunk], streams: Sequence[mx.Stream]
) -> mx.array:
    """``function(shared, *chunk)`` of every chunk, concatenated; of the work inside nothing is kept.

    The backward pass computes a chunk again, and adds its gradients to those so far before a later one begins. Left
    to itself MLX would go through all chunks for one weight after the other, and hold what they all need.

    Args:
        module: whose parameters ``function`` uses, and gets gradients for.
        function: to an array ``[n, ...]``, ``n`` the length of the chunk's arrays.
        shared: an array that all chunks use; it gets a gradient too, and the chunks' arrays get none.
        chunks: the arrays of each chunk.
        streams: chunks are dealt out to these in turn, and each stream works on one chunk at a time.
    """

    @custom
    def run(inputs: Any) -> mx.array:
        results: list[mx.array] = []
        for n, chunk in enumerate(chunks):
            with mx.stream(streams[n % len(streams)]):
                before = results[-len(streams)] if n >= len(streams) else None
                results.append(_call(module, function, inputs, _wait(chunk, before)))
        module.update(inputs["parameters"])
        return mx.concatenate(results)

    @run.vjp
    def _run_vjp(inputs: Any, cotangent: mx.array, _: mx.array) -> Any:
        sums: list[Any] = [None] * len(streams)
        start = 0
        for n, chunk in enumerate(chunks):
            stream = n % len(streams)
            with mx.stream(streams[stream]):
                part = cotangent[start : (start := start + len(chunk[0]))]
                *arrays, part = _wait((*chunk, part), part if sums[stream] is None else sums[stream])
                grads = _gradients(module, function, inputs, arrays, part)
                sums[stream] = grads if sums[stream] is None else tree_map(mx.add, sums[stream], grads)
        module.update(inputs["parameters"])
        return tree_map(lambda first, *rest: sum(rest, first), *(each for each in sums if each is not None))

    return run({"parameters": module.trainable_parameters(), "shared": shared})


def _call(module: nn.Module, function: Function, inputs: Any, chunk: Sequence[mx.array]) -> mx.array:
    module.update(inputs["parameters"])
    return function(inputs["shared"], *chunk)


def _gradients(
    module: nn.Module, function: Function, inputs: Any, chunk: Sequence[mx.array], cotangent: mx.array
) -> Any:
    """Gradients of parameters and of what is shared, for one chunk."""
    leaves = dict(tree_flatten(inputs))

    def run(*values: mx.array) -> mx.array:
        return _call(module, function, tree_unflatten(list(zip(leaves, values, strict=True))), chunk)

    _, grads = mx.vjp(run, list(leaves.values()), [cotangent])
    return tree_unflatten(list(zip(leaves, grads, strict=True)))


def _wait(arrays: Sequence[mx.array], after: Any) -> Sequence[mx.array]:
    """The arrays, once all of the tree ``after`` have been computed."""
    return arrays if after is None else mx.depends(list(arrays), list(dict(tree_flatten(after)).values()))
