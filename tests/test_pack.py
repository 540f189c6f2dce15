"""Packing: every document lands in one batch, within the limits, with little padding. Plates: seeded and whole."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.data import plates
from mlx_pixword.data.pack import Row, bucket_batches, pack_rows, plan_batches, row_length
from mlx_pixword.data.plates import HEIGHT, SCHEMES, WIDTH, Plate, PlateSource, is_reserved
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, NO_TARGET, Document, ImageTokens, make_document
from mlx_pixword.pixels.windows import window_order

W = 4  # window side
ARGS = ModelArgs(vocab_size=50, window_size=W, image_size=64)


def words(length: int) -> Document:
    return Document(np.full(length, 7, np.int32), closed=True)


def captioned(height: int, width: int, caption: int) -> Document:
    lengths = window_order(height, width, W)[1]
    image = ImageTokens(np.zeros((len(lengths), W * W), np.int32), lengths, height, width)
    return make_document([[BOS, IMAGE], image, [END_IMAGE], [7] * caption], closed=True)


def varied_documents(count: int = 256, seed: int = 0) -> list[Document]:
    """Captioned images of many sizes and shapes, to 64 pixels a side: 4 to 256 windows, 3 to 40 words."""
    rng = np.random.default_rng(seed)
    return [captioned(*rng.integers(8, 65, 2).tolist(), int(rng.integers(3, 41))) for _ in range(count)]


def words_of(*lengths: int) -> list[Document]:
    return [words(length) for length in lengths]


def lengths_of(rows: Sequence[Row]) -> list[list[int]]:
    return [[len(document) for document in row] for row in rows]


def identities(rows: Sequence[Row]) -> list[int]:
    return sorted(id(document) for row in rows for document in row)


def padding(batch: Sequence[Row]) -> int:
    return len(batch) * max(map(row_length, batch)) - sum(map(row_length, batch))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    rows = pack_rows(words_of(3, 9, 5, 1, 6, 2), 10)
    assert lengths_of(rows) == [[9, 1], [6, 3], [5, 2]]


@pytest.mark.parametrize("max_length", [300, 512, 1000])
def test_rows_hold_every_document_once_within_the_limit(max_length: int) -> None:
    documents = varied_documents()
    rows = pack_rows(documents, max_length)
    assert identities(rows) == sorted(map(id, documents))
    assert all(row for row in rows) and max(map(row_length, rows)) <= max_length


def test_a_document_longer_than_a_row_stands_alone() -> None:
    assert lengths_of(pack_rows(words_of(3, 25, 8), 10)) == [[25], [8], [3]]


@pytest.mark.parametrize("max_length", [300, 512, 1000])
def test_no_two_rows_could_be_one(max_length: int) -> None:
    lengths = sorted(map(row_length, pack_rows(varied_documents(), max_length)))
    assert lengths[0] + lengths[1] > max_length


def test_nothing_gives_nothing() -> None:
    assert pack_rows([], 10) == [] == bucket_batches([], 10)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_by_hand() -> None:
    rows = [[document] for document in words_of(2, 10, 4, 9, 3, 5)]
    assert [[row_length(row) for row in batch] for batch in bucket_batches(rows, 20)] == [[10, 9], [5, 4, 3, 2]]


@pytest.mark.parametrize("batch_tokens", [1, 300, 1280, 4096])
def test_batches_hold_every_row_once_within_the_limit(batch_tokens: int) -> None:
    rows = [[document] for document in varied_documents()]
    batches = bucket_batches(rows, batch_tokens)
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(row_length, batch)) <= batch_tokens


def test_rows_longer_than_a_batch_stand_alone() -> None:
    rows = [[document] for document in words_of(50, 40, 6, 6)]
    assert [[row_length(row) for row in batch] for batch in bucket_batches(rows, 12)] == [[50], [40], [6, 6]]


# --- the plan of a group ----------------------------------------------------------------------------------------------

packed_or_not = pytest.mark.parametrize("pack", [True, False])


def plan(documents: Sequence[Document], pack: bool, *, batch_tokens: int = 4096, seed: int = 0) -> list[list[Row]]:
    return plan_batches(documents, batch_tokens, 512, pack, np.random.default_rng(seed))


@packed_or_not
@pytest.mark.parametrize("batch_tokens", [200, 600, 1280, 4096])
def test_a_plan_holds_every_document_once_within_the_limits(pack: bool, batch_tokens: int) -> None:
    documents = varied_documents()
    batches = plan(documents, pack, batch_tokens=batch_tokens)
    assert identities([row for batch in batches for row in batch]) == sorted(map(id, documents))
    for batch in batches:
        longest = max(map(row_length, batch))
        assert longest <= 512
        assert len(batch) * longest <= batch_tokens or lengths_of(batch) == [[longest]]  # or one document alone
        assert pack or all(len(row) == 1 for row in batch)


@packed_or_not
@pytest.mark.parametrize("batch_tokens", [1280, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_less_than_a_fifth_is_padding(pack: bool, batch_tokens: int, seed: int) -> None:
    documents = varied_documents(seed=seed)
    batches = plan(documents, pack, batch_tokens=batch_tokens)
    assert sum(map(padding, batches)) < 0.2 * sum(map(len, documents))


@packed_or_not
def test_less_than_a_fifth_is_padding_in_collated_batches(pack: bool) -> None:
    """Lengths are rounded up to buckets there."""
    batches = [collate(rows, ARGS) for rows in plan(varied_documents(), pack)]
    targets = np.concatenate([np.array(batch.targets).ravel() for batch in batches])
    assert (targets == NO_TARGET).mean() < 0.2  # every document is closed, so all else has a target


def test_packing_needs_fewer_rows() -> None:
    documents = varied_documents()
    assert sum(map(len, plan(documents, True))) < 0.7 * sum(map(len, plan(documents, False)))


@packed_or_not
def test_the_generator_alone_decides_the_order(pack: bool) -> None:
    documents = varied_documents(60)
    first, again, other = (
        [[[id(d) for d in row] for row in batch] for batch in plan(documents, pack, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_documents_of_equal_length_are_mixed() -> None:
    documents = words_of(*[100] * 50)
    place = {id(document): n for n, document in enumerate(documents)}
    order = [place[id(document)] for batch in plan(documents, False, batch_tokens=1000) for (document,) in batch]
    assert (np.diff(order) == 1).mean() < 0.2


def test_long_and_short_batches_are_mixed() -> None:
    lengths = [max(map(row_length, batch)) for batch in plan(varied_documents(), False, batch_tokens=1280)]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


# --- the built-in plates ----------------------------------------------------------------------------------------------


def test_a_plate_is_a_function_of_seed_and_index() -> None:
    forwards, backwards = PlateSource(5), PlateSource(5)
    first = {n: forwards.plate(n) for n in range(30)}
    assert {n: backwards.plate(n) for n in reversed(range(30))} == first
    assert [PlateSource(6).plate(n) for n in range(30)] != list(first.values())
    np.testing.assert_array_equal(first[3].draw(), backwards.plate(3).draw())


def test_a_plate_is_an_image_with_what_it_says() -> None:
    picture, text = PlateSource(0).parts(7)
    assert isinstance(picture, Plate) and text == picture.text and text in list(PlateSource(0).texts())
    assert picture.rgb(64).shape == (HEIGHT, WIDTH, 3) and max(picture.rgb(14).shape) == 14


@pytest.mark.parametrize("reserved", [True, False])
def test_reserved_strings_stay_apart(reserved: bool) -> None:
    texts = {PlateSource(0, reserved=reserved).plate(n).text for n in range(1500)}
    assert {is_reserved(text) for text in texts} == {reserved}
    assert {len(text) for text in texts} == {2, 3} and set("".join(texts)) == set("0123456789")


def test_about_a_tenth_is_reserved() -> None:
    strings = [f"{n:0{digits}d}" for digits in (2, 3) for n in range(10**digits)]
    assert 0.08 < np.mean([is_reserved(text) for text in strings]) < 0.12


def test_plates_vary_in_size_place_and_colours() -> None:
    drawn_plates = [PlateSource(0).plate(n) for n in range(400)]
    assert len({plate.font_size for plate in drawn_plates}) >= 3
    assert len({(round(plate.left, 1), round(plate.top, 1)) for plate in drawn_plates}) > 80
    schemes = {(plate.ink, plate.background) for plate in drawn_plates}
    assert schemes == set(SCHEMES) and len(schemes) >= 4
    assert any(sum(ink) > sum(background) for ink, background in schemes)  # light on dark


def test_random_colours_are_all_different_and_can_be_told_apart() -> None:
    pairs = [(plate.ink, plate.background) for plate in map(PlateSource(0, colors="random").plate, range(200))]
    assert len(set(pairs)) > 190
    assert min(abs(sum(ink) - sum(background)) for ink, background in pairs) >= 3 * 64
    with pytest.raises(PixWordError, match="must be one of schemes, random"):
        PlateSource(0, colors="grey")


def test_nothing_of_a_plate_is_cut_off() -> None:
    """The ink of a plate is that of the same text on a canvas with room on every side."""
    for plate in map(PlateSource(2).plate, range(500)):
        canvas = Image.new("L", (4 * WIDTH, 4 * HEIGHT))
        ImageDraw.Draw(canvas).text((WIDTH, HEIGHT), plate.text, fill=255, font=plates._font(plate.font_size))
        ink = canvas.crop(canvas.getbbox())
        black = Image.fromarray(Plate(**{**vars(plate), "ink": (255,) * 3, "background": (0,) * 3}).draw()).convert("L")
        box = black.getbbox()
        assert box is not None and black.crop(box).tobytes() == ink.tobytes(), plate
        assert min(box[:2]) >= 1 and box[2] < WIDTH and box[3] < HEIGHT, plate
