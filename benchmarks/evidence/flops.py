"""Operations of a training step: from the shapes of every product in MLX's graph, and by formula for a check.

A product of ``m x k`` with ``k x n`` is 2 m k n operations. Attention counts its whole square, which is what MLX's CPU
build computes. Muon's own products count too, shared by the crops of a step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_pixword.model.batch import Batch
from mlx_pixword.training.optimizer import is_hidden_matrix

from .arms import Arm
from .learning import Learner

NEWTON_SCHULZ_STEPS = 5
PRODUCTS = ("Matmul", "AddMM")


def graph_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of all matrix products in the graph that MLX traces for a call."""
    total = 0

    def note(event: dict[str, Any]) -> None:
        nonlocal total
        if event.get("name") in PRODUCTS:
            total += 2 * int(np.prod(event["outputs"][0][1])) * int(event["inputs"][0][1][-1])

    mx.export_function(note, function, *arguments)
    return total


@contextmanager
def _traceable() -> Iterator[None]:
    """Exponentials without gradients of their own, which MLX cannot trace, and attention as its two products."""
    with (
        patch("mlx_pixword.ops.exponentials.polynomials_pay", lambda _: False),
        patch("mlx_pixword.ops.attention.polynomials_pay", lambda _: True),
    ):
        yield


def step_flops(learner: Learner, batch: Batch) -> int:
    """Operations of loss and gradients of a batch."""

    def gradient(_: mx.array) -> list[mx.array]:
        loss, grads = learner.gradient(batch)
        return [loss, *dict(tree_flatten(grads)).values()]

    parameters = learner.model.parameters()
    with _traceable():
        total = graph_flops(gradient, mx.array(0.0))
    learner.model.update(parameters)
    return total


def muon_step_flops(learner: Learner) -> int:
    """Operations of Muon's Newton-Schulz steps, from the shapes of the matrices."""
    total = 0
    for name, weight in dict(tree_flatten(learner.model.parameters())).items():
        if is_hidden_matrix(name):
            m, n = sorted(weight.shape)
            total += NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3)
    return total


def front_flops(arm: Arm, windows: int, hidden_size: int, places: int = 0) -> int:
    """Operations of a patch arm's front end forward, by formula.

    Args:
        arm: a patch arm.
        windows: U.
        hidden_size: D.
        places: of the whole map of features, for the convolutional stem: its images are padded to one size.
    """
    side, width = arm.window, arm.width
    if arm.front == "conv":
        half = width // 2
        return 2 * (4 * places * 36 * half + places * 9 * half * width + windows * width * hidden_size)
    inputs = 3 * side**2 + 2 * side
    return 2 * windows * (inputs * width + width * hidden_size if width else inputs * hidden_size)
