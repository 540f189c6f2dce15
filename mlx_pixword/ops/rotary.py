"""Rotary positions: tables computed in float64, rotation of interleaved pairs in float32.

L  elements of a row    P  pixels a window    d  head size
"""

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

SCALINGS = ("llama3", "linear", "none")


class Scaling(NamedTuple):
    """How rotary frequencies are scaled: as Llama 3.1 does, all by one factor, or not at all."""

    kind: str = "llama3"
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192


LLAMA_31 = Scaling()


@lru_cache(maxsize=8)
def inverse_frequencies(head_size: int, theta: float, scaling: Scaling = LLAMA_31) -> np.ndarray:
    """Rotary frequencies, radians a position, with Llama-3.1 scaling unless another is given; float64 ``[d / 2]``.

    ``theta^(-2i/d)``, divided by 8 where the wavelength exceeds 8192 positions, unchanged where it is below
    8192 / 4, and blended linearly in between (arXiv 2407.21783).
    """
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    kind, factor, low, high, context = scaling
    if kind != "llama3":
        return frequency / (factor if kind == "linear" else 1)
    blend = np.clip((context * frequency / (2 * np.pi) - low) / (high - low), 0, 1)
    return frequency * ((1 - blend) / factor + blend)


@lru_cache(maxsize=8)
def rotary_table(length: int, head_size: int, theta: float, scaling: Scaling = LLAMA_31) -> np.ndarray:
    """Cosine and sine of every angle, computed in float64: float32 ``[2, length, d / 2]``."""
    angle = np.arange(length)[:, None] * inverse_frequencies(head_size, theta, scaling)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


@lru_cache(maxsize=8)
def window_table(side: int, head_size: int, theta: float) -> np.ndarray:
    """Cosine and sine by place in a window: float32 ``[2, P, d / 2]``, where pair m turns by the column if m is even.

    And by the row if m is odd, each pair at its own frequency.
    """
    row, column = np.divmod(np.arange(side**2), side)
    table, even = rotary_table(side, head_size, theta), np.arange(head_size // 2) % 2 == 0
    return np.where(even, table[:, column], table[:, row])


def turn_by_axes(table: mx.array, positions: mx.array) -> mx.array:
    """Rows of a `rotary_table` ``[2, length, d / 2]`` for positions.

    Args:
        positions: int32 ``[B, L]``; or rows and columns ``[B, L, 2]``, of which pair m takes the column if m is even
            and the row if m is odd.

    Returns:
        ``[2, B, L, d / 2]``.
    """
    if positions.ndim == 2:
        return table[:, positions]
    even = mx.arange(table.shape[-1]) % 2 == 0
    return mx.where(even, table[:, positions[..., 1]], table[:, positions[..., 0]])


def rotate(x: mx.array, rotary: mx.array) -> mx.array:
    """RoPE on interleaved pairs: ``x [..., d]`` by ``rotary [2, ..., d / 2]`` (cosine, sine), in float32."""
    cos, sin = rotary[0], rotary[1]
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    return mx.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
