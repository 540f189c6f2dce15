"""Folding into windows, and back, for images that are arrays of MLX: one launch each on a Mac.

f  fold factor    K  pix tokens, and the padding token    w  window side    P  pixels a window, w * w
N  windows of an image
"""

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError
from ..pixels.colors import fold_colors, num_levels, num_pix_tokens
from ..pixels.windows import num_windows, valid_pixels, window_order
from .dispatch.choose import Kernel, dispatch
from .dispatch.load import build_kernel

MOST_PIXELS = 2**30  # padding included: the kernels count bytes in 32 bits
THREADS = 256  # a threadgroup
LONGEST = 1024  # side of a trial's image, pixels


def fold_windows(rgb: mx.array, fold_factor: int, window_size: int) -> mx.array:
    """Fold an image into windows of pix tokens: `colors.fold_colors` and `windows.to_windows` in one.

    Args:
        rgb: uint8 ``[height, width, 3]``.
        fold_factor: ``f``, a power of two in 1..256.
        window_size: ``w``, pixels.

    Returns:
        int32 ``[N, P]``, in each window its valid pixels first and then padding, ``K``.

    Raises:
        PixWordError: not uint8 ``[height, width, 3]``, no pixel, too many, or a bad fold factor or window size.
    """
    if rgb.dtype != mx.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise PixWordError(f"an image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    height, width, _ = rgb.shape
    _check(height, width, fold_factor, window_size)
    return dispatch(FOLD, rgb, fold_factor, window_size)


def unfold_windows(windows: mx.array, height: int, width: int, fold_factor: int, window_size: int) -> mx.array:
    """Put windows of pix tokens back together: `windows.from_windows` and `colors.unfold_colors` in one.

    Args:
        windows: int32 ``[N, P]``, ``0 <= t < K`` for valid pixels; padding is not read. The range is not checked, as
            that would wait for the device.
        height, width: of the image, pixels.
        fold_factor: ``f``, a power of two in 1..256.
        window_size: ``w``, pixels.

    Returns:
        uint8 ``[height, width, 3]``, the colours at the centres of their bins.

    Raises:
        PixWordError: windows of another shape or type than the image's, or a bad size, fold factor or window size.
    """
    _check(height, width, fold_factor, window_size)
    expected = (num_windows(height, width, window_size), window_size**2)
    if windows.dtype != mx.int32 or windows.shape != expected:
        raise PixWordError(
            f"a {width}x{height} image has windows int32 {list(expected)}, got {windows.dtype} {list(windows.shape)}"
        )
    return dispatch(UNFOLD, windows, height, width, fold_factor, window_size)


def _check(height: int, width: int, fold_factor: int, window_size: int) -> None:
    num_levels(fold_factor)
    if min(height, width, window_size) < 1:
        raise PixWordError(
            f"an image and its windows need at least one pixel, got {width}x{height} and window size {window_size}"
        )
    if num_windows(height, width, window_size) * window_size**2 > MOST_PIXELS:
        raise PixWordError(
            f"a {width}x{height} image in windows of side {window_size} has more than {MOST_PIXELS:,} pixels with its "
            "padding; cut it into pieces"
        )


# --- folding ----------------------------------------------------------------------------------------------------------


def _fold_reference(rgb: mx.array, fold_factor: int, window_size: int) -> mx.array:
    pixels = fold_colors(rgb, fold_factor).reshape(-1)
    padded = mx.concatenate([pixels, mx.array([num_pix_tokens(fold_factor)], mx.int32)])
    return padded[mx.array(_sources(*rgb.shape[:2], window_size))]


def _fold_metal(rgb: mx.array, fold_factor: int, window_size: int) -> mx.array:
    height, width = rgb.shape[:2]
    across, down, places = -(-width // window_size), -(-height // window_size), window_size**2
    threads = min(places, THREADS)
    (tokens,) = build_kernel("fold_colors", ("rgb", "layout"), ("tokens",))(
        inputs=[rgb, _layout(fold_factor, window_size)],
        grid=(places, across, down),
        threadgroup=(threads, min(across, THREADS // threads), 1),  # small windows share a threadgroup
        output_shapes=[(across * down, places)],
        output_dtypes=[mx.int32],
    )
    return tokens


def _fold_example(rgb: mx.array, fold_factor: int, window_size: int) -> tuple[Any, ...]:
    return _image(*_shown(*rgb.shape[:2])), fold_factor, window_size


@lru_cache(maxsize=64)
def _sources(height: int, width: int, window_size: int) -> np.ndarray:
    """Flat index of the pixel at each place of window order, ``[N, P]``; ``height * width`` at padding."""
    order, lengths = window_order(height, width, window_size)
    sources = np.full((len(lengths), window_size**2), height * width, np.int32)
    sources[valid_pixels(lengths, window_size)] = order
    return sources


# --- unfolding --------------------------------------------------------------------------------------------------------


def _unfold_reference(windows: mx.array, height: int, width: int, fold_factor: int, window_size: int) -> mx.array:
    tokens = windows.reshape(-1)[mx.array(_places(height, width, window_size))]  # [height, width]
    bits = _bits(fold_factor)
    levels = mx.right_shift(tokens[..., None], mx.array([0, 8 - bits, 16 - 2 * bits])) & (num_levels(fold_factor) - 1)
    return (mx.left_shift(levels, mx.array(bits)) + (fold_factor - 1) // 2).astype(mx.uint8)


def _unfold_metal(windows: mx.array, height: int, width: int, fold_factor: int, window_size: int) -> mx.array:
    columns = min(width, 32)
    (rgb,) = build_kernel("unfold_colors", ("tokens", "layout"), ("rgb",))(
        inputs=[windows, _layout(fold_factor, window_size)],
        grid=(width, height, 1),
        threadgroup=(columns, min(height, THREADS // columns), 1),
        output_shapes=[(height, width, 3)],
        output_dtypes=[mx.uint8],
    )
    return rgb


def _unfold_example(windows: mx.array, height: int, width: int, fold_factor: int, window_size: int) -> tuple[Any, ...]:
    height, width = _shown(height, width)
    return _tokens(height, width, fold_factor, window_size), height, width, fold_factor, window_size


@lru_cache(maxsize=64)
def _places(height: int, width: int, window_size: int) -> np.ndarray:
    """Flat place in window order of each pixel, ``[height, width]``."""
    order, lengths = window_order(height, width, window_size)
    places = np.empty(height * width, np.int32)
    places[order] = np.flatnonzero(valid_pixels(lengths, window_size))
    return places.reshape(height, width)


# --- both -------------------------------------------------------------------------------------------------------------


def _bits(fold_factor: int) -> int:
    """Low bits of a channel that folding drops, ``log2 f``."""
    return fold_factor.bit_length() - 1


def _layout(fold_factor: int, window_size: int) -> mx.array:
    """An input and no template, so that one build of a kernel serves every fold factor, window and image."""
    return mx.array([_bits(fold_factor), window_size], mx.int32)


def _fold_class(rgb: mx.array, fold_factor: int, window_size: int) -> Hashable:
    """Sizes within a factor of two are alike; threadgroups are full in all but the smallest images."""
    across = -(-rgb.shape[1] // window_size)
    return _area(*rgb.shape[:2]), min(across, THREADS // min(window_size**2, THREADS)), fold_factor, window_size


def _unfold_class(windows: mx.array, height: int, width: int, fold_factor: int, window_size: int) -> Hashable:
    columns = min(width, 32)
    return _area(height, width), columns, min(height, THREADS // columns), fold_factor, window_size


def _area(height: int, width: int) -> int:
    height, width = _shown(height, width)
    return (height * width).bit_length()


def _shown(height: int, width: int) -> tuple[int, int]:
    """The size of a trial's image: a pixel of a larger one takes as long."""
    return min(height, LONGEST), min(width, LONGEST)


def _image(height: int, width: int) -> mx.array:
    return mx.random.randint(0, 256, (height, width, 3), key=mx.random.key(0)).astype(mx.uint8)


def _tokens(height: int, width: int, fold_factor: int, window_size: int) -> mx.array:
    shape = num_windows(height, width, window_size), window_size**2
    return mx.random.randint(0, num_pix_tokens(fold_factor), shape, key=mx.random.key(0))


SIZES = [(224, 224), (223, 149), (2160, 3840)]  # height, width: the presets', a ragged one, a screen
SMALL_SIZES = [(48, 48), (37, 53)]


def _folds(sizes: list[tuple[int, int]]) -> dict[str, tuple[Any, ...]]:
    return {f"{w}x{h}, f 16, w 16": (_image(h, w), 16, 16) for h, w in sizes}


def _unfolds(sizes: list[tuple[int, int]]) -> dict[str, tuple[Any, ...]]:
    return {f"{w}x{h}, f 16, w 16": (_tokens(h, w, 16, 16), h, w, 16, 16) for h, w in sizes}


FOLD = Kernel(
    "fold_colors", _fold_reference, _fold_metal, _fold_example, trained=False, shape_class=_fold_class,
    standard=lambda: _folds(SIZES), small=lambda: _folds(SMALL_SIZES),
)  # fmt: skip
UNFOLD = Kernel(
    "unfold_colors", _unfold_reference, _unfold_metal, _unfold_example, trained=False, shape_class=_unfold_class,
    standard=lambda: _unfolds(SIZES), small=lambda: _unfolds(SMALL_SIZES),
)  # fmt: skip
