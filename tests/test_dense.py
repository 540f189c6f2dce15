"""The dense objective: its estimator, its likelihood against float64, and that all images of a size sum to 1."""

import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference as ref
from brute_force import pixel_logits, reference_weights
from mlx.utils import tree_flatten, tree_map

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data.loader import Encoder, Loader
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.inference import likelihood
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.batch import Batch, choose_offsets, collate
from mlx_pixword.model.document import IMAGE, NO_TARGET, Document
from mlx_pixword.model.losses import loss_sums, weighted_loss
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.conditional_attention import conditional_attention

Build = Callable[..., PixWordModel]


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch_of(model: PixWordModel, documents: list[Document], queries: int, seed: int = 0, pack: bool = False) -> Batch:
    a, rows = model.args, [documents] if pack else [[d] for d in documents]
    return collate(rows, a, pixel_queries=queries, seed=(seed,))


def documents(model: PixWordModel, rng: np.random.Generator) -> list[Document]:
    processor = Processor(model.args)
    shapes = [(5, 6), (2, 2), (1, 1)]
    return [processor.document([[7, 8], picture(rng, *s), [9]], closed=True) for s in shapes]


def loss_and_gradients(model: PixWordModel, batch: Batch) -> tuple[mx.array, Any]:
    def loss() -> mx.array:
        sums = loss_sums(*model.forward(batch), batch, model.args.vocab_size)
        return weighted_loss(sums, mx.array(float(batch.num_targets)), 1.0, 1.0, 1.0)

    return nn.value_and_grad(model, loss)()


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 15, 40])
def test_draws_are_distinct_ascending_and_followed_by_a_pixel(count: int, rng: np.random.Generator) -> None:
    lengths = np.array([16, 16, 1, 2, 5, 16])
    drawn = choose_offsets(lengths, count, rng)
    assert drawn.shape == (6, count)
    for row, length in zip(drawn, lengths, strict=True):
        valid = row[row >= 0]
        assert len(valid) == min(count, length - 1)
        assert (np.diff(valid) > 0).all()
        assert (valid < length - 1).all()
        assert (row[len(valid) :] == -1).all()


def test_draws_are_uniform(rng: np.random.Generator) -> None:
    drawn = choose_offsets(np.full(20_000, 9), 3, rng)
    shares = np.bincount(drawn.ravel(), minlength=8) / len(drawn)
    assert shares == pytest.approx(np.full(8, 3 / 8), abs=0.015)


def test_draws_depend_on_seed_and_document_alone(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    docs = documents(model, rng)
    again = [np.array(batch_of(model, docs, 3, seed).query_targets) for seed in (1, 1, 2)]
    assert (again[0] == again[1]).all()
    assert (again[0] != again[2]).any()


# --- estimator --------------------------------------------------------------------------------------------------------


def test_gradients_averaged_over_all_draws_are_those_of_the_full_loss(
    small_model: Build, rng: np.random.Generator
) -> None:
    """Every pair of offsets of a ragged 2x3 image in 2x2 windows (P_n = 4 and 2), each draw equally likely."""
    model = small_model(window_size=2, image_size=8)
    docs = [Processor(model.args).document([[7], picture(rng, 2, 3), [9]], closed=True)]
    full = batch_of(model, docs, 3)
    expected_loss, expected = loss_and_gradients(model, full)
    draws: dict[tuple[int, ...], Batch] = {}
    for seed in range(200):
        batch = batch_of(model, docs, 2, seed)
        draws.setdefault(
            tuple(np.array(batch.query_targets)[0].tolist() + np.array(batch.reads).ravel().tolist()), batch
        )
    assert len(draws) == 3  # pairs out of three offsets; the window of two pixels has one choice
    results = [loss_and_gradients(model, batch) for batch in draws.values()]
    assert np.mean([loss.item() for loss, _ in results]) == pytest.approx(expected_loss.item(), rel=1e-5)
    mean = tree_map(lambda *grads: sum(grads) / len(grads), *(gradients for _, gradients in results))
    for (name, found), (_, gradient) in zip(tree_flatten(mean), tree_flatten(expected), strict=True):
        assert np.abs(np.array(found - gradient)).max() < 1e-6, name


@pytest.mark.parametrize("queries", [2, 15])
def test_packed_query_pixels_get_the_logits_they_get_alone(
    small_model: Build, rng: np.random.Generator, queries: int
) -> None:
    model = small_model()
    docs = documents(model, rng)
    packed, apart = (batch_of(model, docs, queries, pack=pack) for pack in (True, False))
    losses = [loss_and_gradients(model, batch) for batch in (packed, apart)]
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-6)
    for (name, a), (_, b) in zip(*(tree_flatten(gradients) for _, gradients in losses), strict=True):
        assert np.abs(np.array(a - b)).max() < 1e-5, name


@pytest.mark.parametrize("image_layers", [1, 2, 3])
def test_savings_are_exact_for_query_pixels(small_model: Build, rng: np.random.Generator, image_layers: int) -> None:
    model = small_model(image_layers=image_layers)
    batch = batch_of(model, documents(model, rng), 4)
    fast, plain = (model.forward(batch, exact_savings=s) for s in (True, False))
    for a, b in zip(fast, plain, strict=True):
        assert np.abs(np.array(a - b)).max() < 1e-5  # type: ignore[operator]


