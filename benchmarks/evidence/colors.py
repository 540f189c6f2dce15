"""Colours of 24 bits, ``r + 256 g + 65536 b``, as windows of patch arms hold them."""

import mlx.core as mx

RAW = 1  # a fold factor that keeps all 24 bits: patch arms see the pixels themselves
NO_PIXEL = 2**24


def levels(colors: mx.array) -> mx.array:
    """24-bit colours ``[...]`` to uint8 ``[..., 3]``."""
    return mx.stack([colors & 255, (colors >> 8) & 255, (colors >> 16) & 255], axis=-1).astype(mx.uint8)


def channels(colors: mx.array, fold: int = RAW) -> mx.array:
    """24-bit colours ``[...]`` to ``[..., 3]`` in -1..1, each level folded to the centre of its bin."""
    found = levels(colors)
    if fold > 1:
        found = found // fold * fold + (fold - 1) // 2
    return found.astype(mx.float32) / 127.5 - 1
