"""The options beside the paper's model: each alone and all together have every property that the plain model has."""

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference as ref
from brute_force import pixel_logits, reference_config, reference_weights
from mlx.utils import tree_flatten, tree_map
from model_options import (
    ALL,
    OPTIONS,
    Build,
    assert_same,
    batch_of,
    build,
    conditionals,
    documents,
    each_option,
    loss_and_gradients,
    picture,
)

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import collate
from mlx_pixword.model.image_block import pixel_numbers, pixel_places
from mlx_pixword.model.network import num_parameters
from mlx_pixword.training.chunked_gradient import make_chunked_gradient
from mlx_pixword.training.optimizer import is_hidden_matrix, make_optimizer
from mlx_pixword.training.step import _objective
from mlx_pixword.weights.directory import save_model

# --- the function -----------------------------------------------------------------------------------------------------


@each_option
def test_logits_agree_with_float64(small_model: Build, rng: np.random.Generator, option: str) -> None:
    model = build(small_model, option)
    parts = [[1, 7, 4], picture(rng, 5, 6), [5, 9, 4], picture(rng, 9, 3), [5, 10], picture(rng, 4, 8)]
    found = np.array(model(Processor(model.args)(parts, special_words=False)))[0]
    expected = ref.logits(reference_weights(model), reference_config(model), parts)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert expected.std() > 0.1


@each_option
def test_likelihood_agrees_with_float64(small_model: Build, rng: np.random.Generator, option: str) -> None:
    model, rgb, words = build(small_model, option), picture(rng, 5, 7), [1, 7, 9, 4]
    found = pw.log_likelihood(model, Processor(model.args)([words, rgb, [5, 8]], special_words=False)).pixels
    windows = ref.windows(ref.fold(rgb, 64), 4)
    logits = pixel_logits(reference_weights(model), reference_config(model), words, windows, (5, 7))
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = np.concatenate(windows)
    assert np.abs(found - expected[np.arange(len(chosen)), chosen]).max() < 1e-4


@each_option
@pytest.mark.parametrize("size", [(2, 3), (3, 2)], ids=["2x3", "3x2"])
def test_all_images_of_a_size_sum_to_one(small_model: Build, option: str, size: tuple[int, int]) -> None:
    """All 8^6: the first window's 4,096 contents are rows; behind each of them query pixels of the second's 64."""
    small = {"fold_factor": 128, "window_size": 2, "image_size": 8, "num_layers": 1, "hidden_size": 16, "num_heads": 2}
    narrow = {"image_hidden_size": 8, "image_num_heads": 1} if "image_hidden_size" in OPTIONS[option] else {}
    model = build(small_model, option, **small, **narrow)
    model.head.weight = 4 * model.head.weight
    windows = np.array(list(itertools.product(range(8), repeat=4)), np.int32)
    images = np.zeros((4096, *size), np.int32)
    images[:, :2, :2] = windows.reshape(-1, 2, 2)
    images.reshape(4096, -1)[:64, [2, 5] if size == (2, 3) else [4, 5]] = windows[:64, 2:]
    processor, words = Processor(model.args), model.args.vocab_size
    rows = [[processor.document([[7], pw.unfold_colors(image, 128)])] for image in images]
    batch = collate(rows, model.args, exact=True, pixel_queries=3)  # <s> 7 <|image|> first second <|/image|>
    assert batch.query_states is not None and batch.query_places is not None
    states = model.window_states(batch)
    z = states.reshape(-1, states.shape[-1])
    own, others = z[batch.query_states[:, :3]], z[batch.query_states[:64, 3]]
    z = mx.concatenate([own, mx.broadcast_to(others, (4096, *others.shape))], axis=1)  # [4096, 3 + 64, D]
    places = mx.broadcast_to(mx.array([3] * 3 + [4] * 64), z.shape[:2])
    x, z = model.condition(model.embed(batch, states[:, 0]), z, places, batch)
    scores = model.logits(mx.concatenate([x[:, 2:4], z], axis=1))[..., words:]
    scores = np.array(scores - mx.logsumexp(scores, axis=-1, keepdims=True), np.float64)  # [4096, 2 + 3 + 64, 8]
    first = np.stack([scores[:, n] for n in (0, 2, 3, 4)], axis=1)  # what each pixel of the first window is chosen from
    chosen = np.take_along_axis(first, windows[..., None], axis=2).sum((1, 2))
    fifth, sixth = windows[:64, 2], windows[:64, 3]
    every = chosen[:, None] + scores[:, 1, fifth] + scores[:, np.arange(5, 69), sixth]  # [4096, 64]
    assert np.exp(every).sum() == pytest.approx(1, abs=1e-4)
    assert every.std() > 0.3