def test_without_query_pixels_the_objective_is_the_papers(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = batch_of(model, documents(model, rng), 0)
    logits, queries = model.forward(batch)
    assert queries is None
    assert mx.array_equal(logits, model(batch))
    assert batch.num_targets == (np.array(batch.targets) != NO_TARGET).sum()
    dense = batch_of(model, documents(model, rng), 3)
    pixels = sum(d.num_pixels for row in dense.documents for d in row)
    words = ((np.array(dense.targets) >= 0) & (np.array(dense.targets) < model.args.vocab_size)).sum()
    assert dense.num_targets == words + pixels  # Z = words + T


def test_conditional_attention_against_one_query_at_a_time(rng: np.random.Generator) -> None:
    q = rng.standard_normal((2, 5, 4, 8))
    own_k, own_v = rng.standard_normal((2, 2, 5, 2, 8))
    k, v = rng.standard_normal((2, 2, 6, 2, 8))
    spans = np.sort(rng.integers(0, 7, (2, 5, 2)), axis=-1).astype(np.int32)
    arrays = [mx.array(a.astype(np.float32)) for a in (q, own_k, own_v, k, v)]
    found = np.array(conditional_attention(*arrays, mx.array(spans)))
    for b, i, h in itertools.product(range(2), range(5), range(4)):
        seen = slice(*spans[b, i])
        keys = np.vstack([k[b, seen, h // 2], own_k[b, i, h // 2]])
        values = np.vstack([v[b, seen, h // 2], own_v[b, i, h // 2]])
        weights = np.exp(8**-0.5 * keys @ q[b, i, h])
        assert found[b, i, h] == pytest.approx(weights @ values / weights.sum(), abs=1e-5)


# --- likelihood -------------------------------------------------------------------------------------------------------


def brute_force(weights: ref.Weights, cfg: ref.Config, words: list[int], windows: list[np.ndarray]) -> np.ndarray:
    """Natural-log probability of each pixel in float64."""
    logits = pixel_logits(weights, cfg, words, windows)  # [T, K]
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    scores: np.ndarray = logits[np.arange(len(logits)), np.concatenate(windows)] - total
    return scores


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 4), (1, 1), (2, 9)])
def test_pixels_agree_with_float64(
    small_model: Build, rng: np.random.Generator, height: int, width: int, qk_norm: bool
) -> None:
    model = small_model(qk_norm=qk_norm)
    model.head.weight = 10 * model.head.weight
    rgb = picture(rng, height, width)
    cfg = ref.Config(heads=4, kv_heads=2, window_size=4, fold_factor=64, qk_norm=qk_norm)
    words = [1, 7, 9, 4]
    batch = Processor(model.args)([words, rgb, [5, 8]], special_words=False)
    found = pw.log_likelihood(model, batch)
    expected = brute_force(reference_weights(model), cfg, words, ref.windows(ref.fold(rgb, 64), 4))
    assert np.abs(found.pixels - expected).max() < 1e-4
    assert len(found.words) == 3 + 1  # 7, 9 and <|image|> after <s>, then 8; <|/image|> is forced


def test_all_images_of_two_by_two_pixels_sum_to_one(small_model: Build) -> None:
    model = small_model(fold_factor=128, window_size=2, image_size=8)
    model.head.weight = 20 * model.head.weight  # far from uniform
    images = np.array(list(itertools.product(range(8), repeat=4)), np.int32)  # all 4,096
    processor = Processor(model.args)
    rgb = pw.unfold_colors(images, 128).reshape(-1, 2, 2, 3)
    total, some = 0.0, []
    for start in range(0, 4096, 512):
        batch = processor.batch([[[7], image] for image in rgb[start : start + 512]])
        scores = pw.log_likelihood(model, batch).pixels.reshape(-1, 4).sum(1, dtype=np.float64)
        total += float(np.exp(scores).sum())
        some.append(scores)
    assert total == pytest.approx(1, abs=1e-4)
    assert np.concatenate(some).std() > 0.3


def test_many_pixels_are_scored_in_pieces(
    small_model: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    batch = Processor(model.args)([[7], picture(rng, 11, 13), [8], picture(rng, 4, 3)])
    whole = pw.log_likelihood(model, batch)
    monkeypatch.setattr(likelihood, "QUERIES", 10)
    pieces = pw.log_likelihood(model, batch)
    assert np.abs(whole.pixels - pieces.pixels).max() < 1e-5
    assert len(whole.pixels) == 11 * 13 + 12


def test_several_documents_follow_each_other(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor = Processor(model.args)
    parts = [[[7], picture(rng, 5, 6)], [[8, 9, 10]], [picture(rng, 2, 3), [6]]]
    together = pw.log_likelihood(model, processor.batch(parts))
    alone = [pw.log_likelihood(model, processor(p)) for p in parts]
    assert together.pixels == pytest.approx(np.concatenate([a.pixels for a in alone]), abs=1e-5)
    assert together.words == pytest.approx(np.concatenate([a.words for a in alone]), abs=1e-5)
    assert together.bits_per_dimension() == pytest.approx(-together.pixels.mean() / (3 * np.log(2)), rel=1e-6)


def test_an_image_at_the_very_beginning_is_refused(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    batch = Processor(model.args)([picture(rng, 3, 3)], special_words=False)
    with pytest.raises(PixWordError, match="very beginning"):
        pw.log_likelihood(model, batch)


def test_captions_come_first_as_often_as_asked(small_model: Build) -> None:
    args = small_model(fold_factor=64, vocab_size=300).args
    encoder = Encoder(args, train_tokenizer(["0123456789"], 300), SkipLog())
    shares = []
    for fraction in (0.0, 0.3, 1.0):
        loader = Loader([PlateSource()], encoder, caption_first=fraction)
        first = [loader.read(n)[0].elements[1] != IMAGE for n in range(200)]
        assert first == [loader.read(n)[0].elements[1] != IMAGE for n in range(200)]
        shares.append(np.mean(first))
    assert shares == pytest.approx([0.0, 0.3, 1.0], abs=0.12)
    assert shares[0] == 0 and shares[2] == 1
