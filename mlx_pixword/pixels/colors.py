"""Colour folding: an RGB colour becomes one pix token, and back.

f  fold factor, a power of two in 1..256        C  levels a channel, 256 / f
K  pix tokens, C**3; the id K itself is padding    V  words; pix token t has the unified id V + t
"""

from typing import TypeVar

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError

Array = TypeVar("Array", np.ndarray, mx.array)

COLOR_FEATURES = 27  # smooth features of a colour, see `color_features`
LINEAR_COLOR_FEATURES = 3  # of them, one a channel
LINEAR_COLUMNS = (0, 9, 18)  # where they lie among the others
FOLD_FACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def num_levels(fold_factor: int) -> int:
    """Levels a channel, ``C = 256 / f``; raises ``PixWordError`` for a factor outside 1, 2, 4 .. 256."""
    if isinstance(fold_factor, bool | float) or fold_factor not in FOLD_FACTORS:
        raise PixWordError(f"fold factor must be a power of two in 1..256, got {fold_factor!r}")
    return 256 // fold_factor


def num_pix_tokens(fold_factor: int) -> int:
    """Pix tokens ``K = C**3``, the padding token not counted."""
    return num_levels(fold_factor) ** 3


def fold_colors(rgb: Array, fold_factor: int) -> Array:
    """Fold 8-bit colours into pix tokens, ``t = r' + C g' + C^2 b'`` with ``c' = c // f``.

    Args:
        rgb: uint8 ``[..., 3]``, NumPy or MLX.
        fold_factor: ``f``, a power of two in 1..256.

    Returns:
        int32 ``[...]`` of the same kind of array, ``0 <= t < K``.

    Raises:
        PixWordError: not uint8, no last axis of 3, or a bad fold factor.

    Source: arXiv 2605.14028, colour folding.

    Example:
        >>> fold_colors(np.array([[255, 0, 16]], np.uint8), 16)
        array([271], dtype=int32)
    """
    levels = num_levels(fold_factor)
    if rgb.dtype != (mx.uint8 if isinstance(rgb, mx.array) else np.uint8) or rgb.ndim < 1 or rgb.shape[-1] != 3:
        raise PixWordError(
            f"colours must be uint8 [..., 3], got {rgb.dtype} {tuple(rgb.shape)}; try image.convert('RGB')"
        )
    level = rgb // fold_factor if levels > 1 else rgb * 0  # stays uint8, which 256 does not fit
    return (_int32(level[..., 2]) * levels + level[..., 1]) * levels + level[..., 0]


def unfold_colors(tokens: Array, fold_factor: int) -> Array:
    """Give each pix token the colour at the centre of its bin, ``f c' + (f - 1) / 2`` rounded down.

    Args:
        tokens: integers ``[...]`` in ``0 <= t < K``, NumPy or MLX.
        fold_factor: ``f``, a power of two in 1..256.

    Returns:
        uint8 ``[..., 3]``; ``fold_colors(unfold_colors(t, f), f) == t``.

    Raises:
        PixWordError: a token outside ``0..K-1`` (padding has no colour), or a bad fold factor.
    """
    levels, xp = num_levels(fold_factor), (mx if isinstance(tokens, mx.array) else np)
    if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) < levels**3):
        low, high = int(tokens.min()), int(tokens.max())
        raise PixWordError(f"pix tokens must lie in 0..{levels**3 - 1} at fold factor {fold_factor}, got {low}..{high}")
    tokens = _int32(tokens)
    level = xp.stack([tokens % levels, tokens // levels % levels, tokens // levels**2], axis=-1)
    return (fold_factor * level + (fold_factor - 1) // 2).astype(xp.uint8)


def color_features(fold_factor: int) -> np.ndarray:
    """Smooth features of every folded colour: float32 ``[K, 27]``.

    Per channel ``u`` in -1..1: ``u``, and ``sin`` and ``cos`` of ``u pi/2 {0.5, 1, 2, 4}``.
    """
    levels = num_levels(fold_factor)
    tokens = np.arange(levels**3)
    channels = np.stack([tokens % levels, tokens // levels % levels, tokens // levels**2], axis=-1)
    u = 2 * channels / max(1, levels - 1) - 1  # [K, 3]
    angle = u[..., None] * np.pi / 2 * np.array([0.5, 1, 2, 4])  # [K, 3, 4]
    features = np.concatenate([u[..., None], np.sin(angle), np.cos(angle)], axis=-1)
    return features.reshape(len(tokens), -1).astype(np.float32)


def _int32(array: Array) -> Array:
    """The same numbers as int32: a fold factor of 256 does not fit uint8."""
    return array.astype(mx.int32) if isinstance(array, mx.array) else array.astype(np.int32)
