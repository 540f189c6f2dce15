"""The model: exact savings, batching, packing, number types and factored colours leave its function as it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import make_config
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, NO_TARGET, Document, make_document
from mlx_pixword.model.layers import Linear, checkpoint_layers
from mlx_pixword.model.losses import boundary_sums, weighted_loss
from mlx_pixword.model.network import PixWordModel, num_parameters
from mlx_pixword.ops.rotary import rotary_table, rotate
from mlx_pixword.pixels.colors import color_features

Build = Callable[..., PixWordModel]
SIZES = [(9, 13), (4, 4), (1, 1), (16, 7)]  # ragged, one window, one pixel, ragged


def document(args: ModelArgs, rng: np.random.Generator, sizes: Sequence[tuple[int, int]], words: int = 3) -> Document:
    """A closed document of words, images of these sizes, and words; few colours, so that windows repeat."""
    pieces: list[Any] = [[BOS], list(rng.integers(6, args.vocab_size, words))]
    for height, width in sizes:
        rgb = rng.choice(np.array([10, 250], np.uint8), (height, width, 1)).repeat(3, axis=2)
        rgb[: height // 2] = 255
        pieces += [[IMAGE], tokens_of(rgb, args), [END_IMAGE], list(rng.integers(6, args.vocab_size, words))]
    return make_document(pieces, closed=True)


def batch_of(args: ModelArgs, rows: Sequence[Sequence[Document]], exact: bool = False) -> Batch:
    return collate(rows, args, exact=exact)


def loss_and_gradients(model: PixWordModel, batch: Batch, **options: bool) -> tuple[float, dict[str, np.ndarray]]:
    def loss() -> mx.array:
        sums = boundary_sums(model(batch, **options), batch.targets, model.args.vocab_size)
        return weighted_loss(sums, mx.array(float(batch.num_targets)), 2.0, 0.5)

    value, gradients = nn.value_and_grad(model, loss)()
    return value.item(), {name: np.array(g) for name, g in dict(tree_flatten(gradients)).items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    scale = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        assert np.abs(found[name] - gradient).max() <= tolerance * scale, name


# --- exact savings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("image_layers", [1, 2, 3])
@pytest.mark.parametrize("fold_factor", [64, 128])
def test_read_out_and_table_projection_are_exact(
    small_model: Build, rng: np.random.Generator, image_layers: int, fold_factor: int, qk_norm: bool
) -> None:
    model = small_model(image_layers=image_layers, fold_factor=fold_factor, qk_norm=qk_norm)
    rows = [[document(model.args, rng, SIZES)]]
    batch = batch_of(model.args, rows)
    assert batch.windows.size > model.args.num_pix  # so the table is projected
    fast, plain = model(batch), model(batch, exact_savings=False)
    assert np.abs(np.array(fast - plain)).max() < 1e-5
    (value, gradients), (expected, expected_gradients) = (
        loss_and_gradients(model, batch, exact_savings=s) for s in (True, False)
    )
    assert value == pytest.approx(expected, rel=1e-6)
    assert_same(gradients, expected_gradients)


def test_read_out_alone_is_exact_where_the_table_is_larger_than_the_image(
    small_model: Build, rng: np.random.Generator
) -> None:
    model = small_model(fold_factor=16)
    batch = batch_of(model.args, [[document(model.args, rng, [(9, 13)])]])
    assert batch.windows.size <= model.args.num_pix  # so the table is not projected
    (value, gradients), (expected, expected_gradients) = (
        loss_and_gradients(model, batch, exact_savings=s) for s in (True, False)
    )
    assert value == pytest.approx(expected, rel=1e-6)
    assert_same(gradients, expected_gradients)


def every_window_apart(batch: Batch, num_words: int) -> Batch:
    """The same batch with every window kept as often as it occurs."""
    elements = np.array(batch.elements)
    places = elements >= num_words
    which = elements[places] - num_words
    elements[places] = num_words + np.arange(len(which))
    windows, lengths = np.array(batch.windows)[which], np.array(batch.lengths)[which]
    reads = np.array(batch.reads)[which]
    return replace(
        batch,
        elements=mx.array(elements),
        windows=mx.array(windows),
        lengths=mx.array(lengths),
        reads=mx.array(reads),
    )


def test_distinct_windows_are_exact(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = batch_of(model.args, [[document(model.args, rng, SIZES)], [document(model.args, rng, [(16, 16)])]])
    apart = every_window_apart(batch, model.args.vocab_size)
    assert len(batch.lengths) < len(apart.lengths)  # something was saved
    assert np.abs(np.array(model(batch) - model(apart))).max() < 1e-5
    value, gradients = loss_and_gradients(model, batch)
    expected, expected_gradients = loss_and_gradients(model, apart)
    assert value == pytest.approx(expected, rel=1e-6)
    assert_same(gradients, expected_gradients)


def test_recomputed_layers_give_the_same_gradients(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = batch_of(model.args, [[document(model.args, rng, SIZES)]])
    expected, expected_gradients = loss_and_gradients(model, batch)
    checkpoint_layers([*model.layers, *model.image_block.layers])
    value, gradients = loss_and_gradients(model, batch)
    assert value == pytest.approx(expected, rel=1e-6)
    assert_same(gradients, expected_gradients)


# --- batches ----------------------------------------------------------------------------------------------------------


def several(args: ModelArgs, rng: np.random.Generator) -> list[Document]:
    return [document(args, rng, sizes, words) for sizes, words in (([(9, 13)], 1), ([], 7), ([(4, 4), (1, 1)], 3))]


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_gives_each_document_the_logits_it_gets_alone(
    small_model: Build, rng: np.random.Generator, exact: bool
) -> None:
    model = small_model()
    documents = several(model.args, rng)
    together = np.array(model(batch_of(model.args, [[d] for d in documents], exact)))
    for row, d in zip(together, documents, strict=True):
        alone = np.array(model(batch_of(model.args, [[d]], exact=True)))[0]
        assert np.abs(row[: len(d)] - alone).max() < 1e-5


def test_packed_documents_get_the_logits_and_gradients_they_get_alone(
    small_model: Build, rng: np.random.Generator
) -> None:
    model = small_model()
    documents = several(model.args, rng)
    packed, unpacked = batch_of(model.args, [documents]), batch_of(model.args, [[d] for d in documents])
    row, start = np.array(model(packed))[0], 0
    for d in documents:
        alone = np.array(model(batch_of(model.args, [[d]], exact=True)))[0]
        assert np.abs(row[start : (start := start + len(d))] - alone).max() < 1e-5
    value, gradients = loss_and_gradients(model, packed)
    expected, expected_gradients = loss_and_gradients(model, unpacked)
    assert value == pytest.approx(expected, rel=1e-6)
    assert_same(gradients, expected_gradients)


def test_padding_is_never_a_target_and_gets_no_gradient(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = batch_of(model.args, [[d] for d in several(model.args, rng)])
    targets = np.array(batch.targets)
    assert (targets != NO_TARGET).sum() == batch.num_targets
    assert targets.max() < model.args.vocab_size + model.args.num_pix  # the padding pixel K is never predicted
    _, gradients = loss_and_gradients(model, batch)
    assert not gradients["image_block.embed_pixels.weight"][model.args.num_pix].any()


# --- number types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_low_precision_stays_close_and_logits_are_float32(
    small_model: Build, rng: np.random.Generator, dtype: str, tolerance: float
) -> None:
    model = small_model()
    batch = batch_of(model.args, [[document(model.args, rng, SIZES)]])
    expected = np.array(model(batch))
    low = small_model(dtype=dtype)
    low.update(model.parameters())
    logits = low(batch)
    assert logits.dtype == mx.float32
    error = np.abs(np.array(logits) - expected).max() / np.abs(expected).max()
    assert 0 < error < tolerance  # above 0: the compute type was really used
    value, gradients = loss_and_gradients(low, batch)
    assert np.isfinite(value)
    assert all(p.dtype == mx.float32 for p in dict(tree_flatten(low.parameters())).values())
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_gradients_of_token_tables_do_not_saturate_in_bfloat16(small_model: Build) -> None:
    """A bfloat16 sum of ones stops at 256; the tables that tokens are gathered from are float32."""
    model = small_model(dtype="bfloat16", image_size=256, window_size=16, max_seq_len=512)
    windows = mx.zeros((160, 256), mx.int32)  # 40,960 times the same token

    def total(table: mx.array) -> mx.array:
        model.image_block.embed_pixels.weight = table
        x, _ = model.image_block._gather(model.image_block.embed_pixels(), windows)
        return x.astype(mx.float32).sum()

    gradient = mx.grad(total)(model.image_block.embed_pixels.weight)
    assert gradient[0, 0].item() == 40_960


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_query_attention_equals_repeated_key_heads(
    small_model: Build, rng: np.random.Generator, kv_heads: int
) -> None:
    grouped, full = small_model(num_kv_heads=kv_heads), small_model(num_kv_heads=4)
    weights = dict(tree_flatten(grouped.parameters()))
    for name, w in weights.items():
        if "k_proj" in name or "v_proj" in name:  # [G d, D] -> [H d, D]
            heads = w.reshape(kv_heads, 8, -1)
            weights[name] = mx.repeat(heads, 4 // kv_heads, axis=0).reshape(32, -1)
    full.load_weights(list(weights.items()))
    batch = batch_of(grouped.args, [[document(grouped.args, rng, SIZES)]])
    assert np.abs(np.array(grouped(batch) - full(batch))).max() < 1e-5


@pytest.mark.parametrize("fold_factor", [32, 64, 256])
def test_factored_colours_merge_into_plain_tables(
    small_model: Build, rng: np.random.Generator, fold_factor: int
) -> None:
    factored = small_model(factored_colors=True, fold_factor=fold_factor)
    weights, args = factored.plain_weights()
    assert not args.factored_colors
    assert not any("factors" in name for name in weights)
    plain = PixWordModel(args)
    plain.load_weights(list(weights.items()))
    batch = batch_of(args, [[document(args, rng, SIZES)]])
    assert np.abs(np.array(factored(batch) - plain(batch))).max() < 1e-6


def test_colour_features_are_smooth_and_27() -> None:
    features = color_features(32)
    assert features.shape == (512, 27)
    assert np.abs(features).max() <= 1
    neighbours = np.abs(features[1] - features[0]).max(), np.abs(features[7] - features[0]).max()
    assert neighbours[0] < neighbours[1]
    assert len(np.unique(features.round(6), axis=0)) == 512


def test_rotary_table_is_as_exact_at_the_end_as_at_the_start() -> None:
    table = rotary_table(4096, 64, 500000.0)
    x = np.random.default_rng(0).standard_normal((1, 1, 4096, 64)).astype(np.float32)
    found = np.array(rotate(mx.array(x), mx.array(table)))
    pairs = x.astype(np.float64).reshape(4096, 32, 2)
    frequency = np.arccos(np.clip(rotary_table(2, 64, 500000.0)[0, 1].astype(np.float64), -1, 1))
    last = 4095 * frequency[0]  # the fastest pair turns one radian a position
    assert frequency[0] == pytest.approx(1.0, abs=1e-6)
    expected = pairs[4095, 0] @ np.array([[np.cos(4095.0), np.sin(4095.0)], [-np.sin(4095.0), np.cos(4095.0)]])
    assert last == pytest.approx(4095, rel=1e-6)
    assert np.abs(found[0, 0, 4095, :2] - expected).max() < 1e-6


def test_loss_parts_are_weighted_as_declared() -> None:
    logits = mx.zeros((1, 4, 8))  # every target costs log 8
    targets = mx.array([[1, 7, NO_TARGET, 6]])  # V = 6: a word and two pixels
    sums = boundary_sums(logits, targets, 6)
    assert [float(s.item()) for s in sums] == pytest.approx([np.log(8), 1, 2 * np.log(8), 2, 0, 0])
    assert weighted_loss(sums, mx.array(3.0), 5.0, 0.5).item() == pytest.approx((5 + 0.5 * 2) * np.log(8) / 3)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 30}, "num_heads 4"),
        ({"num_kv_heads": 3}, "num_kv_heads 3"),
        ({"fold_factor": 3}, "power of two"),
        ({"image_size": 30}, "multiple of the window size"),
        ({"image_size": 128}, "raise max_seq_len"),
        ({"vocab_size": 5}, "6 special words"),
        ({"hidden_size": 0}, "positive"),
        ({"rope_theta": float("nan")}, "positive"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(small_model: Build, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PixWordError, match=words):
        small_model(**changes)


def test_presets_have_the_papers_sizes() -> None:
    """126.7M and 161.6M parameters, docs/model.md; nothing is computed here."""
    for preset, millions in (("upw-120m", 126.7), ("upw-170m", 161.6)):
        model = PixWordModel(make_config({"preset": preset}).model)
        assert round(num_parameters(model) / 1e6, 1) == millions


# --- layers as the ecosystem's tools see them -------------------------------------------------------------------------


def test_quantize_finds_every_projection(small_model: Build) -> None:
    model = small_model(
        hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128, num_layers=3, image_layers=2
    )
    nn.quantize(model, group_size=32, bits=8)
    found = [name for name, module in model.named_modules() if isinstance(module, nn.QuantizedLinear)]
    assert len(found) == (3 + 2) * 7 and all(name.endswith("_proj") for name in found)


def test_lora_finds_the_language_blocks_projections(small_model: Build) -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = small_model(num_layers=3, image_layers=2)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    found = [name for name, module in model.named_modules() if "lora_a" in module]
    assert len(found) == 2 * 7 and {name.split(".")[1] for name in found} == {"1", "2"}  # the last two layers


def test_a_projection_computes_in_the_type_of_its_input() -> None:
    layer = Linear(8, 4)
    assert layer.weight.dtype == mx.float32 and "bias" not in layer
    assert layer(mx.ones((2, 8), mx.bfloat16)).dtype == mx.bfloat16
