"""Square batches for the PyTorch peer: padding, targets, masks and drawn pixels are laid out right."""

import numpy as np
import pytest
from peer.padding import (
    IGNORE,
    LossWeights,
    SquareBatch,
    draw_pixels,
    query_mask,
    square_batch,
    square_side,
    square_windows,
)
from peer.train_sides import draw_keys, mlx_batches
from square_jobs import ARGS, document, image_of, job_of

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, make_document


def test_a_square_has_the_longest_side_in_whole_windows(rng: np.random.Generator) -> None:
    images = [document(rng, *size).images[0] for size in ((3, 9), (5, 2))]
    assert square_side(images, 4) == 12
    assert square_side(images[1:], 4) == 8
    assert square_side(images[1:], 5) == 5


def test_padding_keeps_its_place_in_a_window(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, ARGS.num_pix, (5, 7))
    windows = square_windows(image_of(tokens), 12, 4, ARGS.num_pix)
    assert windows.shape == (9, 16)
    square = windows.reshape(3, 3, 4, 4).swapaxes(1, 2).reshape(12, 12)
    assert (square[:5, :7] == tokens).all()
    assert (square == ARGS.num_pix).sum() == 144 - 35


def test_squares_of_whole_windows_are_what_training_has(rng: np.random.Generator) -> None:
    documents = [document(rng, 8, 8, words) for words in ((), (7, 8), (9,))]
    job = job_of(documents, queries=3)
    (((batch,),), squares) = (
        mlx_batches(job),
        square_batch(documents, ARGS, 3, draw_keys(job, 0), LossWeights(5.0, 2.0, 3.0)),
    )
    length = squares.before.shape[1] + squares.windows.shape[1] + squares.after.shape[1]
    targets = np.array(batch.targets)[:, :length]
    assert (squares.targets[:, :length] == np.where(targets < 0, IGNORE, targets)).all()
    assert (squares.targets[:, length:] == np.array(batch.query_targets)).all()
    assert np.allclose(squares.weights[:, length:], 3 * np.array(batch.query_weights))
    assert set(squares.weights[:, :length].ravel().tolist()) == {0.0, 2.0, 5.0}
    assert (squares.positions[0, length:] == np.array(batch.query_places)[0]).all()
    assert squares.positions.shape == (1, length + 12) and squares.mask is not None and len(squares.mask) == 1
    assert squares.num_targets == batch.num_targets


@pytest.mark.parametrize("queries", [0, 1, 3, 99])
def test_padded_images_have_the_targets_of_their_pixels(rng: np.random.Generator, queries: int) -> None:
    documents = [document(rng, *size, words=(6,) * n) for n, size in enumerate(((5, 9), (12, 3), (1, 1)))]
    job = job_of(documents, queries)
    ((batch,),), squares = mlx_batches(job), square_batch(documents, ARGS, queries, draw_keys(job, 0))
    assert squares.num_targets == batch.num_targets
    length = squares.before.shape[1] + squares.windows.shape[1] + squares.after.shape[1]
    for row, one in zip(squares.targets[:, :length], documents, strict=True):
        assert sorted(row[row != IGNORE]) == sorted(one.targets(ARGS.vocab_size))
    if queries:
        dense = sum(d.num_pixels - len(d.images[0].lengths) for d in documents)
        assert squares.weights[:, length:].sum() == pytest.approx(dense)  # query pixels stand for all of them
        assert check_picks(squares, length)
        assert squares.positions.shape == (3, length + squares.picks.shape[1])  # type: ignore[union-attr]


def check_picks(squares: SquareBatch, length: int) -> bool:
    """Each query pixel is inside its window and predicts the pixel behind it."""
    assert squares.picks is not None
    flat, drawn = squares.windows.reshape(len(squares.windows), -1), squares.targets[:, length:] != IGNORE
    following = ARGS.vocab_size + np.take_along_axis(flat, squares.picks + 1, axis=1)
    inside = squares.picks % 16 < 15
    return bool(((squares.targets[:, length:] == following) & inside)[drawn].all())


def test_all_pixels_are_drawn_where_that_many_are_asked_for() -> None:
    tokens = np.zeros((3, 3), np.int64)
    windows = square_windows(image_of(tokens), 4, 4, ARGS.num_pix)[None]
    picks, drawn, factor = draw_pixels(windows, ARGS.num_pix, 15, [(0,)])
    assert picks.tolist() == [[0, 1, 3, 4, 5, 7, 8, 9]]  # what comes next is valid: 1, 2, 4, 5, 6, 8, 9, 10
    assert (drawn == 0).all() and (factor == 1).all()


def test_the_mask_lets_a_drawn_pixel_see_what_lies_before_its_window() -> None:
    places = np.array([[2, 3, 3], [1, 0, 2]])
    mask = query_mask(places, 4)
    assert mask.shape == (2, 1, 7, 7)
    for row in range(2):
        for i in range(7):
            for j in range(7):
                sees = j <= i if i < 4 else i == j or j < places[row, i - 4]
                assert mask[row, 0, i, j] == sees, (row, i, j)


def test_a_square_batch_needs_images_in_the_same_place(rng: np.random.Generator) -> None:
    late = make_document([[BOS, 7, IMAGE], document(rng, 8, 8).images[0], [END_IMAGE]], closed=True)
    with pytest.raises(PixWordError, match="same number of words"):
        square_batch([document(rng, 8, 8), late], ARGS)
