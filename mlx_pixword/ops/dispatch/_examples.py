"""Arguments that kernels are tried with: random, and the same in every process."""

from collections.abc import Sequence

import mlx.core as mx


def normal(shape: Sequence[int], dtype: mx.Dtype, seed: int) -> mx.array:
    """Normal numbers."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def whole(shape: Sequence[int], below: int) -> mx.array:
    """Integers from 0 to below a limit, int32."""
    return mx.random.randint(0, below, shape, key=mx.random.key(99))


def bucket(count: int) -> int:
    """The power of two that a count does not exceed: sizes of one bucket share a decision."""
    return 1 << max(count - 1, 0).bit_length()
