"""Counts of parameters and operations, against what the model asks for: real calls, graphs, and hand counts."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import PRESETS, make_config
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inference.token_caches import Cache, SequenceCache
from mlx_pixword.inference.token_layers import Matrices, TokenLayers
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.model import layers, network
from mlx_pixword.model.args import ModelArgs, parameters
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, make_document
from mlx_pixword.model.image_block import ImageBlock, Summary, Table
from mlx_pixword.model.network import PixWordModel, num_parameters
from mlx_pixword.pixels.windows import window_order
from mlx_pixword.planning.costs import (
    Load,
    attention_pairs,
    drawing_flops,
    forward_flops,
    image_load,
    muon_flops,
    training_flops,
)
from mlx_pixword.training.device import recompute_layers
from mlx_pixword.training.step import _objective

Build = Callable[..., PixWordModel]
Counts = Counter[str]


def batch_of(
    args: ModelArgs, rng: np.random.Generator, size: tuple[int, int], *, rows: int = 1, words: int = 0, queries: int = 0
) -> Batch:
    """Rows of one image of noise each, so that no window repeats, and words."""
    documents = [
        make_document(
            [[BOS, IMAGE], tokens_of(rng.integers(0, 256, (*size, 3), np.uint8), args), [END_IMAGE], [7] * words]
        )
        for _ in range(rows)
    ]
    return collate(
        [[document] for document in documents], args, exact=True,
        pixel_queries=queries,
    )  # fmt: skip


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Operations of every product that the model asks for, by part, from the shapes it is given."""
    found: Counts = Counter()
    part = ["language"]
    plain = {
        "linear": layers.Linear.__call__, "table": network.Table.__call__, "logits": PixWordModel.logits,
        "image": network.ImageBlock.states, "first": network.ImageBlock.table,
        "attention": layers.attention, "window": layers.window_attention,
        "conditional": layers.conditional_attention, "summary": Summary.__call__,
    }  # fmt: skip

    def linear(self: layers.Linear, x: mx.array) -> mx.array:
        found[part[0]] += 2 * x.size * self.weight.shape[0]
        return plain["linear"](self, x)

    def table(self: network.Table) -> mx.array:
        if self._features is not None:
            found["head" if part[0] == "language" else part[0]] += 2 * self._features.size * self.weight.shape[1]
        return plain["table"](self)

    def logits(self: PixWordModel, x: mx.array) -> mx.array:
        found["head"] += 2 * x.size * (self.args.vocab_size + self.args.num_pix)
        return plain["logits"](self, x)

    def image(self: network.ImageBlock, *inputs: Any, name: str = "image") -> mx.array:
        part[0] = "image"
        found_there = plain[name](self, *inputs)
        part[0] = "language"
        return found_there

    def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any) -> mx.array:
        assert not isinstance(mask, str) or q.shape[2] == k.shape[2]
        found[part[0]] += 4 * q.size * k.shape[2] // (2 if isinstance(mask, str) else 1)
        return plain["attention"](q, k, v, scale, mask)

    def window(q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None, *rest: Any) -> mx.array:
        assert reads is not None or q.shape[1] == k.shape[1]
        found[part[0]] += 4 * q.size * k.shape[1] // (2 if reads is None else 1)
        return plain["window"](q, k, v, reads, *rest)

    def conditional(q: mx.array, own_k: mx.array, own_v: mx.array, k: mx.array, *rest: Any) -> mx.array:
        found[part[0]] += 4 * q.size * (k.shape[1] + 1)
        return plain["conditional"](q, own_k, own_v, k, *rest)

    def summary(self: Summary, x: mx.array, reads: mx.array, numbers: mx.array) -> mx.array:
        if reads.shape[1] > 1:  # shares, and their sums for each read
            outputs = self.window_proj.weight.shape[0]
            found[part[0]] += 2 * outputs * (x.size + reads.size * x.shape[1])
        return plain["summary"](self, x, reads, numbers)

    for owner, name, function in (
        (layers.Linear, "__call__", linear), (Table, "__call__", table), (PixWordModel, "logits", logits),
        (ImageBlock, "states", image), (ImageBlock, "table", partialmethod(image, name="first")),
        (layers, "attention", attention), (layers, "window_attention", window),
        (layers, "conditional_attention", conditional), (Summary, "__call__", summary),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, function)
    return found


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_model(preset: str, factored: bool) -> None:
    args = make_config({"preset": preset, "factored_colors": factored}).model
    model = PixWordModel(args)  # lazy: no weight is computed
    stored = sum(array.size for array in model.plain_weights()[0].values())
    assert (parameters(args), parameters(args, stored=True)) == (num_parameters(model), stored)


