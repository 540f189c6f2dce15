"""The processor: where words, windows and marks go, what counts as an image, and mistakes in one line."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from shots import SIZES

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.processor import Processor, tokens_of
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.document import BOS, END_IMAGE, EOS, IMAGE, NO_TARGET, WINDOW, Document
from mlx_pixword.pixels.colors import fold_colors, unfold_colors
from mlx_pixword.pixels.images import fit_rgb
from mlx_pixword.pixels.windows import from_windows, num_windows

TOKENIZER = train_tokenizer(["seven red plates", "two plates"], 300)
GEOMETRY = {"image_size": 24, "window_size": 4, "fold_factor": 16, "max_seq_len": 48}


def shape(**changes: Any) -> ModelArgs:
    return ModelArgs(**SIZES | GEOMETRY | {"vocab_size": TOKENIZER.vocab_size} | changes)


PROCESSOR = Processor(shape(), TOKENIZER)
WORDLESS = Processor(shape(vocab_size=6))


def rgb(height: int, width: int) -> np.ndarray:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refused(message: str, parts: Any, processor: Processor = PROCESSOR, **options: Any) -> None:
    with pytest.raises(PixWordError, match=message) as caught:
        processor(parts, **options)
    assert "\n" not in str(caught.value)


def elements(parts: Sequence[Any], **options: Any) -> list[int]:
    return PROCESSOR.document(parts, **options).elements.tolist()


def windows(height: int, width: int) -> list[int]:
    return [WINDOW] * num_windows(height, width, 4)


# --- layout -----------------------------------------------------------------------------------------------------------


def test_special_words_are_put_in() -> None:
    words = TOKENIZER.encode("two plates")
    assert elements([rgb(6, 9), "two plates", rgb(4, 4), [7, 8]]) == [
        BOS, IMAGE, *windows(6, 9), END_IMAGE, *words, IMAGE, *windows(4, 4), END_IMAGE, 7, 8,
    ]  # fmt: skip


def test_without_special_words_nothing_is_put_in() -> None:
    given = [[1, 7, 4], rgb(6, 9), [5, 9]]
    assert elements(given, special_words=False) == [1, 7, 4, *windows(6, 9), 5, 9]
    assert elements(["two"], special_words=False) == TOKENIZER.encode("two")


def test_marks_given_by_hand_make_the_same_document() -> None:
    by_hand = PROCESSOR.document([[BOS, 7, IMAGE], rgb(5, 5), [END_IMAGE, 9]], special_words=False)
    put_in = PROCESSOR.document([[7], rgb(5, 5), [9]])
    np.testing.assert_array_equal(by_hand.elements, put_in.elements)
    np.testing.assert_array_equal(by_hand.images[0].windows, put_in.images[0].windows)


def test_a_text_with_a_mark_in_it_stays_words() -> None:
    assert not set(elements(["<|image|>a.png<|/image|>"])[1:]) & set(range(6))


def test_closed_makes_the_end_a_target() -> None:
    for closed, last in ((True, EOS), (False, NO_TARGET)):
        document = PROCESSOR.document(["two"], closed=closed)
        assert document.closed is closed and document.targets(PROCESSOR.args.vocab_size)[-1] == last
        assert EOS not in document.elements


@pytest.mark.parametrize(
    "ids", [[7, 8], (7, 8), range(7, 9), np.array([7, 8]), np.array([7, 8], np.int16), mx.array([7, 8])]
)
def test_word_ids_come_in_any_sequence(ids: Any) -> None:
    assert elements([ids]) == [BOS, 7, 8]


def test_all_ids_below_v_are_words() -> None:
    last = PROCESSOR.args.vocab_size - 1
    assert elements([[0, last]]) == [BOS, 0, last]


def test_empty_texts_and_lists_add_nothing() -> None:
    assert elements(["", [], "two"]) == [BOS, *TOKENIZER.encode("two")]


def test_documents_of_a_batch_are_rows() -> None:
    batch = PROCESSOR.batch([["two"], [rgb(5, 5), "seven red plates"], [[7]]])
    alone = [PROCESSOR(parts) for parts in (["two"], [rgb(5, 5), "seven red plates"], [[7]])]
    assert batch.elements.shape == (3, max(one.elements.shape[1] for one in alone))
    assert batch.segments is None
    for row, one in enumerate(alone):
        length = one.elements.shape[1]
        np.testing.assert_array_equal(np.array(batch.targets)[row, :length], np.array(one.targets)[0])


# --- images -----------------------------------------------------------------------------------------------------------


def folded(document: Document) -> np.ndarray:
    """Pix tokens of a document's first image, ``[h, w]``."""
    image = document.images[0]
    return from_windows(image.windows, image.height, image.width, 4)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "HSV", "YCbCr", "I;16", "I", "F"])
