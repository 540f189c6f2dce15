"""The model's options, and what their tests measure: losses, gradients, and every pixel's conditional."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import Document
from mlx_pixword.model.losses import loss_sums, weighted_loss
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]

ALL: dict[str, Any] = {
    "positions": "grid", "summary": "concat", "summary_rank": 6, "image_hidden_size": 16, "image_num_heads": 2,
    "image_intermediate_size": 20, "factored_colors": True, "linear_color_scale": 0.5, "qk_norm": True,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grid": {"positions": "grid"},
    "window theta": {"window_theta": 30.0},
    "concat": {"summary": "concat"},
    "concat, few dimensions": {"summary": "concat", "summary_rank": 5},
    "narrow image block": {"image_hidden_size": 16},
    "no image layers": {"image_layers": 0, "summary": "concat", "image_hidden_size": 8},
    "linear colours alone": {"factored_colors": True, "linear_color_scale": 0.5, "sine_color_scale": 0.0},
    "all": ALL,
    "all, one image layer": {**ALL, "image_layers": 1, "summary_rank": 0},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def build(small_model: Build, option: str, **changes: Any) -> PixWordModel:
    """A small model whose parts all weigh enough to be seen."""
    model = small_model(**OPTIONS[option] | changes)
    model.update(tree_map(lambda p: p * (6 if p.ndim == 2 and p.shape[0] > 60 else 1.5), model.parameters()))
    return model


def documents(model: PixWordModel, rng: np.random.Generator) -> list[Document]:
    processor = Processor(model.args)
    sizes = [[(5, 6), (9, 3)], [(2, 2)], [(6, 14)], []]
    return [
        processor.document([[7, 8], *(part for s in some for part in (picture(rng, *s), [9]))], closed=True)
        for some in sizes
    ]


def batch_of(
    model: PixWordModel, docs: list[Document], queries: int, seed: int = 0, pack: bool = False, exact: bool = False
) -> Batch:
    rows = [docs] if pack else [[d] for d in docs]
    return collate(rows, model.args, pixel_queries=queries, seed=(seed,), exact=exact)


def loss_and_gradients(
    model: PixWordModel, batch: Batch, *, exact_savings: bool = True
) -> tuple[float, dict[str, np.ndarray]]:
    def loss() -> mx.array:
        sums = loss_sums(*model.forward(batch, exact_savings=exact_savings), batch, model.args.vocab_size)
        return weighted_loss(sums, mx.array(float(batch.num_targets)), 2.0, 0.5, 1.0)

    value, gradients = nn.value_and_grad(model, loss)()
    return value.item(), {name: np.array(g) for name, g in dict(tree_flatten(gradients)).items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    scale = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= tolerance * scale, name


def conditionals(model: PixWordModel, batch: Batch) -> np.ndarray:
    """Log-probabilities of every pix token at every pixel in window order, ``[B, T, K]``; images of one size."""
    logits, queries = model.forward(batch)
    assert queries is not None and batch.query_places is not None
    words, rows = model.args.vocab_size, []
    first = np.array(logits - mx.logsumexp(logits[..., words:], axis=-1, keepdims=True))[..., words:]
    others = np.array(queries - mx.logsumexp(queries[..., words:], axis=-1, keepdims=True))[..., words:]
    elements, weights = np.array(batch.elements), np.array(batch.query_weights)
    for b in range(len(elements)):
        places, row = np.array(batch.query_places)[b], []
        for place in np.flatnonzero(elements[b] >= words):
            row += [first[b, place - 1], *others[b, (places == place) & (weights[b] > 0)]]
        rows.append(row)
    return np.array(rows)