# --- operations of a forward pass -------------------------------------------------------------------------------------

GEOMETRIES = [  # size, options of the batch, changes of the model, windows at a time
    ((16, 16), {}, {}, 0),  # T > K: the table is projected
    ((16, 16), {"queries": 3}, {}, 0),
    ((4, 8), {}, {"fold_factor": 16}, 0),  # T < K
    ((4, 8), {"queries": 3}, {"fold_factor": 16}, 0),
    ((9, 13), {"queries": 3, "words": 5}, {"image_layers": 3}, 0),  # ragged
    ((7, 31), {"queries": 20, "rows": 2}, {"fold_factor": 32}, 0),  # ragged, more queries than pixels
    ((1, 1), {"queries": 2}, {}, 0),
    ((16, 16), {"rows": 3}, {"image_layers": 1, "num_kv_heads": 4}, 0),
    ((9, 13), {"queries": 1}, {"image_layers": 1, "factored_colors": True, "qk_norm": True}, 0),
    ((32, 28), {"queries": 2}, {"factored_colors": True}, 5),  # chunks, and one table for all of them
    ((32, 28), {"rows": 2}, {"image_layers": 3}, 16),
    ((9, 13), {"queries": 3}, {"positions": "grid", "image_hidden_size": 16, "factored_colors": True}, 0),
    ((9, 13), {}, {"summary": "concat", "image_hidden_size": 8, "image_num_heads": 2, "image_layers": 1}, 0),
    ((9, 13), {"queries": 2}, {"summary": "concat", "summary_rank": 6, "image_hidden_size": 16}, 5),
    ((16, 8), {"queries": 2}, {"summary": "concat", "image_layers": 0, "image_intermediate_size": 24}, 0),
    ((5, 7), {}, {"factored_colors": True, "sine_color_scale": 0.0, "image_intermediate_size": 24}, 0),
]


@pytest.mark.parametrize(("size", "options", "changes", "chunk"), GEOMETRIES)
def test_operations_are_those_of_a_forward_pass(
    small_model: Build, rng: np.random.Generator, counts: Counts, size: tuple[int, int], options: dict[str, int],
    changes: dict[str, Any], chunk: int,
) -> None:  # fmt: skip
    model = small_model(**changes)
    batch = batch_of(model.args, rng, size, **options)
    counts.clear()
    block, size_of_chunk = model.image_block, chunk or len(batch.windows)
    table = block.table(block.projects(batch.windows))  # one for all chunks
    parts = [slice(n, n + size_of_chunk) for n in range(0, len(batch.windows), size_of_chunk)]
    widths = [None if batch.widths is None else batch.widths[part] for part in parts]
    states = [block.states(table, batch.windows[p], batch.reads[p], w) for p, w in zip(parts, widths, strict=True)]
    mx.eval(model.forward(batch, mx.concatenate(states))[0])
    load = image_load(
        model.args, *size, words=options.get("words", 0), pixel_queries=options.get("queries", 0),
        rows=options.get("rows", 1), chunk=chunk,
    )  # fmt: skip
    assert (load.rows, load.elements) == batch.elements.shape
    assert (load.windows, load.reads) == batch.reads.shape  # so no window repeats
    image, language, drawn, head = forward_flops(model.args, load)
    assert dict(counts) == {"image": image, "language": language + drawn, "head": head}
    assert bool(drawn) == bool(options.get("queries"))


