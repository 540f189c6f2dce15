"""Windows: which pixels belong together and in which order, against a naive loop, for many window and image sizes."""

import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.pixels.windows import (
    check_geometry,
    fit_size,
    from_windows,
    num_windows,
    to_windows,
    valid_pixels,
    window_order,
)

WINDOW_SIZES = tuple(range(1, 18))
IMAGE_SIZES = (  # height, width: one pixel, thin, primes, exact multiples, one more and one less
    (1, 1), (1, 29), (31, 1), (7, 13), (23, 19), (16, 16), (32, 48), (17, 34), (15, 33), (12, 60), (2, 3),
)  # fmt: skip
PADDING = -7

window_sizes = pytest.mark.parametrize("w", WINDOW_SIZES)


def naive_windows(height: int, width: int, w: int) -> list[list[int]]:
    """Flat pixel indices of every window, by plain loops."""
    windows = []
    for top in range(0, height, w):
        for left in range(0, width, w):
            rows = range(top, min(top + w, height))
            windows.append([y * width + x for y in rows for x in range(left, min(left + w, width))])
    return windows


def picture(height: int, width: int) -> np.ndarray:
    """Tokens that are all different, so that a wrong place shows."""
    return np.random.default_rng(0).permutation(height * width).astype(np.int32).reshape(height, width)


# --- order ------------------------------------------------------------------------------------------------------------


@window_sizes
def test_windows_and_their_pixels_run_row_major(w: int) -> None:
    for height, width in IMAGE_SIZES:
        naive = naive_windows(height, width, w)
        order, lengths = window_order(height, width, w)
        assert order.tolist() == [pixel for window in naive for pixel in window]
        assert lengths.tolist() == [len(window) for window in naive]


@window_sizes
def test_order_is_a_permutation(w: int) -> None:
    for height, width in IMAGE_SIZES:
        order, _ = window_order(height, width, w)
        np.testing.assert_array_equal(np.sort(order), np.arange(height * width))


@window_sizes
def test_lengths_sum_to_the_pixels_and_none_is_empty(w: int) -> None:
    for height, width in IMAGE_SIZES:
        _, lengths = window_order(height, width, w)
        assert lengths.sum() == height * width
        assert lengths.min() >= 1 and lengths.max() <= w * w


@window_sizes
def test_number_of_windows(w: int) -> None:
    for height, width in IMAGE_SIZES:
        assert num_windows(height, width, w) == len(naive_windows(height, width, w))


def test_exact_multiples_have_full_windows_alone() -> None:
    assert set(window_order(32, 48, 16)[1].tolist()) == {256}


def test_ragged_edges_by_hand() -> None:
    order, lengths = window_order(3, 5, 2)
    assert lengths.tolist() == [4, 4, 2, 2, 2, 1]
    assert order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]


def test_order_is_kept_and_cannot_be_changed() -> None:
    order, lengths = window_order(5, 7, 3)
    assert window_order(5, 7, 3)[0] is order
    assert order.dtype == lengths.dtype == np.int32
    for array in (order, lengths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# --- cutting and joining ----------------------------------------------------------------------------------------------


@window_sizes
def test_joining_undoes_cutting(w: int) -> None:
    for height, width in IMAGE_SIZES:
        tokens = picture(height, width)
        windows, _ = to_windows(tokens, w, PADDING)
        np.testing.assert_array_equal(from_windows(windows, height, width, w), tokens)


@window_sizes
def test_a_window_holds_its_pixels_then_padding(w: int) -> None:
    for height, width in IMAGE_SIZES:
        tokens, naive = picture(height, width), naive_windows(height, width, w)
        windows, lengths = to_windows(tokens, w, PADDING)
        padding = [[PADDING] * (w * w - len(pixels)) for pixels in naive]
        assert windows.tolist() == [[*tokens.ravel()[p].tolist(), *pad] for p, pad in zip(naive, padding, strict=True)]
        assert (windows.dtype, lengths.dtype) == (np.int32, np.int32)


@window_sizes
def test_valid_pixels_come_first(w: int) -> None:
    lengths = np.array([1, w * w, (w * w + 1) // 2])
    valid = valid_pixels(lengths, w)
    assert valid.shape == (3, w * w) and valid.dtype == bool
    for row, length in zip(valid, lengths, strict=True):
        assert row[:length].all() and not row[length:].any()


def test_strided_pictures_are_cut_as_they_look() -> None:
    tokens = picture(12, 10)
    for view in (tokens.T, tokens[::-1, ::2]):
        np.testing.assert_array_equal(to_windows(view, 4, PADDING)[0], to_windows(view.copy(), 4, PADDING)[0])


def test_padding_is_ignored_when_joining() -> None:
    windows, lengths = to_windows(picture(5, 7), 3, PADDING)
    other = np.where(valid_pixels(lengths, 3), windows, 99)
    np.testing.assert_array_equal(from_windows(other, 5, 7, 3), picture(5, 7))


@pytest.mark.parametrize(("count", "pixels"), [(5, 9), (7, 9), (6, 16), (6, 8)])
def test_windows_of_another_shape_do_not_join(count: int, pixels: int) -> None:
    with pytest.raises(PixWordError, match=r"a 7x5 image has windows \(6, 9\), got"):
        from_windows(np.zeros((count, pixels), np.int32), 5, 7, 3)


# --- sizes ------------------------------------------------------------------------------------------------------------

SIDES = (1, 2, 3, 7, 16, 47, 48, 49, 96, 97, 100, 640, 4032, 100_000)


@pytest.mark.parametrize("image_size", [1, 16, 48, 224])
@pytest.mark.parametrize("height", SIDES)
def test_fitted_size(height: int, image_size: int) -> None:
    for width in SIDES:
        fitted, short, long = fit_size(height, width, image_size), min(height, width), max(height, width)
        if long <= image_size:
            assert fitted == (height, width)  # never enlarged
            continue
        assert max(fitted) == image_size
        assert min(fitted) == max(1, int(short / long * image_size))
        assert abs(min(fitted) - short / long * image_size) < 1  # the aspect ratio is kept, to a pixel
        assert fitted[0] == fitted[1] or (fitted[0] > fitted[1]) == (height > width)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (168, 224)), (640, 480, (224, 168)), (225, 225, (224, 224)), (1, 1000, (1, 224)), (1000, 3, (224, 1))],
)
def test_fitted_sizes_by_hand(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fit_size(height, width, 224) == expected


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5), (0, 0)])
def test_an_image_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(PixWordError, match=rf"at least one pixel, got height {height} and width {width}"):
        fit_size(height, width, 224)


@window_sizes
def test_multiples_of_the_window_are_good_image_sizes(w: int) -> None:
    for image_size in (w, 3 * w, 14 * w):
        check_geometry(image_size, w)


@pytest.mark.parametrize(
    ("image_size", "window_size", "advice"),
    [(50, 16, 48), (224, 15, 225), (15, 16, 16), (0, 4, 4), (-4, 4, 4), (16, 0, 16), (16, -1, 16), (7, 3, 6)],
)
def test_other_image_sizes_are_refused_with_advice_that_works(image_size: int, window_size: int, advice: int) -> None:
    message = rf"got image size {image_size} and window size {window_size}; try image size {advice}$"
    with pytest.raises(PixWordError, match=message):
        check_geometry(image_size, window_size)
    check_geometry(advice, max(1, window_size))