@each_option
def test_a_pixel_changes_nothing_before_it(small_model: Build, rng: np.random.Generator, option: str) -> None:
    """In a 5x7 image; of the pixel itself its own log-probability alone changes, which is read at another token."""
    model = build(small_model, option)
    processor, image = Processor(model.args), picture(rng, 5, 7)
    order = pw_order(5, 7, 4)
    changed = []
    for pixel in order:
        other = image.copy()
        other.reshape(-1, 3)[pixel] ^= 0xC0
        changed.append(other)
    batch = batch_of(model, [processor.document([[7], rgb]) for rgb in [image, *changed]], 15, exact=True)
    found = conditionals(model, batch)
    difference = np.abs(found[1:] - found[0]).max(axis=2)  # [changed pixel, pixel]
    assert difference.shape == (35, 35)
    assert np.tril(difference).max() < 2e-6 * np.abs(found).max()  # earlier pixels, and the distribution at its own
    assert (difference[np.triu_indices(35, 1)].reshape(-1) > 1e-5).mean() > 0.9


def pw_order(height: int, width: int, side: int) -> list[int]:
    """Pixels of an image in window order, written out."""
    return [
        y * width + x
        for top, left in itertools.product(range(0, height, side), range(0, width, side))
        for y, x in itertools.product(range(top, min(top + side, height)), range(left, min(left + side, width)))
    ]