def test_operations_by_hand() -> None:
    args = ModelArgs(
        vocab_size=6, fold_factor=128, image_size=4, window_size=2, hidden_size=4, num_heads=2, num_kv_heads=1,
        num_layers=1, image_layers=2, intermediate_size=8, max_seq_len=7,
    )  # fmt: skip
    load = image_load(args, 4, 4)
    assert load == Load(rows=1, elements=7, windows=4)
    # First image layer, 16 pixels and 9 table rows: q 16, k and v 8 each; o 16; gate, up and down 32 each.
    first = 2 * 9 * (16 + 8 + 8) + 2 * 16 * (16 + 96) + 4 * (4 * 4 * 4 // 2) * 4
    # Second: k and v of 16 pixels; query, attention over 4 keys and the rest for 4 last pixels.
    second = 2 * 16 * 16 + 2 * 4 * (16 + 16 + 96) + 4 * (4 * 1 * 4) * 4
    language = 2 * 7 * (32 + 16 + 96) + 4 * 4 * 49 // 2
    assert forward_flops(args, load) == (first + second, language, 0, 2 * 4 * 14 * 7)


def test_a_document_must_fit_the_sequence(small_model: Build) -> None:
    args = small_model().args
    assert image_load(args, 32, 32, words=61).elements == 128
    with pytest.raises(PixWordError, match="takes 67 elements and max_seq_len 128 leaves room for 61 words, got 62"):
        image_load(args, 32, 32, words=62)


# --- operations of training -------------------------------------------------------------------------------------------


def products_of_a_step(model: PixWordModel, batch: Batch, path: Path, **options: Any) -> int:
    """Matrix products in the graph of the loss and its gradients; the model must be new, or its weights have graphs."""
    recompute_layers(model, TrainArgs(**options))
    gradient = nn.value_and_grad(model, _objective(model, TrainArgs(**options)))
    (loss, _), grads = gradient(batch.arrays(), mx.array(1.0))
    return products(path, [loss, *dict(tree_flatten(grads)).values()])


def products(path: Path, arrays: list[mx.array]) -> int:
    mx.export_to_dot(str(path), arrays)
    return len(re.findall(r'label ="(?:Matmul|AddMM)"', path.read_text()))


@pytest.fixture
def bare(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> PixWordModel:
    """All projections take as long here: windows of one pixel, square matrices. Attention is replaced: no products."""
    for name in ("attention", "window_attention"):
        monkeypatch.setattr(layers, name, lambda q, k, v, *rest: q + mx.sum(k) + mx.sum(v))
    for module in ("exponentials", "attention"):  # polynomials use products of their own
        monkeypatch.setattr(f"mlx_pixword.ops.{module}.polynomials_pay", lambda *_: False)
    changes = {"window_size": 1, "image_size": 4, "fold_factor": 16, "num_kv_heads": 4, "intermediate_size": 32}
    return small_model(**changes, image_layers=2, num_layers=3)


@pytest.mark.parametrize(
    ("recompute", "layers", "windows", "attention"),
    [  # products computed again: of the three language layers and of the image block, and its attention
        (False, 0, 0, 0),
        (True, 3 * 6, 6 + 3, 2 + 4),  # a layer but its last product; of the read-out, what follows its attention
    ],
)
def test_training_computes_what_the_graph_holds(
    bare: PixWordModel, rng: np.random.Generator, tmp_path: Path, recompute: bool, layers: int, windows: int,
    attention: int,
) -> None:  # fmt: skip
    batch = batch_of(bare.args, rng, (4, 4))
    assert (batch.windows.shape, batch.elements.shape) == ((16, 1), (1, 19))
    load = image_load(bare.args, 4, 4, recompute=recompute)
    found = products_of_a_step(bare, batch, tmp_path / "g.dot", grad_checkpoint=recompute)
    assert found == 3 * (7 * 3 + 7 * 2 + 1) + layers + windows
    again = 2 * 32 * 32 * (19 * layers + 16 * windows)
    again += 32 * 16 * attention + (3 * 2 * 32 * 19**2 if recompute else 0)
    assert training_flops(bare.args, load) == 3 * sum(forward_flops(bare.args, load)) + again


@pytest.mark.parametrize("recompute", [False, True])
def test_a_chunk_computes_again_all_but_its_last_product(
    bare: PixWordModel, rng: np.random.Generator, tmp_path: Path, recompute: bool
) -> None:
    """The graph of one chunk's gradients holds its forward pass but the last product, and two products for each."""
    batch, block = batch_of(bare.args, rng, (4, 4)), bare.image_block
    recompute_layers(bare, TrainArgs(grad_checkpoint=recompute, window_chunk=8))
    windows, reads = batch.windows[:8], batch.reads[:8]
    values, table = block.trainable_parameters(), block.table(False)
    mx.eval(table)

    def total(parameters: Any, table: mx.array) -> mx.array:
        block.update(parameters)
        return block.states(table, windows, reads).sum()

    grads = mx.grad(total, argnums=(0, 1))(values, table)
    found = products(tmp_path / "g.dot", list(dict(tree_flatten(grads)).values()))
    again = 7 + 7 - 1
    assert found == 2 * (7 + 7) + again
    chunked = training_flops(bare.args, image_load(bare.args, 4, 4, chunk=8, recompute=recompute))
    whole = 3 * sum(forward_flops(bare.args, image_load(bare.args, 4, 4)))
    language = 2 * 32 * 32 * 19 * 18 + 3 * 2 * 32 * 19**2 if recompute else 0
    assert chunked == whole + 2 * 32 * 32 * 16 * again + 32 * 16 * (2 + 4) + language


def test_muon_counts_its_own_products(small_model: Build) -> None:
    model = small_model(num_kv_heads=1)
    total = 0
    for name, weight in tree_flatten(model.parameters()):
        if name.endswith("_proj.weight"):
            events: list[dict[str, Any]] = []
            mx.export_function(events.append, lambda w: optim.Muon(0.1)._zeropower_via_newtonschulz5(w, 5), weight)
            products = [e for e in events if e.get("name") in ("Matmul", "AddMM")]
            total += sum(2 * int(np.prod(e["outputs"][0][1])) * e["inputs"][0][1][-1] for e in products)
    assert total == muon_flops(model.args)


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "changes"), [((5, 6), {}), ((4, 4), {"image_layers": 1}), ((3, 9), {"num_layers": 1})]
)
def test_operations_are_those_of_drawing(
    small_model: Build, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], changes: dict[str, int]
) -> None:
    """So few pixels that no table of the first layer pays."""
    found: Counts = Counter()
    plain_heads, plain_combine = TokenLayers.heads, TokenLayers.combine

    def heads(self: TokenLayers, x: mx.array, layer: Matrices) -> mx.array:
        found["heads"] += 2 * x.size * layer.qkv.shape[1]
        return plain_heads(self, x, layer)

    def combine(self: TokenLayers, layer: Matrices, x: mx.array, *rest: Any) -> mx.array:
        found["combine"] += 2 * x.shape[0] * (layer.out.size + layer.gate_up.size + layer.down.size)
        return plain_combine(self, layer, x, *rest)

    def counted(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def attend(self: Cache, q: mx.array, k: mx.array, v: mx.array, place: int, *rest: Any) -> mx.array:
            found["attend"] += 4 * q.size * (place + 1)
            return plain(self, q, k, v, place, *rest)

        return attend

    for name, function in (("heads", heads), ("combine", combine)):
        monkeypatch.setattr(TokenLayers, name, function)
    for cache in (Cache, SequenceCache):
        monkeypatch.setattr(cache, "attend", counted(cache.attend))
    model, document = small_model(**changes), make_document([[BOS], [7, 8, 9], [IMAGE]])
    lengths = window_order(*size, model.args.window_size)[1].tolist()
    decoder = GrowingImages(model, [document] * 2, lengths, TokenLayers(model.args))
    for _ in range(size[0] * size[1] - 1):
        decoder.put(decoder.same_for_all(0))
        found["head"] += 2 * decoder.logits.size * model.args.hidden_size
    assert sum(found.values()) == 2 * drawing_flops(model.args, *size, len(document))


# --- attention pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "window", "full", "pairs"), [(64, 4, 8.39e6, 6.55e4), (224, 16, 1.26e9, 6.44e6)])
def test_pairs_are_those_of_the_model_page(side: int, window: int, full: float, pairs: float) -> None:
    args = ModelArgs(image_size=side, window_size=window)
    assert attention_pairs(args, side, side) == pytest.approx((pairs, full), rel=5e-3)


def test_pairs_of_a_ragged_image(small_model: Build) -> None:
    args = small_model().args  # 5x6 pixels: windows of 16, 8, 4 and 2
    assert attention_pairs(args, 5, 6) == ((16**2 + 8**2 + 4**2 + 2**2 + 4**2) // 2, 30**2 // 2)
    extra = attention_pairs(args, 5, 6, pixel_queries=3)[0] - attention_pairs(args, 5, 6)[0]
    assert extra == 0 * 3 + 1 * 3 + 2 * 3 + 3 * 1


def test_chunks() -> None:
    for windows, chunk, expected in [(7, 0, 1), (7, 7, 1), (7, 9, 1), (7, 3, 3), (6, 3, 2)]:
        assert Load(1, 10, windows, chunk=chunk).chunks == expected
