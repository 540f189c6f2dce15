"""Colour folding: every property for every fold factor, on NumPy and on MLX arrays."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.pixels.colors import FOLD_FACTORS, fold_colors, num_levels, num_pix_tokens, unfold_colors

SAMPLE = 2**17  # tokens that stand for all of them where there are more
CHANNEL = np.arange(256)

factors = pytest.mark.parametrize("f", [1, 2, 4, 8, 16, 32, 64, 128, 256])
kinds = pytest.mark.parametrize("kind", [np.array, mx.array])
Kind = Callable[..., Any]


def some_tokens(f: int) -> np.ndarray:
    """All tokens, or evenly spread ones with the first and the last."""
    tokens = (256 // f) ** 3
    return np.linspace(0, tokens - 1, min(tokens, SAMPLE)).astype(np.int32)


def some_colors(*shape: int) -> np.ndarray:
    """Random colours, black and white among them."""
    colors = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    colors.reshape(-1, 3)[:2] = [[0], [255]]
    return colors


def test_factors_are_the_powers_of_two() -> None:
    assert tuple(2**n for n in range(9)) == FOLD_FACTORS


@pytest.mark.parametrize(("f", "levels", "tokens"), [(1, 256, 2**24), (16, 16, 4096), (32, 8, 512), (256, 1, 1)])
def test_levels_and_tokens(f: int, levels: int, tokens: int) -> None:
    assert (num_levels(f), num_pix_tokens(f)) == (levels, tokens)


@factors
@kinds
def test_folding_undoes_unfolding(f: int, kind: Kind) -> None:
    tokens = some_tokens(f)
    colors = unfold_colors(kind(tokens), f)
    assert colors.shape == (len(tokens), 3)
    np.testing.assert_array_equal(np.array(fold_colors(colors, f)), tokens)


@factors
@kinds
def test_tokens_follow_the_formula_pixel_by_pixel(f: int, kind: Kind) -> None:
    colors = some_colors(20, 7)
    tokens = np.array(fold_colors(kind(colors), f))
    for place in np.ndindex(20, 7):
        r, g, b = (int(c) // f for c in colors[place])
        assert tokens[place] == r + 256 // f * g + (256 // f) ** 2 * b


@factors
def test_tokens_fill_their_range(f: int) -> None:
    corners = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    assert fold_colors(corners, f).tolist() == [0, num_pix_tokens(f) - 1]
    channels = np.unique(fold_colors(np.repeat(CHANNEL.astype(np.uint8)[:, None], 3, axis=1), f))
    assert len(channels) == 256 // f  # grey: one token a level


def test_channels_are_ordered_red_green_blue() -> None:
    primaries = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    assert fold_colors(primaries, 16).tolist() == [15, 15 * 16, 15 * 256]


@factors
@kinds
def test_unfolding_takes_the_centre_of_the_bin_rounded_down(f: int, kind: Kind) -> None:
    level = np.arange(256 // f)
    centre = np.floor(f * level + (f - 1) / 2)
    for channel in range(3):
        colors = np.array(unfold_colors(kind(level * (256 // f) ** channel), f))
        np.testing.assert_array_equal(colors[:, channel], centre)
        assert (np.delete(colors, channel, axis=1) == (f - 1) // 2).all()


@factors
@kinds
def test_folding_moves_a_channel_by_half_a_bin_at_most(f: int, kind: Kind) -> None:
    colors = np.concatenate([np.repeat(CHANNEL.astype(np.uint8)[:, None], 3, axis=1), some_colors(500)])
    seen = np.array(unfold_colors(fold_colors(kind(colors), f), f))
    error = np.abs(seen.astype(int) - colors)
    assert error.max() == f // 2 and (f > 1 or not error.any())


@factors
@kinds
def test_what_is_folded_stays_as_it_is_when_folded_again(f: int, kind: Kind) -> None:
    once = unfold_colors(fold_colors(kind(some_colors(50)), f), f)
    np.testing.assert_array_equal(np.array(unfold_colors(fold_colors(once, f), f)), np.array(once))


@kinds
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3), (4, 0), (0, 0), (1, 2, 3, 4)])
def test_any_rank_and_empty_arrays(kind: Kind, shape: tuple[int, ...]) -> None:
    colors = np.zeros((*shape, 3), np.uint8)
    tokens = fold_colors(kind(colors), 16)
    assert tuple(tokens.shape) == shape
    assert tuple(unfold_colors(kind(np.zeros(shape, np.int32)), 16).shape) == (*shape, 3)


@factors
def test_results_are_of_the_kind_of_the_input(f: int) -> None:
    colors, tokens = some_colors(2, 2), np.zeros((2, 2), np.int32)
    folded, unfolded = fold_colors(colors, f), unfold_colors(tokens, f)
    assert isinstance(folded, np.ndarray) and isinstance(unfolded, np.ndarray)
    assert (folded.dtype, unfolded.dtype) == (np.int32, np.uint8)
    on_device, back = fold_colors(mx.array(colors), f), unfold_colors(mx.array(tokens), f)
    assert isinstance(on_device, mx.array) and isinstance(back, mx.array)
    assert (on_device.dtype, back.dtype) == (mx.int32, mx.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_tokens_of_any_integer_type_unfold(dtype: type) -> None:
    tokens = np.arange(64)
    np.testing.assert_array_equal(unfold_colors(tokens.astype(dtype), 64), unfold_colors(tokens, 64))


@kinds
def test_inputs_are_left_as_they_were(kind: Kind) -> None:
    colors, tokens = some_colors(4), np.arange(4, dtype=np.int32)
    given_colors, given_tokens = kind(colors), kind(tokens)
    fold_colors(given_colors, 16)
    unfold_colors(given_tokens, 16)
    np.testing.assert_array_equal(np.array(given_colors), colors)
    np.testing.assert_array_equal(np.array(given_tokens), tokens)


def test_read_only_and_strided_arrays_fold() -> None:
    colors = some_colors(6, 8)
    colors.flags.writeable = False
    np.testing.assert_array_equal(fold_colors(colors[::2, ::-3], 16), fold_colors(colors, 16)[::2, ::-3])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [0, 3, 512, -2, 24, 255, 257, True, False, 2.5, 16.0, None, "16"])
def test_other_factors_are_refused(f: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: num_levels(f),
        lambda: num_pix_tokens(f),
        lambda: fold_colors(some_colors(2), f),
        lambda: unfold_colors(np.zeros(2, np.int32), f),
    ]
    for call in calls:
        with pytest.raises(PixWordError, match=r"fold factor must be a power of two in 1\.\.256, got"):
            call()


@kinds
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.float32, np.bool_])
def test_colours_that_are_not_uint8_are_refused(kind: Kind, dtype: type) -> None:
    with pytest.raises(PixWordError, match=r"colours must be uint8 \[\.\.\., 3\], got .*\(2, 3\)"):
        fold_colors(kind(np.zeros((2, 3), dtype)), 16)


@kinds
@pytest.mark.parametrize("shape", [(), (3, 4), (3, 1), (2, 2), (3, 0), (0,)])
def test_colours_without_three_channels_are_refused(kind: Kind, shape: tuple[int, ...]) -> None:
    with pytest.raises(PixWordError, match=r"colours must be uint8"):
        fold_colors(kind(np.zeros(shape, np.uint8)), 16)


@factors
@kinds
def test_tokens_out_of_range_are_refused(f: int, kind: Kind) -> None:
    last = num_pix_tokens(f) - 1
    for wrong in (-1, last + 1, 2**31 - 1):  # last + 1 is the padding token: it has no colour
        with pytest.raises(PixWordError, match=rf"must lie in 0\.\.{last} at fold factor {f}, got"):
            unfold_colors(kind(np.array([0, wrong], np.int32)), f)
