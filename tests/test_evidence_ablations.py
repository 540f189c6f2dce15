"""Ablations that change the inside of arm 1b's image block: where they agree with it, and what each pixel reaches."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from evidence.arms import arm_of, model_args
from evidence.batches import batch_of, document_of
from evidence.flops import step_flops
from evidence.learning import Learner
from evidence.manifest import ABLATIONS
from evidence.plan import PLANS
from mlx.utils import tree_flatten

from mlx_pixword.common.errors import PixWordError

SHAPE = PLANS["quick"].shape
WORDS = {"objective": "words", "pixel_queries": 0}


def learner(**changes: Any) -> Learner:
    made = Learner.new(arm_of("1b", {"fold": 32, **changes}), SHAPE, 0)
    mx.random.seed(1)
    weights = [(name, 0.3 * mx.random.normal(value.shape)) for name, value in tree_flatten(made.model.parameters())]
    made.model.load_weights(weights)
    return made


def logits(made: Learner, *crops: np.ndarray) -> np.ndarray:
    """Of words, ``[crops, 4, V]``: the crops' own four characters and what ends them."""
    documents = [document_of(made.arm, made.args, pixels, "12") for pixels in crops]
    batch = batch_of(made.arm, made.args, documents)
    found, _ = made.model.scored(batch)
    return np.array(found[..., : made.args.vocab_size])


def crop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def with_weights_of(other: Learner, made: Learner) -> Learner:
    """The same, with those weights of the other that both have; the head's words alone."""
    size, theirs = made.args.vocab_size, dict(tree_flatten(other.model.parameters()))
    kept = {name: theirs[name][:size] if name == "head.weight" else theirs[name]
            for name, _ in tree_flatten(made.model.parameters())}  # fmt: skip
    made.model.load_weights(list(kept.items()))
    return made


@pytest.mark.parametrize("size", [(4, 4), (6, 7), (9, 13)])
def test_seen_both_ways_with_one_layer_is_the_plain_block(rng: np.random.Generator, size: tuple[int, int]) -> None:
    plain = learner(**WORDS)
    both = with_weights_of(plain, learner(front="both"))
    pixels = crop(rng, *size)
    np.testing.assert_allclose(logits(both, pixels), logits(plain, pixels), atol=2e-4)
    deep = learner(**WORDS, image_layers=2)
    other = with_weights_of(deep, learner(front="both", image_layers=2))
    assert np.abs(logits(other, pixels) - logits(deep, pixels)).max() > 1e-2


def test_full_attention_over_one_window_is_the_plain_block(rng: np.random.Generator) -> None:
    plain = learner(**WORDS)
    whole = with_weights_of(plain, learner(front="whole"))
    for size in ((4, 4), (3, 4), (4, 2)):
        pixels = crop(rng, *size)
        np.testing.assert_allclose(logits(whole, pixels), logits(plain, pixels), atol=2e-4)
    pixels = crop(rng, 8, 12)
    assert np.abs(logits(whole, pixels) - logits(plain, pixels)).max() > 1e-2
    with pytest.raises(PixWordError, match="full attention is for one image layer, got 2"):
        learner(front="whole", image_layers=2)


def states(made: Learner, pixels: np.ndarray) -> np.ndarray:
    """Of each window in its order, ``[N, D]``."""
    document = document_of(made.arm, made.args, pixels, "12")
    batch = batch_of(made.arm, made.args, [document])
    found = np.array(made.model.window_states(batch))[:, 0]
    elements = np.array(batch.elements)[0]
    return found[elements[elements >= made.args.vocab_size] - made.args.vocab_size]


@pytest.mark.parametrize(("front", "reached"), [("rgb", [4]), ("both", [4]), ("whole", [4, 5, 6, 7, 8])])
def test_what_a_pixel_reaches(rng: np.random.Generator, front: str, reached: list[int]) -> None:
    """Of nine windows: its own alone, or with full attention all that follow."""
    made, pixels = learner(front=front), crop(rng, 11, 10)
    changed = pixels.copy()
    changed[5, 6] = 255 - changed[5, 6]
    moved = np.abs(states(made, changed) - states(made, pixels)).max(axis=1)
    assert np.flatnonzero(moved > 1e-5).tolist() == reached


@pytest.mark.parametrize("front", ["rgb", "both", "whole"])
def test_an_image_in_a_batch_of_several_gives_the_logits_that_it_gives_alone(
    rng: np.random.Generator, front: str
) -> None:
    made, crops = learner(front=front), [crop(rng, h, w) for h, w in ((9, 22), (5, 4), (12, 13))]
    together = logits(made, *crops)
    for line, pixels in zip(together, crops, strict=True):
        np.testing.assert_allclose(line, logits(made, pixels)[0], atol=5e-4)


def test_linear_colours_keep_what_folding_drops(rng: np.random.Generator) -> None:
    tokens, linear = learner(**WORDS), learner(front="rgb")
    pixels = crop(rng, 6, 6) // 32 * 32
    other = pixels + 3  # in the same bins
    assert np.array_equal(logits(tokens, pixels), logits(tokens, other))
    assert np.abs(logits(linear, pixels) - logits(linear, other)).max() > 1e-4


@pytest.mark.parametrize("name", [name for name in ABLATIONS if "words alone" in name])
def test_every_ablation_learns_and_its_operations_are_counted(rng: np.random.Generator, name: str) -> None:
    arm = arm_of("1b", ABLATIONS[name])
    made = Learner.new(arm, SHAPE, 0)
    documents = [document_of(arm, model_args(arm, SHAPE), crop(rng, 9, 14), "12") for _ in range(4)]
    batch = batch_of(arm, made.args, documents)
    losses = [made.step(batch, 1.0) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert step_flops(made, batch) > 0