def test_pil_images_of_any_mode(mode: str) -> None:
    source = Image.fromarray(rgb(6, 9))
    image = Image.fromarray(rgb(6, 9)[..., 0].astype(np.uint16) << 8) if mode == "I;16" else source.convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(folded(PROCESSOR.document([image])), fold_colors(fit_rgb(image, 24), 16))


def test_transparent_pixels_are_white() -> None:
    assert set(folded(PROCESSOR.document([Image.new("RGBA", (4, 4))])).ravel().tolist()) == {4095}


def test_arrays_are_images() -> None:
    array = rgb(6, 9)
    np.testing.assert_array_equal(folded(PROCESSOR.document([array])), fold_colors(array, 16))
    np.testing.assert_array_equal(folded(PROCESSOR.document([array[::-1, ::2]])), fold_colors(array[::-1, ::2], 16))


@pytest.mark.parametrize("size", [(6, 9), (24, 24), (1, 1), (5, 30), (40, 7)])
def test_arrays_of_mlx_are_images_too(size: tuple[int, int]) -> None:
    """The larger ones are scaled on the host, the others folded on the device."""
    found, expected = PROCESSOR.image(mx.array(rgb(*size))), PROCESSOR.image(rgb(*size))
    np.testing.assert_array_equal(found.windows, expected.windows)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert (found.height, found.width) == (expected.height, expected.width)
    document = PROCESSOR.document(["say", mx.array(rgb(*size))])
    np.testing.assert_array_equal(document.images[0].windows, expected.windows)


def test_folded_images_are_taken_as_they_are() -> None:
    image = PROCESSOR.image(rgb(6, 9))
    assert PROCESSOR.document([image]).images == (image,)


def test_image_tokens_have_window_order_and_padding() -> None:
    image = PROCESSOR.image(rgb(5, 6))
    assert (image.height, image.width) == (5, 6)
    assert image.lengths.tolist() == [16, 8, 4, 2]
    assert (image.windows[3, 2:] == PROCESSOR.args.num_pix).all()
    np.testing.assert_array_equal(image.windows[0], fold_colors(rgb(5, 6)[:4, :4], 16).ravel())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((24, 24), (24, 24)), ((48, 24), (24, 12)), ((20, 100), (4, 24)), ((1, 90), (1, 24)), ((3, 2), (3, 2))],
)
def test_larger_images_are_scaled_down_and_smaller_ones_kept(size: tuple[int, int], expected: tuple[int, int]) -> None:
    for image in (PROCESSOR.image(rgb(*size)), PROCESSOR.image(Image.fromarray(rgb(*size)))):
        assert (image.height, image.width) == expected
        seen = from_windows(image.windows, *expected, 4)
        np.testing.assert_array_equal(seen, fold_colors(fit_rgb(Image.fromarray(rgb(*size)), 24), 16))


@pytest.mark.parametrize("f", [1, 16, 64, 256])
def test_pictures_show_folded_colours(f: int) -> None:
    processor, array = Processor(shape(fold_factor=f)), rgb(7, 10)
    picture = processor.picture(processor.image(array))
    assert (picture.mode, picture.size) == ("RGB", (10, 7))
    np.testing.assert_array_equal(np.asarray(picture), unfold_colors(fold_colors(array, f), f))
    again = processor.image(picture)
    np.testing.assert_array_equal(again.windows, processor.image(array).windows)


