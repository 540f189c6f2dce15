"""Choosing pixels: samples of many images at once, each with keys of its own.

B  rows: images at once    T  valid pixels of an image    K  pix tokens
"""

import mlx.core as mx
import numpy as np

from .filters import filtered
from .settings import SampleArgs
from .token_caches import Array

AHEAD = 16  # pixels that noise is made for and that are computed in one go


NOISE = 2**24  # most random numbers that are made in one go


class PixelSampler:
    """Chooses pixels of ``B`` images: the one numbered ``t`` in image ``i`` by key ``t`` of the seed ``seed + i``.

    Gumbel noise added to scores makes the likeliest one a sample, and is made for some pixels at once.
    """

    def __init__(self, args: SampleArgs, count: int, pixels: int) -> None:
        self._args, self._temperature, seed = args, args.temperature(1.0), args.chosen_seed()
        self._filters = args.top_p < 1 or args.min_p > 0 or args.top_k > 0
        self._keys = mx.stack([mx.random.split(mx.random.key(seed + n), pixels) for n in range(count)])  # [B, T, 2]
        self._noise: Array = None  # some pixels' [B, K]
        self._next = 0  # number of the pixel behind those that there is noise for

    def __call__(self, logits: Array, number: int) -> Array:
        """Tokens ``[B]`` of the pixel with a number, from logits ``[B, K]``; numbers come in ascending order."""
        library = mx if isinstance(logits, mx.array) else np
        if self._temperature == 0:
            return library.argmax(logits, axis=-1)
        if number >= self._next:
            self._make_noise(logits, number)
        scores = filtered(mx.array(logits), self._args) if self._filters else logits
        scores = scores if isinstance(logits, mx.array) else np.array(scores)
        return library.argmax(scores + self._noise[number - self._next], axis=-1)

    def _make_noise(self, logits: Array, number: int) -> None:
        shape = logits.shape
        ahead = max(1, min(AHEAD, NOISE // (shape[0] * shape[1])))
        keys = self._keys[:, number : number + ahead]  # [B, ahead, 2]
        noise = mx.vmap(lambda key: mx.random.gumbel(shape[1:], key=key))(keys.reshape(-1, 2))
        noise = mx.contiguous(self._temperature * noise.reshape(*keys.shape[:2], -1).swapaxes(0, 1))
        self._noise = mx.unstack(noise) if isinstance(logits, mx.array) else np.array(noise)  # ahead times [B, K]
        self._next = number + keys.shape[1]
