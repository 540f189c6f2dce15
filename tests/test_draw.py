"""Drawing: caches, batches and forced pixels change nothing, and sizes that do not fit are refused."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_pixword as pw
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inference import draw as draw_module
from mlx_pixword.inference import pixel_sampler
from mlx_pixword.inference.draw import DRAW, UNDRAWN, draw, generate_image, generate_images
from mlx_pixword.inference.growing_images import GrowingImages
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import BOS, IMAGE, Document, ImageTokens
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import window_order

Build = Callable[..., PixWordModel]


@pytest.fixture
def sharp(small_model: Build) -> PixWordModel:
    """A model whose pixels depend clearly on what came before."""
    model = small_model()
    model.head.weight = 20 * model.head.weight
    return model


def without_caches(
    model: PixWordModel, words: list[int], size: tuple[int, int], seed: int, temp: float, forced: dict[int, int]
) -> np.ndarray:
    """Draw with a whole forward pass a pixel: finished windows, and the open one cut short as the last element.

    ``forced`` has tokens of pixels that are not drawn, by their number.
    """
    args, (height, width) = model.args, size
    lengths = window_order(height, width, args.window_size)[1]
    windows = np.full((len(lengths), args.window_size**2), args.num_pix, np.int32)
    keys, number = mx.random.split(mx.random.key(seed), height * width), 0
    for n, length in enumerate(lengths):
        for j in range(length):
            shown, counts = windows[: n + (j > 0)], np.append(lengths[:n], [j] if j else []).astype(np.int32)
            image = ImageTokens(shown, counts, height, width)
            document = Document(np.array([*words, *[-1] * len(shown)], np.int32), (image,) if len(shown) else ())
            batch = collate([[document]], args, exact=True)
            logits = model(batch)[0, -1, args.vocab_size :]
            noise = mx.random.gumbel((args.num_pix,), key=keys[number]) if temp else 0
            drawn = mx.argmax((logits - mx.logsumexp(logits)) / (temp or 1) + noise).item()
            windows[n, j] = forced.get(number, drawn)
            number += 1
    return windows


def tokens(model: PixWordModel, *arguments: Any, **options: Any) -> np.ndarray:
    *_, drawing = draw(model, Processor(model.args), *arguments, **options)
    return drawing.tokens


@pytest.mark.parametrize("temp", [0.0, 1.0])
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (8, 4), (3, 9)])
def test_caches_change_nothing(sharp: PixWordModel, size: tuple[int, int], temp: float) -> None:
    found = tokens(sharp, [[7, 9]], size, temp=temp, seed=3)[0]
    expected = without_caches(sharp, [BOS, 7, 9, IMAGE], size, 3, temp, {})
    lengths = window_order(*size, 4)[1]
    for n, length in enumerate(lengths):
        assert found[n, :length].tolist() == expected[n, :length].tolist()


def test_the_number_of_images_changes_none_of_them(sharp: PixWordModel) -> None:
    together = tokens(sharp, "", (6, 7), 3, seed=5)
    alone = [tokens(sharp, "", (6, 7), 1, seed=5 + n)[0] for n in range(3)]
    assert (together == np.array(alone)).all()
    assert (together[0] != together[1]).any()


def test_a_window_is_yielded_when_it_is_finished(sharp: PixWordModel) -> None:
    processor = Processor(sharp.args)
    drawings = list(draw(sharp, processor, "", (5, 6), 2))
    assert [d.pixels for d in drawings] == [16, 24, 28, 30]  # windows of 16, 8, 4 and 2 pixels
    first = np.array(drawings[0].pictures(processor)[0])
    assert (first[4:] == UNDRAWN).all()
    assert (first[:4, 4:] == UNDRAWN).all()
    last = drawings[-1].images(processor)[1]
    assert np.array(processor.picture(last)).tolist() == np.array(drawings[-1].pictures(processor)[1]).tolist()


def test_kept_rows_are_forced_at_their_turn(sharp: PixWordModel, rng: np.random.Generator) -> None:
    """Rows 0..5 of a 12x6 image are kept: the cut lies inside the second row of windows."""
    image = Processor(sharp.args).image(rng.integers(0, 256, (12, 6, 3), dtype=np.uint8))
    found = tokens(sharp, "", (12, 6), keep=image, keep_rows=6, seed=1)[0]
    order, lengths = window_order(12, 6, 4)
    valid = np.arange(16) < lengths[:, None]
    kept = order // 6 < 6
    assert (found[valid][kept] == image.windows[valid][kept]).all()
    again = tokens(sharp, "", (12, 6), keep=image, keep_rows=0, seed=1)[0]
    assert (found[valid][~kept] != again[valid][~kept]).any()  # what is kept is seen
    whole = tokens(sharp, "", (12, 6), keep=image, keep_rows=12)[0]
    assert (whole[valid] == image.windows[valid]).all()
    forced = dict(enumerate(image.windows[valid].tolist()))
    expected = without_caches(sharp, [BOS, IMAGE], (12, 6), 1, 1.0, {n: t for n, t in forced.items() if kept[n]})
    assert (
        found[valid] == expected[valid]
    ).all()  # windows 0 and 1 are read with the prompt, 2 and 3 put pixel by pixel


def test_windows_that_are_kept_as_a_whole_are_not_put(
    sharp: PixWordModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, put, puts = (
        Processor(sharp.args).image(rng.integers(0, 256, (12, 4, 3), dtype=np.uint8)),
        GrowingImages.put,
        [],
    )
    monkeypatch.setattr(GrowingImages, "put", lambda self, pixel: (puts.append(pixel), put(self, pixel)))
    for rows, expected in ((0, 47), (3, 47), (6, 31), (8, 15), (12, 0)):
        puts.clear()
        steps = list(draw(sharp, Processor(sharp.args), "", (12, 4), keep=image, keep_rows=rows))
        assert (len(puts), steps[-1].pixels) == (expected, 48)


def test_several_prompts_draw_what_each_draws_alone(sharp: PixWordModel, rng: np.random.Generator) -> None:
    prompts: list[Any] = [[[7, 9, 8]], "", [[5], rng.integers(0, 256, (5, 6, 3), np.uint8), [10]], [[7, 9, 8]]]
    together = tokens(sharp, "", (6, 7), prompts=prompts, seed=5)
    alone = [tokens(sharp, prompt, (6, 7), seed=5 + n)[0] for n, prompt in enumerate(prompts)]
    assert (together == np.array(alone)).all()
    twice = tokens(sharp, "", (6, 7), 2, prompts=prompts[:2], seed=5)  # prompt by prompt
    alone = [tokens(sharp, prompts[n // 2], (6, 7), seed=5 + n)[0] for n in range(4)]
    assert (twice == np.array(alone)).all()
    images = generate_images(sharp, Processor(sharp.args), prompts=prompts[:2], size=(6, 7), seed=5)
    assert (
        np.array(images[1]).tolist()
        == np.array(generate_image(sharp, Processor(sharp.args), "", (6, 7), seed=6)).tolist()
    )


def test_an_image_is_completed_after_several_prompts(sharp: PixWordModel, rng: np.random.Generator) -> None:
    image = Processor(sharp.args).image(rng.integers(0, 256, (9, 6, 3), dtype=np.uint8))
    prompts = [[[7, 9]], [[8]]]
    together = tokens(sharp, "", (9, 6), prompts=prompts, keep=image, keep_rows=5, seed=2)
    alone = [tokens(sharp, p, (9, 6), keep=image, keep_rows=5, seed=2 + n)[0] for n, p in enumerate(prompts)]
    assert (together == np.array(alone)).all()


@pytest.mark.parametrize(("prompt", "prompts"), [("", []), ([[7]], [[[8]]]), ("", "red")])
def test_prompts_are_a_list_in_place_of_one(sharp: PixWordModel, prompt: Any, prompts: Any) -> None:
    with pytest.raises(PixWordError, match="one prompt, or a list"):
        tokens(sharp, prompt, (4, 4), prompts=prompts)


@pytest.mark.parametrize("most", [1, 100, 10_000])
def test_noise_made_ahead_is_that_of_each_pixel(
    sharp: PixWordModel, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    expected = tokens(sharp, "", (5, 9), 2, seed=3)
    monkeypatch.setattr(pixel_sampler, "NOISE", most)
    assert (tokens(sharp, "", (5, 9), 2, seed=3) == expected).all()


def test_greedy_drawing_takes_the_likeliest_pixel(sharp: PixWordModel) -> None:
    greedy = tokens(sharp, "", (4, 4), temp=0.0)
    assert (tokens(sharp, "", (4, 4), temp=1.0, top_k=1) == greedy).all()
    assert (tokens(sharp, "", (4, 4), temp=1.0, top_p=1e-6) == greedy).all()
    assert (tokens(sharp, "", (4, 4), temp=1.0, min_p=1.0) == greedy).all()


def test_samples_follow_the_models_probabilities(sharp: PixWordModel) -> None:
    """The first pixel of many images against its exact distribution."""
    drawn = tokens(sharp, "", (1, 1), 2000, seed=11)[:, 0, 0]
    processor = Processor(sharp.args)
    logits = np.array(sharp(processor([[IMAGE]])))[0, -1, sharp.args.vocab_size :]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    shares = np.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert np.abs(shares - expected).max() < 5 * np.sqrt(expected.max() / len(drawn))


def test_pictures_then_words(sharp: PixWordModel) -> None:
    processor = Processor(sharp.args)
    images = generate_images(sharp, processor, [[7]], (5, 6), 2, seed=2)
    assert [image.size for image in images] == [(6, 5), (6, 5)]
    image = generate_image(sharp, processor, [[7]], (5, 6), seed=3)
    assert np.array(image).tolist() == np.array(images[1]).tolist()
    assert isinstance(pw.generate_text(sharp, processor, [[7], image, [8]], max_tokens=3), str)


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4, 2.5), (True, 4), (400, 400)])
def test_sizes_that_do_not_fit_are_refused(sharp: PixWordModel, size: Any) -> None:
    with pytest.raises(PixWordError, match=r"positive integers|draw a smaller image"):
        tokens(sharp, "", size)


def test_a_prompt_takes_room(small_model: Build) -> None:
    model = small_model(max_seq_len=68)
    assert tokens(model, "", (32, 32), temp=0.0).shape == (1, 64, 16)  # 64 windows, <s> and two marks
    with pytest.raises(PixWordError, match="draw a smaller image"):
        tokens(model, [[7, 8]], (32, 32))


def test_probabilities_that_are_not_finite_are_refused(sharp: PixWordModel) -> None:
    sharp.head.weight = sharp.head.weight * float("nan")
    with pytest.raises(PixWordError, match="not finite"):
        tokens(sharp, "", (2, 2))


def test_an_image_of_another_size_cannot_be_completed(sharp: PixWordModel, rng: np.random.Generator) -> None:
    image = Processor(sharp.args).image(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    with pytest.raises(PixWordError, match="image to complete is 3x3"):
        tokens(sharp, "", (4, 4), keep=image, keep_rows=2)
    assert DRAW not in tokens(sharp, "", (3, 3), keep=image, keep_rows=3)[0, 0, :9]


def test_the_device_is_never_left_without_work(small_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of pixels is handed over before the one before it is waited for, and windows come one block behind."""
    model, order = small_model(dtype="bfloat16"), []
    started, waited = mx.async_eval, mx.eval
    monkeypatch.setattr(draw_module.mx, "async_eval", lambda *arrays: order.append("start") or started(*arrays))
    monkeypatch.setattr(draw_module.mx, "eval", lambda *arrays: order.append("wait") or waited(*arrays))
    monkeypatch.setattr(draw_module, "AHEAD", 4)
    for state in draw(model, Processor(model.args), size=(8, 12), temp=0):
        order.append(state.pixels)
    order = order[order.index("start") :]  # prompts are waited for before
    assert order.count("start") == 24 and order[-1] == 96
    under_way = [order[:n].count("start") - order[:n].count("wait") for n in range(1, len(order) + 1)]
    assert set(under_way) == {1, 2}
    shown = [n for n in order if isinstance(n, int)]
    assert shown == [16, 32, 48, 64, 80, 96]
    for n in shown[:-1]:
        assert order[: order.index(n)].count("start") > n // 4  # the next block is under way