# --- words ------------------------------------------------------------------------------------------------------------


def test_decoding_gives_the_text_back() -> None:
    ids = PROCESSOR.document(["two red plates", [EOS]]).elements.tolist()
    assert PROCESSOR.decode(ids) == "two red plates"
    assert PROCESSOR.decode(np.array(ids)) == "two red plates"


def test_without_a_tokenizer_decoding_shows_ids() -> None:
    assert WORDLESS.decode([1, 4, 5]) == "1 4 5"


def test_a_processor_describes_itself() -> None:
    assert str(WORDLESS) == "Processor(no tokenizer, images to 24 px, windows 4x4, fold 16)"
    assert f"{TOKENIZER.vocab_size} words" in str(PROCESSOR)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[], (), "", "two plates", Image.new("RGB", (4, 4))])
def test_a_document_is_a_list_that_is_not_empty(parts: Any) -> None:
    refused(r"a document is a list of texts, images and word ids, got", parts)


def test_a_batch_needs_documents() -> None:
    with pytest.raises(PixWordError, match="at least one document, got none"):
        PROCESSOR.batch([])


@pytest.mark.parametrize("wrong", [-1, TOKENIZER.vocab_size, 10**6])
@pytest.mark.parametrize("special_words", [True, False])
def test_word_ids_out_of_range(wrong: int, special_words: bool) -> None:
    last = TOKENIZER.vocab_size - 1
    refused(rf"word ids must lie in 0\.\.{last}, got {wrong}", [[7, wrong]], special_words=special_words)


@pytest.mark.parametrize("part", [7, None, [[7, 8]], 2.5])
def test_a_part_of_another_kind(part: Any) -> None:
    refused(r"a part is a text, an image or a list of word ids, got", [part])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        mx.zeros((4, 4), mx.uint8),
        mx.zeros((4, 4, 3), mx.bfloat16),
    ],
)
def test_arrays_that_are_no_image(array: np.ndarray | mx.array) -> None:
    refused(r"an image must be uint8 \[h, w, 3\], got", [array])
    with pytest.raises(PixWordError, match="must be uint8"):
        PROCESSOR.image(array)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_images_without_pixels(size: tuple[int, int]) -> None:
    refused("at least one pixel", [np.zeros((*size, 3), np.uint8)])
    refused("at least one pixel", [mx.zeros((*size, 3), mx.uint8)])


def test_text_without_a_tokenizer() -> None:
    refused(r"no tokenizer, so it takes no text", ["two"], WORDLESS)


@pytest.mark.parametrize("vocab_size", [6, TOKENIZER.vocab_size + 1])
def test_a_tokenizer_of_another_size(vocab_size: int) -> None:
    with pytest.raises(PixWordError, match=rf"has {TOKENIZER.vocab_size} words but the model {vocab_size}"):
        Processor(shape(vocab_size=vocab_size), TOKENIZER)


def test_documents_that_are_too_long() -> None:
    assert len(PROCESSOR.document([[7] * 47])) == 48
    refused(r"the document has 49 elements, the model takes 48", [[7] * 48])
    refused(r"the document has 72 elements, the model takes 48", [rgb(24, 24), rgb(21, 20), [8]])


def test_training_documents_may_be_longer_because_they_are_split() -> None:
    assert len(PROCESSOR.document([[7] * 100], closed=True)) == 101


def test_an_image_of_more_windows_than_the_sequence_holds() -> None:
    assert len(tokens_of(rgb(20, 36), PROCESSOR.args).lengths) == 45  # and three words
    with pytest.raises(PixWordError, match=r"a 92x8 image has 46 windows of side 4 and the sequence holds 45"):
        tokens_of(rgb(8, 92), PROCESSOR.args)
