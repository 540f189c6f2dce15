"""The gradient of a batch with its windows some at a time, so that memory does not grow with the image.

Windows are independent of each other in the image block, and only their states leave it:

1. the states of all windows, chunk by chunk, of whose work nothing is kept;
2. loss, and gradients of the language block and of the states;
3. each chunk again, with its gradients, added up before the next one begins.

It is done by hand because in one graph MLX would hold what all chunks need, and a hundred thousand small operations.

U  distinct windows    P  pixels a window    R  pixels that are read out of a window    D  hidden size
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from ..model.losses import LossSums
from ..model.network import PixWordModel

Arrays = dict[str, mx.array]
Chunk = tuple[mx.array, ...]
Objective = Callable[[Arrays, mx.array, mx.array | None], tuple[mx.array, LossSums]]
Gradient = Callable[[Arrays, mx.array], tuple[tuple[mx.array, LossSums], Any]]


def make_chunked_gradient(
    model: PixWordModel, objective: Objective, size: int, streams: Sequence[mx.Stream], compiled: bool
) -> Gradient:
    """Build the gradient.

    Args:
        model: whose trainable parameters get gradients.
        objective: of a batch's arrays, Z and window states ``[U, R, D]``: the loss, and sums that ride along.
        size: windows a chunk.
        streams: each works on one chunk at a time.
        compiled: whether MLX compiles the parts, each once for a shape.

    Returns:
        ``gradient(arrays, normalizer)``: loss and sums, and the tree of gradients, all evaluated.
    """
    block = model.image_block

    def states(inputs: Any, *windows: mx.array) -> mx.array:
        block.update(inputs["parameters"])
        return block.states(inputs["table"], *windows)

    def pull_back(inputs: Any, cotangent: mx.array, *windows: mx.array) -> Any:
        return _vjp(lambda leaves: states(leaves, *windows), inputs, cotangent)

    def after_states(parameters: Any, found: mx.array, arrays: Arrays, normalizer: mx.array) -> Any:
        model.update(parameters)
        return objective(arrays, normalizer, found)

    language: Any = mx.value_and_grad(after_states, argnums=(0, 1))
    if compiled:
        states, pull_back = mx.compile(states), mx.compile(pull_back)
        language = mx.compile(language, inputs=mx.random.state, outputs=mx.random.state)  # of adapters' dropout

    def gradient(arrays: Arrays, normalizer: mx.array) -> tuple[tuple[mx.array, LossSums], Any]:
        parameters, windows = model.trainable_parameters(), arrays["windows"]
        whole = [arrays[name] for name in ("windows", "reads", "widths") if name in arrays]
        project = block.projects(windows)
        inputs = {"parameters": parameters["image_block"], "table": block.table(project)}
        parts = [slice(n, n + size) for n in range(0, len(windows), size)]
        cuts = [tuple(array[p] for array in whole) for p in parts]
        found: list[mx.array] = []
        for chunks in _rounds(cuts, streams):
            found += _on_streams(streams, [partial(states, inputs, *chunk) for chunk in chunks])
            mx.eval(found)
        value, (gradients, of_states) = language(parameters, mx.concatenate(found), arrays, normalizer)
        mx.eval(value, gradients, of_states)
        if tree_flatten(parameters["image_block"]):  # adapters of the language block alone leave it as it is
            cotangents = [(of_states[p], *cut) for cut, p in zip(cuts, parts, strict=True)]
            gradients["image_block"] = _sum([gradients["image_block"], *of_block(inputs, cotangents, project)])
        model.update(parameters)  # no trace of the parts is left in it
        return value, gradients

    def of_block(inputs: Any, cotangents: Sequence[Chunk], project: bool) -> list[Any]:
        """Gradients of the image block: what chunks give by themselves, and through the table that all of them use."""
        total: Any = None
        for chunks in _rounds(cotangents, streams):
            each = _on_streams(streams, [partial(pull_back, inputs, *chunk) for chunk in chunks])
            total = _sum(each if total is None else [total, *each])
            mx.eval(total)

        def table(own: Any) -> mx.array:
            block.update(own)
            return block.table(project)

        return [total["parameters"], _vjp(table, inputs["parameters"], total["table"])]

    return gradient


def _vjp(function: Callable[[Any], mx.array], tree: Any, cotangent: mx.array) -> Any:
    """Gradients of all arrays of a tree, given that of the function's result."""
    leaves = dict(tree_flatten(tree))

    def filled(values: Sequence[mx.array]) -> Any:
        found = dict(zip(leaves, values, strict=True))
        return tree_map_with_path(lambda name, _: found[name], tree)  # an empty list of layers stays one

    _, gradients = mx.vjp(lambda *values: function(filled(values)), list(leaves.values()), [cotangent])
    return filled(gradients)


def _rounds(chunks: Sequence[Chunk], streams: Sequence[mx.Stream]) -> list[Sequence[Chunk]]:
    """Chunks that are computed side by side, one a stream."""
    return [chunks[n : n + len(streams)] for n in range(0, len(chunks), len(streams))]


def _on_streams(streams: Sequence[mx.Stream], functions: Sequence[Callable[[], Any]]) -> list[Any]:
    results = []
    for stream, function in zip(streams, functions, strict=False):
        with mx.stream(stream):
            results.append(function())
    return results


def _sum(trees: Sequence[Any]) -> Any:
    return tree_map(lambda first, *rest: sum(rest, first), *trees)
