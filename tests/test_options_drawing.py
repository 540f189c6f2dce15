"""The options beside the paper's model, drawn and read step by step: on a CPU, and by the kernels, emulated."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference as ref
from brute_force import pixel_logits, reference_config, reference_weights
from metal_emulator import reports
from model_options import Build, batch_of, build, conditionals, documents, each_option, picture

from mlx_pixword.inference.draw import draw
from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inference.settings import SampleArgs
from mlx_pixword.inference.token_layers import TokenLayers
from mlx_pixword.inference.token_layers_numpy import NumpyTokenLayers
from mlx_pixword.inference.words import generate_words
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import valid_pixels

# --- drawing and reading ----------------------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
def test_pixels_that_grow_agree_with_float64(
    small_model: Build, rng: np.random.Generator, option: str, kind: type[TokenLayers]
) -> None:
    """Behind words, and behind an image and the first two windows of the one under way."""
    model, rgb = build(small_model, option), picture(rng, 5, 7)
    a, windows = model.args, ref.windows(ref.fold(rgb, 64), 4)
    image = Processor(a).image(rgb)
    expected = pixel_logits(reference_weights(model), reference_config(model), [1, 7, 4], windows, (5, 7))
    first = replace(image, windows=image.windows[:2], lengths=image.lengths[:2])
    started = make_document([[1, 7, 4], first])
    for document, done in ((make_document([[1, 7, 4]]), 0), (started, 2)):
        steps = kind(a)
        growing = GrowingImages(model, [document] * 2, image.lengths[done:].tolist(), steps, (5, 7))
        found = [np.array(growing.logits)]
        for token in np.concatenate(windows[done:])[:-1]:
            growing.put(growing.same_for_all(int(token)))
            found.append(np.array(growing.logits))
        difference = np.array(found) - expected[sum(map(len, windows[:done])) :, None]
        assert np.abs(difference).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("option", ["grid", "all"])
def test_prompts_of_different_lengths_change_no_drawing(
    small_model: Build, rng: np.random.Generator, option: str
) -> None:
    model = build(small_model, option)
    processor = Processor(model.args)
    prompts = [[picture(rng, 9, 5), [7]], [[8, 9, 10, 11]], [[6]]]
    drawn = [*draw(model, processor, prompts=prompts, size=(5, 7), temp=0)][-1].tokens
    for tokens, prompt in zip(drawn, prompts, strict=True):
        assert ([*draw(model, processor, prompt, (5, 7), temp=0)][-1].tokens == tokens).all()


@each_option
def test_words_read_with_a_cache_are_those_read_without(
    small_model: Build, rng: np.random.Generator, option: str
) -> None:
    """Rows of different lengths, one of two images, each word the likeliest one of a whole pass."""
    model = build(small_model, option)
    never, docs = [0, 1, 3, 4, 5], documents(model, rng)[:3]
    batch = collate([[d] for d in docs], model.args, exact=True)
    found = [step.words for step in generate_words(model, batch, SampleArgs(max_tokens=4, temp=0.0))]
    for n, document in enumerate(docs):
        row = []
        for _ in range(4):
            whole = Document(np.append(document.elements, np.array(row, np.int32)), document.images)
            logits = np.array(model(collate([[whole]], model.args, exact=True)))[0, -1, :12]
            logits[never] = -np.inf
            row.append(int(logits.argmax()))
        assert [words[n] for words in found] == row


# --- drawing with the kernels, emulated -------------------------------------------------------------------------------

STACKED = {  # the option, what else makes heads of 8, and the blocks that run as stacks
    "grid": ("grid", {}, 2),
    "window theta": ("window theta", {}, 2),
    "full concat": ("concat", {}, 2),
    "concat": ("concat, few dimensions", {}, 2),
    "narrow": ("narrow image block", {"image_num_heads": 2}, 2),
    "no image layers": ("no image layers", {}, 1),
    "linear colours": ("linear colours alone", {}, 2),
    "all": ("all", {}, 2),
    "all, one image layer": ("all, one image layer", {}, 2),
}


def log_softmax(logits: Any) -> np.ndarray:
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def drawn_by_kernels(model: PixWordModel, started: list[Document], images: list[ImageTokens], done: int) -> np.ndarray:
    """Log-probabilities of every pixel ``[B, T, K]`` behind the first ``done`` windows, which the prompts hold."""
    first, args = images[0], model.args
    lengths = first.lengths[done:]
    growing = GrowingImages(model, started, lengths.tolist(), TokenLayers(args), (first.height, first.width))
    assert growing._language_stack and bool(growing._image_stack) == bool(args.image_layers)
    valid = valid_pixels(lengths, args.window_size)
    rows = [log_softmax(growing.logits)]
    for tokens in np.stack([image.windows[done:][valid] for image in images], axis=1)[:-1]:
        growing.put(mx.array(tokens))
        rows.append(log_softmax(growing.logits))
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("name", STACKED)
def test_stacks_draw_the_models_conditionals(
    small_model: Build, rng: np.random.Generator, emulated: Any, name: str, request: pytest.FixtureRequest
) -> None:
    """Two images of ragged windows behind prompts of different lengths, against a whole pass of the plain model."""
    option, changes, blocks = STACKED[name]
    model = build(small_model, option, **changes)
    processor, words = Processor(model.args), ([7], [8, 9, 10])
    pictures = [picture(rng, 5, 7) for _ in words]
    whole = [processor.document([some, rgb]) for some, rgb in zip(words, pictures, strict=True)]
    expected = conditionals(model, batch_of(model, whole, 15, exact=True))
    assert not reports
    request.getfixturevalue("metal")
    found = drawn_by_kernels(
        model, [processor.document([[*some, IMAGE]]) for some in words], [*map(processor.image, pictures)], 0
    )
    assert found.shape == expected.shape == (2, 35, 64)
    assert len([report for report in reports if "decode_step" in report.kernel]) == blocks * 34
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert expected.std() > 0.1


def test_stacks_complete_an_image_behind_another(
    small_model: Build, rng: np.random.Generator, emulated: Any, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """The prompt's windows, on a grid, are read by the kernels too; and a window is longer than the small array."""
    model = build(small_model, "all")
    processor, other, rgb = Processor(model.args), picture(rng, 9, 3), picture(rng, 5, 7)
    whole = processor.document([[7], other, [9], rgb])
    expected = conditionals(model, batch_of(model, [whole], 15, exact=True))[:, 27 + 28 :]
    image = processor.image(rgb)
    first = replace(image, windows=image.windows[:2], lengths=image.lengths[:2])
    started = make_document([[BOS, 7, IMAGE], processor.image(other), [END_IMAGE, 9, IMAGE], first])
    monkeypatch.setattr("mlx_pixword.inference.growing_images.RECENTS", 3)
    request.getfixturevalue("metal")
    found = drawn_by_kernels(model, [started], [image], 2)
    assert any("attention_rope_places" in report.kernel for report in reports)
    assert found.shape == expected.shape == (1, 7, 64)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_stacks_in_bfloat16_stay_near_float32(
    small_model: Build, rng: np.random.Generator, emulated: Any, request: pytest.FixtureRequest
) -> None:
    """The type that a GPU computes in where nothing else is asked for."""
    model, half, rgb = build(small_model, "all"), build(small_model, "all", dtype="bfloat16"), picture(rng, 5, 7)
    half.update(model.parameters())
    processor = Processor(model.args)
    expected = conditionals(model, batch_of(model, [processor.document([[7], rgb])], 15, exact=True))
    request.getfixturevalue("metal")
    found = drawn_by_kernels(half, [processor.document([[7, IMAGE]])], [processor.image(rgb)], 0)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
