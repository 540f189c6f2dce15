"""MLX's global random state: read, put back, and left alone by what only seems to draw from it."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


def random_state() -> list[int]:
    """MLX's random state, two words of 32 bits."""
    return [int(word) for word in mx.random.state[0].tolist()]  # type: ignore[index]


def set_random_state(words: list[int]) -> None:
    """Go on from a state: MLX makes the two words of a seed's upper and lower half."""
    mx.random.seed((words[0] << 32) | words[1])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """What is drawn inside, such as weights that are read over at once, changes nothing outside."""
    words = random_state()
    try:
        yield
    finally:
        set_random_state(words)
