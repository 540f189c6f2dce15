"""Windows: which pixels of an image belong together, and in which order. Pure functions on NumPy arrays.

S  image size, the longer side at most      w  window side       P  pixels a window, w * w
N  windows of an image
"""

from functools import lru_cache

import numpy as np

from ..common.errors import PixWordError


def check_geometry(image_size: int, window_size: int) -> None:
    """Raise ``PixWordError`` unless ``S`` is a positive multiple of ``w >= 1``."""
    if window_size < 1 or image_size < 1 or image_size % window_size:
        raise PixWordError(
            f"image size must be a positive multiple of the window size, got image size {image_size} and window size "
            f"{window_size}; try image size {max(1, round(image_size / max(1, window_size))) * max(1, window_size)}"
        )


def fit_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Size of an image as the model sees it: longer side at most ``S``, aspect ratio kept, never enlarged.

    Args:
        height, width: pixels, at least 1.
        image_size: ``S``, pixels.

    Returns:
        ``(height, width)``; the shorter side is ``int(short / long * S)``, at least 1.
    """
    if height < 1 or width < 1:
        raise PixWordError(f"an image needs at least one pixel, got height {height} and width {width}")
    longer, shorter = max(height, width), min(height, width)
    if longer <= image_size:
        return height, width
    shorter = max(1, int(shorter / longer * image_size))
    return (image_size, shorter) if height >= width else (shorter, image_size)


def num_windows(height: int, width: int, window_size: int) -> int:
    """Windows that hold at least one valid pixel, ``ceil(height / w) * ceil(width / w)``."""
    return -(-height // window_size) * -(-width // window_size)


@lru_cache(maxsize=64)
def window_order(height: int, width: int, window_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Window order of an image's pixels: windows row-major, pixels row-major inside a window.

    Returns:
        ``order`` int32 ``[height * width]``, the flat pixel index at each place of window order, and ``lengths`` int32
        ``[N]``, the valid pixels of each window (fewer than ``P`` only at the right and bottom edges).
        Both are cached and read-only.
    """
    columns = -(-width // window_size)
    window = (np.arange(height) // window_size)[:, None] * columns + np.arange(width) // window_size  # [height, width]
    order = np.argsort(window.ravel(), kind="stable").astype(
        np.int32
    )  # stable: row-major order survives inside a window
    lengths = np.bincount(window.ravel()).astype(np.int32)
    order.flags.writeable = lengths.flags.writeable = False
    return order, lengths


def valid_pixels(lengths: np.ndarray, window_size: int) -> np.ndarray:
    """Boolean ``[N, P]``: a window's valid pixels come first, its padding after them."""
    return np.arange(window_size**2) < lengths[:, None]


def to_windows(tokens: np.ndarray, window_size: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut an image of pix tokens into windows.

    Args:
        tokens: int ``[height, width]``.
        window_size: ``w``, pixels.
        padding: the padding pix token, ``K``.

    Returns:
        ``windows`` int32 ``[N, P]``, valid pixels first, then padding; ``lengths`` int32 ``[N]``.

    Source: arXiv 2605.14028, windows; ragged edges hold their valid pixels only.
    """
    order, lengths = window_order(*tokens.shape, window_size)
    windows = np.full((len(lengths), window_size**2), padding, np.int32)
    windows[valid_pixels(lengths, window_size)] = tokens.ravel()[order]
    return windows, lengths


def from_windows(windows: np.ndarray, height: int, width: int, window_size: int) -> np.ndarray:
    """Put windows back together: the inverse of ``to_windows``, int ``[N, P]`` to ``[height, width]``."""
    order, lengths = window_order(height, width, window_size)
    if windows.shape != (len(lengths), window_size**2):
        raise PixWordError(
            f"a {width}x{height} image has windows {(len(lengths), window_size**2)}, got {windows.shape}"
        )
    tokens = np.empty(height * width, windows.dtype)
    tokens[order] = windows[valid_pixels(lengths, window_size)]
    return tokens.reshape(height, width)
