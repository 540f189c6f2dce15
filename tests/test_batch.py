"""Documents and batches: what each element predicts, where documents may be cut, and how rows are laid out."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch, bucket, bucket_rows, collate
from mlx_pixword.model.document import (
    BOS,
    END_IMAGE,
    EOS,
    IMAGE,
    NO_TARGET,
    PAD,
    SPECIAL_WORDS,
    UNK,
    WINDOW,
    Document,
    ImageTokens,
    make_document,
    split_document,
)
from mlx_pixword.model.losses import loss_sums
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import to_windows

V, K, W = 50, 64, 2  # words, pix tokens, window side
ARGS = ModelArgs(vocab_size=V, fold_factor=64, window_size=W, image_size=32)


def image(height: int, width: int, seed: int = 0) -> ImageTokens:
    tokens = np.random.default_rng((seed, height, width)).integers(0, K, (height, width))
    return ImageTokens(*to_windows(tokens, W, K), height, width)


def blank(height: int, width: int, token: int = 0) -> ImageTokens:
    return ImageTokens(*to_windows(np.full((height, width), token), W, K), height, width)


def document(*parts: Sequence[int] | ImageTokens, closed: bool = True) -> Document:
    """``<s>``, then words and marked images, as in training."""
    pieces: list[Sequence[int] | ImageTokens] = [[BOS]]
    for part in parts:
        pieces += [[IMAGE], part, [END_IMAGE]] if isinstance(part, ImageTokens) else [part]
    return make_document(pieces, closed=closed)


def pack(*rows: Sequence[Document], exact: bool = True) -> Batch:
    return collate(rows, ARGS, exact=exact)


def table(array: mx.array) -> np.ndarray:
    return np.array(array)


# --- documents --------------------------------------------------------------------------------------------------------


def test_special_words_have_the_first_ids() -> None:
    assert (UNK, BOS, EOS, PAD, IMAGE, END_IMAGE) == (0, 1, 2, 3, 4, 5)
    assert SPECIAL_WORDS == ("<unk>", "<s>", "</s>", "<pad>", "<|image|>", "<|/image|>")


def test_a_document_is_its_parts_and_no_mark_is_put_in() -> None:
    first, second = image(3, 4), image(1, 1)
    made = make_document([[7, 8], first, second, [], np.array([9])])
    assert made.elements.tolist() == [7, 8, *[WINDOW] * 4, WINDOW, 9]
    assert made.elements.dtype == np.int32
    assert made.images == (first, second) and not made.closed
    assert (len(made), made.num_pixels) == (8, 13)


@pytest.mark.parametrize("parts", [[], [[]], [[], []]])
def test_a_document_may_be_empty(parts: list[list[int]]) -> None:
    assert len(make_document(parts)) == 0


# --- targets ----------------------------------------------------------------------------------------------------------


def test_words_predict_words_and_only_a_closed_document_ends() -> None:
    assert document([7, 8]).targets(V).tolist() == [7, 8, EOS]
    assert document([7, 8], closed=False).targets(V).tolist() == [7, 8, NO_TARGET]


def test_boundary_objective() -> None:
    """``<|image|>`` predicts window 1, ``s_n`` window n + 1, ``s_N`` the closing mark."""
    picture = image(3, 5)
    first = [V + int(pixel) for pixel in picture.windows[:, 0]]
    made = document([7], picture, [8])
    assert made.elements.tolist() == [BOS, 7, IMAGE, *[WINDOW] * 6, END_IMAGE, 8]
    assert made.targets(V).tolist() == [7, IMAGE, *first, END_IMAGE, 8, EOS]
    assert made.targets(V).dtype == np.int32


def test_an_image_first_or_last_needs_no_words() -> None:
    picture = blank(2, 4, 9)
    assert make_document([picture]).targets(V).tolist() == [V + 9, NO_TARGET]
    assert make_document([picture], closed=True).targets(V).tolist() == [V + 9, EOS]


def test_each_image_gives_its_own_first_pixels() -> None:
    one, two = blank(2, 4, 3), blank(4, 2, 5)
    targets = document(one, two).targets(V).tolist()
    assert targets == [IMAGE, V + 3, V + 3, END_IMAGE, IMAGE, V + 5, V + 5, END_IMAGE, EOS]


def test_targets_leave_the_document_as_it_was() -> None:
    made = document(image(3, 3))
    before = made.elements.copy()
    made.targets(V)
    np.testing.assert_array_equal(made.elements, before)


# --- splitting --------------------------------------------------------------------------------------------------------

MIXED = document([10, 11, 12], image(4, 4), [13], image(3, 3, 1), image(1, 1), list(range(20, 40)), image(2, 2))


def contents(pieces: Sequence[Document]) -> list[int]:
    """All elements of pieces, without the ``<s>`` that splitting put in."""
    return [int(e) for n, piece in enumerate(pieces) for e in piece.elements[bool(n) :]]


@pytest.mark.parametrize("length", range(7, 45))
def test_pieces_keep_everything_in_order(length: int) -> None:
    pieces = split_document(MIXED, length)
    assert contents(pieces) == MIXED.elements.tolist()
    kept = [picture for piece in pieces for picture in piece.images]
    assert [id(picture) for picture in kept] == [id(picture) for picture in MIXED.images]
    for piece in pieces:
        assert (piece.elements == WINDOW).sum() == sum(len(picture.lengths) for picture in piece.images)


@pytest.mark.parametrize("length", range(7, 45))
def test_pieces_fit_start_with_bos_and_only_the_last_is_closed(length: int) -> None:
    pieces = split_document(MIXED, length)
    assert len(pieces) >= -(-len(MIXED) // length)
    assert all(1 < len(piece) <= length and piece.elements[0] == BOS for piece in pieces)
    assert [piece.closed for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("length", range(7, 45))
def test_no_image_is_cut(length: int) -> None:
    for piece in split_document(MIXED, length):
        inside = np.cumsum(piece.elements == IMAGE) - np.cumsum(piece.elements == END_IMAGE)
        assert inside[-1] == 0 and set(inside.tolist()) <= {0, 1}
        assert (inside[piece.elements == WINDOW] == 1).all()


@pytest.mark.parametrize("length", range(2, 12))
def test_pieces_of_words_are_full(length: int) -> None:
    pieces = split_document(document(list(range(6, 40))), length)
    assert {len(piece) for piece in pieces[:-1]} == {length}


def test_a_document_that_fits_is_not_cut() -> None:
    assert split_document(MIXED, len(MIXED)) == [MIXED]


def test_an_open_document_stays_open() -> None:
    assert not any(piece.closed for piece in split_document(document(list(range(6, 20)), closed=False), 5))


def test_an_image_that_fits_no_piece_is_refused() -> None:
    big = document([7], image(4, 4))  # the image has 4 windows and 2 marks
    assert len(split_document(big, 7)) == 2
    with pytest.raises(PixWordError, match=r"an image has 6 elements, max_seq_len 6 holds 5 and `<s>`"):
        split_document(big, 6)


# --- batches ----------------------------------------------------------------------------------------------------------


def unfold(batch: Batch) -> list[list[object]]:
    """Each row with words as numbers and windows as their valid pixels."""
    windows, lengths = table(batch.windows), table(batch.lengths)
    return [
        [tuple(windows[e - V, : lengths[e - V]].tolist()) if e >= V else int(e) for e in row]
        for row in table(batch.elements)
    ]


def expected(made: Document) -> list[object]:
    pixels = [tuple(w[:n].tolist()) for i in made.images for w, n in zip(i.windows, i.lengths, strict=True)]
    return [pixels.pop(0) if e == WINDOW else int(e) for e in made.elements]


def test_a_batch_holds_what_its_documents_hold() -> None:
    documents = [MIXED, document([7]), document(image(5, 3, 2), image(4, 4))]
    rows = unfold(pack(*([made] for made in documents)))
    length = max(map(len, documents))
    assert rows == [expected(made) + [PAD] * (length - len(made)) for made in documents]


def test_distinct_windows_are_kept_once() -> None:
    same = blank(6, 6)
    batch = pack([document(same), document(same)], [document(blank(4, 4), image(2, 2))])
    assert len(table(batch.windows)) == 2
    pairs = [(*w, n) for w, n in zip(table(batch.windows).tolist(), table(batch.lengths).tolist(), strict=True)]
    assert len(set(pairs)) == 2
    assert unfold(batch)[0] == 2 * expected(document(same))


def test_windows_that_differ_in_length_alone_are_distinct() -> None:
    batch = pack([document(blank(1, 1), blank(1, 2), blank(2, 2), blank(2, 1))])
    assert sorted(zip(table(batch.windows).tolist(), table(batch.lengths).tolist(), strict=True)) == [
        ([0, 0, 0, 0], 4),
        ([0, 0, K, K], 2),
        ([0, K, K, K], 1),
    ]


def test_positions_restart_in_every_document() -> None:
    a, b, c = document([7, 8]), document(image(2, 4)), document([9])
    batch = pack([a, b], [c])
    assert table(batch.positions).tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.segments is not None
    assert table(batch.segments).tolist() == [[0] * 3 + [1] * 5, [0] * 2 + [-1] * 6]


@pytest.mark.parametrize("closed", [True, False])
def test_targets_never_cross_documents(closed: bool) -> None:
    documents = [document([7, 8], closed=closed), document(image(2, 4), closed=closed), document([9], closed=closed)]
    batch = pack(documents, [document([6])])
    targets = table(batch.targets)
    assert targets[0].tolist() == [int(t) for made in documents for t in made.targets(V)]
    ends = np.cumsum([len(made) for made in documents]) - 1
    assert (targets[0, ends] == (EOS if closed else NO_TARGET)).all()
    assert (targets[1, 2:] == NO_TARGET).all()
    assert batch.num_targets == (targets != NO_TARGET).sum()


def test_rows_of_one_document_have_no_segments() -> None:
    batch = pack([document([7])], [document([8, 9])])
    assert batch.segments is None
    assert set(batch.arrays()) == {"elements", "targets", "positions", "starts", "windows", "lengths", "reads"}
    assert set(pack([document([7]), document([8])]).arrays()) == {*batch.arrays(), "segments"}


def test_exact_sizes_are_kept() -> None:
    batch = pack([document([7, 8], image(4, 6))])
    assert batch.elements.shape == (1, 11) and batch.windows.shape == (6, 4)
    assert str(batch) == "Batch(1 rows x 11 elements, 6 distinct windows of 4 pixels)"


def test_padded_sizes_are_buckets_and_say_the_same() -> None:
    rows = [[MIXED, document([7])], [document(image(9, 9, 3))]]
    exact, padded = pack(*rows), pack(*rows, exact=False)
    length, windows = exact.elements.shape[1], exact.windows.shape[0]
    assert padded.elements.shape == (2, bucket(length)) and padded.windows.shape == (bucket(windows), 4)
    for name, fill in {"elements": PAD, "targets": NO_TARGET, "positions": 0, "segments": -1}.items():
        array = table(getattr(padded, name))
        np.testing.assert_array_equal(array[:, :length], table(getattr(exact, name)))
        assert (array[:, length:] == fill).all()
    np.testing.assert_array_equal(table(padded.windows)[:windows], table(exact.windows))
    assert (table(padded.windows)[windows:] == K).all() and (table(padded.lengths)[windows:] == 1).all()


def test_a_batch_without_images_has_one_padding_window() -> None:
    batch = pack([document([7, 8])])
    assert table(batch.windows).tolist() == [[K] * 4] and table(batch.lengths).tolist() == [1]


def test_arrays_are_int32_and_counts_are_right() -> None:
    batch = pack([MIXED, document([7])], [document(blank(4, 4))], exact=False)
    assert {array.dtype for array in batch.arrays().values()} == {mx.int32}
    words = sum(int((made.elements != WINDOW).sum()) for row in batch.documents for made in row)
    assert batch.num_tokens == words + 16 + 9 + 1 + 4 + 16
    assert [len(row) for row in batch.documents] == [2, 1]


# --- bucket sizes -----------------------------------------------------------------------------------------------------


def test_buckets_hold_their_size_and_grow_with_it() -> None:
    sizes = [bucket(size) for size in range(5000)]
    assert sizes == sorted(sizes)
    assert all(padded >= max(8, size) for size, padded in enumerate(sizes))
    assert all(bucket(padded) == padded for padded in sizes)  # a bucket is its own


def test_buckets_waste_less_than_an_eighth() -> None:
    assert max((bucket(size) - size) / size for size in range(64, 20_000)) < 1 / 8


def test_there_are_few_buckets() -> None:
    for power in range(6, 16):
        assert len({bucket(size) for size in range(2**power + 1, 2 ** (power + 1) + 1)}) == 8
    assert len({bucket(size) for size in range(65)}) == 8


@pytest.mark.parametrize("minimum", [1, 4, 8, 16, 64])
def test_small_sizes_share_the_least_bucket(minimum: int) -> None:
    assert {bucket(size, minimum) for size in range(minimum + 1)} == {minimum}


def test_compiled_steps_see_few_shapes() -> None:
    """Batches of a mixed collection take ever fewer new shapes; with exact sizes nearly every batch is a new one."""
    rng = np.random.default_rng(0)
    shapes: dict[bool, list[int]] = {}
    for exact in (False, True):
        seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
        shapes[exact] = []
        for number in range(400):
            sizes = rng.integers(1, 13, (int(rng.integers(1, 7)), 2)).tolist()
            rows = [[document(blank(h, w), list(range(6, 6 + h)))] for h, w in sizes]
            batch = collate(rows, ARGS, exact=exact, pixel_queries=1, seed=(number,))
            seen.add(tuple((name, tuple(array.shape)) for name, array in batch.arrays().items()))
            shapes[exact].append(len(seen))
    assert shapes[False][-1] < 0.4 * shapes[True][-1]
    assert shapes[False][399] - shapes[False][299] < 0.15 * 100


def test_rows_are_padded_to_two_numbers_a_doubling() -> None:
    assert [bucket_rows(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17)] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 20]


def test_padded_rows_say_nothing(small_model: Callable[..., PixWordModel]) -> None:
    model = small_model(vocab_size=V, window_size=2, image_size=8)
    a = model.args
    rows = [[document([7, 8], image(3, 4))] for _ in range(9)]
    sums = []
    for exact in (True, False):
        batch = collate(rows, a, exact=exact, pixel_queries=1)
        assert batch.elements.shape[0] == (9 if exact else 10)
        sums.append([value.item() for value in loss_sums(*model.forward(batch), batch, a.vocab_size)])
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"positions": "grid"}, {"no_rope_every": 2}])
@pytest.mark.parametrize("pixel_queries", [0, 1])
def test_only_elements_that_count_reach_the_softmax(
    small_model: Callable[..., PixWordModel], options: dict[str, object], pixel_queries: int
) -> None:
    """Without a weight on windows' first pixels, sums of words and their gradients are those of all logits.

    Of the last layer too, whose queries, output and feed-forward are computed for these elements alone.
    """
    model = small_model(vocab_size=V, window_size=2, image_size=8, **options)
    rows = [[document([7, 8], image(3, 4))], [document(image(5, 2), [9]), document([6])]]
    batch = collate(rows, model.args, boundary=False, pixel_queries=pixel_queries)
    words = batch.scored_targets
    assert words is not None and int(mx.sum(words != NO_TARGET)) == 5 + 4 + 2 and words.shape == (2, 8)

    def loss(scored: bool) -> Callable[[dict[str, object]], mx.array]:
        def value(parameters: dict[str, object]) -> mx.array:
            model.update(parameters)
            logits, labels = (model.scored(batch), batch.counted) if scored else (model.forward(batch), batch)
            sums = loss_sums(*logits, labels, V)
            return sums.word_nats + sums.dense_nats

        return value

    found, wanted = (mx.value_and_grad(loss(scored))(model.trainable_parameters()) for scored in (True, False))
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=1e-6)
    gradients = dict(tree_flatten(wanted[1]))
    for name, gradient in tree_flatten(found[1]):
        assert mx.allclose(gradient, gradients[name], rtol=1e-4, atol=1e-6), name