# --- exact savings, batches, gradients --------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("queries", [0, 3])
def test_savings_are_exact(small_model: Build, rng: np.random.Generator, option: str, queries: int) -> None:
    model = build(small_model, option)
    batch = batch_of(model, documents(model, rng), queries)
    assert batch.windows.size > model.args.num_pix  # so that the table is projected
    (value, gradients), (expected, expected_gradients) = (
        loss_and_gradients(model, batch, exact_savings=s) for s in (True, False)
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert_same(gradients, expected_gradients)


@each_option
def test_packed_documents_get_what_they_get_alone(small_model: Build, rng: np.random.Generator, option: str) -> None:
    model = build(small_model, option)
    docs = documents(model, rng)
    packed, apart = (batch_of(model, docs, 3, pack=pack) for pack in (True, False))
    row, start = np.array(model(packed))[0], 0
    for n, d in enumerate(docs):
        alone = np.array(model(batch_of(model, [d], 0, exact=True)))[0]
        assert np.abs(row[start : (start := start + len(d))] - alone).max() < 1e-5 * np.abs(row).max(), n
    (value, gradients), (expected, expected_gradients) = (loss_and_gradients(model, b) for b in (packed, apart))
    assert value == pytest.approx(expected, rel=1e-5)
    assert_same(gradients, expected_gradients)


@pytest.mark.parametrize("option", ["concat", "all"])
def test_gradients_averaged_over_all_draws_are_those_of_the_full_loss(
    small_model: Build, rng: np.random.Generator, option: str
) -> None:
    model = build(small_model, option, window_size=2, image_size=8)
    docs = [Processor(model.args).document([[7], picture(rng, 2, 3), [9]], closed=True)]
    _, expected = loss_and_gradients(model, batch_of(model, docs, 3))
    draws = {}
    for seed in range(100):
        batch = batch_of(model, docs, 2, seed)
        draws.setdefault(str(np.array(batch.query_targets).tolist() + np.array(batch.reads).tolist()), batch)
    assert len(draws) == 3
    results = [loss_and_gradients(model, batch)[1] for batch in draws.values()]
    assert_same({name: np.mean([r[name] for r in results], axis=0) for name in expected}, expected)


@pytest.mark.parametrize("option", ["concat", "narrow image block", "no image layers", "all"])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_of_windows_give_the_same_gradients(
    small_model: Build, rng: np.random.Generator, option: str, compiled: bool
) -> None:
    model = build(small_model, option)
    batch, normalizer = batch_of(model, documents(model, rng), 2), mx.array(50.0)
    objective = _objective(model, TrainArgs(window_chunk=3, pixel_queries=2))
    (expected, _), expected_gradients = nn.value_and_grad(model, objective)(batch.arrays(), normalizer)
    chunked = make_chunked_gradient(model, objective, 3, [mx.new_stream(mx.default_device())], compiled)
    (loss, _), gradients = chunked(batch.arrays(), normalizer)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    whole, parts = (dict(tree_flatten(g)) for g in (expected_gradients, gradients))
    assert_same({n: np.array(g) for n, g in parts.items()}, {n: np.array(g) for n, g in whole.items()})


def test_windows_of_the_same_pixels_and_other_widths_are_distinct_where_it_matters(
    small_model: Build, rng: np.random.Generator
) -> None:
    tokens = picture(rng, 1, 4)
    for option, count in (("plain", 1), ("grid", 2), ("concat", 2)):
        model = small_model(**OPTIONS[option])
        docs = [Processor(model.args).document([tokens.reshape(*size, 3)]) for size in ((2, 2), (1, 4), (1, 4))]
        batch = batch_of(model, docs, 0, exact=True)
        assert len(batch.windows) == count
        assert (batch.widths is None) == (option == "plain")
    full = batch_of(model, [Processor(model.args).document([picture(rng, 5, 8)])], 0)
    assert full.widths is None


def test_places_of_a_narrow_window() -> None:
    places, numbers = (np.array(f(mx.array([2, 3]), 3)) for f in (pixel_places, pixel_numbers))
    assert places[0, :6].tolist() == [0, 1, 3, 4, 6, 7] and places[1].tolist() == list(range(9))
    assert numbers[0].tolist() == [0, 1, 9, 2, 3, 9, 4, 5, 9] and numbers[1].tolist() == list(range(9))


# --- model directories ------------------------------------------------------------------------------------------------


@each_option
def test_a_model_directory_holds_the_same_function(
    small_model: Build, rng: np.random.Generator, option: str, tmp_path: Path
) -> None:
    """Factored colours are summed into the plain table, which the summary's matrices are applied to as before."""
    model = build(small_model, option)
    batch = batch_of(model, documents(model, rng), 2)
    save_model(model, None, tmp_path / "model")
    loaded, _ = pw.load(tmp_path / "model")
    assert (loaded.args.linear_color_scale, loaded.args.factored_colors) == (0.02, False)
    for found, expected in zip(loaded.forward(batch), model.forward(batch), strict=True):
        assert found is not None and expected is not None
        assert np.abs(np.array(found - expected)).max() < 1e-5 * np.abs(np.array(expected)).max()


# --- positions --------------------------------------------------------------------------------------------------------


def test_text_alone_has_the_same_positions_with_a_grid(small_model: Build) -> None:
    grid, plain = small_model(positions="grid"), small_model()
    plain.update(grid.parameters())
    batches = [Processor(m.args)([[7, 8, 9, 10, 11, 6, 7]]) for m in (grid, plain)]
    assert np.array(batches[0].positions).tolist() == [[[n, n] for n in range(8)]]
    assert mx.array_equal(grid(batches[0]), plain(batches[1]))


def test_grid_positions_by_hand(small_model: Build, rng: np.random.Generator) -> None:
    """Two images of 2x3 and 3x1 windows of 4 px; a word counts on behind the longer side."""
    document = Processor(small_model().args).document([[7], picture(rng, 8, 9), [8], picture(rng, 10, 4), [9]])
    positions, following = document.positions(True)
    words = [(0, 0), (1, 1), (2, 2)]  # <s> 7 <|image|>
    first = [(3 + r, 3 + c) for r in range(2) for c in range(3)]
    between = [(6, 6), (7, 7), (8, 8)]  # <|/image|> 8 <|image|>
    second = [(9, 9), (10, 9), (11, 9)]
    assert list(map(tuple, positions.tolist())) == [*words, *first, *between, *second, (12, 12), (13, 13)]
    assert following == 14
    assert document.positions(False)[0].tolist() == list(range(len(document)))


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_image_blocks_matrices_have_a_step_of_their_own(small_model: Build) -> None:
    model = small_model(**ALL)
    names = [name for name, _ in tree_flatten(model.parameters())]
    hidden = [name for name in names if is_hidden_matrix(name)]
    assert len(hidden) == 4 * 7 + 1 and "image_block.state_proj.weight" in hidden
    assert not any("summary" in name or "embed" in name for name in hidden)
    before = dict(tree_flatten(model.parameters()))
    steps = []
    for scale in (1.0, 0.25):
        model.update(tree_map(lambda p: p, model.parameters()))
        model.load_weights(list(before.items()))
        args = TrainArgs(optimizer="muon", weight_decay=0.0, image_lr_scale=scale, warmup=0)
        optimizer = make_optimizer(args)
        optimizer.update(model, tree_map(mx.ones_like, model.parameters()))
        after = dict(tree_flatten(model.parameters()))
        steps.append({name: np.abs(np.array(after[name] - before[name])).max() for name in names})
    for name in names:
        expected = 0.25 if name in hidden and name.startswith("image_block.") else 1.0
        assert steps[1][name] == pytest.approx(expected * steps[0][name], rel=1e-3), name


def test_linear_colours_start_larger(small_model: Build) -> None:
    factors = np.array(small_model(factored_colors=True, linear_color_scale=0.5).image_block.embed_pixels.factors)
    linear = np.isin(np.arange(27), (0, 9, 18))
    assert factors.shape == (27, 32)
    assert factors[linear].std() == pytest.approx(0.5, rel=0.3) and factors[~linear].std() == pytest.approx(
        0.02, rel=0.1
    )
    alone = small_model(**OPTIONS["linear colours alone"])
    assert alone.image_block.embed_pixels.factors.shape == (3, 32) and alone.head.factors.shape == (27, 32)


@each_option
def test_parameters_are_counted(small_model: Build, option: str) -> None:
    from mlx_pixword.model.args import parameters

    model = small_model(**OPTIONS[option])
    assert parameters(model.args) == num_parameters(model)
    weights, args = model.plain_weights()
    assert parameters(model.args, stored=True) == parameters(args) == sum(w.size for w in weights.values())


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "rows"}, "positions must be sequence, grid"),
        ({"summary": "first"}, "summary must be last, concat"),
        ({"summary_rank": 4}, "needs summary concat"),
        ({"image_hidden_size": 34}, "image_num_heads 4 must divide"),
        ({"image_num_kv_heads": 3}, "image_num_kv_heads 3"),
        ({"image_hidden_size": -1}, "0 or positive"),
        ({"positions": "grid", "image_hidden_size": 12, "image_num_heads": 2}, "multiple of 4"),
        ({"linear_color_scale": 0.0}, "linear_color_scale must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PixWordError, match=words):
        ModelArgs(hidden_size=32, num_heads=4, num_kv_heads=2, **changes)
