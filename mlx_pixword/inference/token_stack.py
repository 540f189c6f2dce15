"""A block's layers as one array of each kind, with their caches: a token step of all rows in one launch.

B  rows    A  layers    D  hidden size    G  key heads    d  head size    J  keys that a token sees, at most

New keys and values go into small arrays of their own, of the open window's last pixels or of the open window, and from
there into the large ones, some places at a time. MLX copies an array that is written to while a launch still reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..model.args import ModelArgs
from ..ops.decode_step import DECODE_STEP, Shape, decode_step, suits
from ..ops.dispatch.choose import available, choose, forward_only, mode
from .token_caches import Cache
from .token_layers import Grid, Matrices, angles


class Stack:
    """Layers and caches of a block; it is the function of `TokenLayers` on each layer in turn.

    Args:
        layers, caches: of each layer; what the caches hold is copied.
        start: places that the caches hold.
        recents: places of the small arrays; 1 where tokens take turns in one place, which the next place writes once.
        positions: of each turn to come, one for all rows or one a row, int ``[turns, 1 or B]``.
        bias: added to scores, ``[B, 1, 1, J]``, or None.
    """

    def __init__(
        self, args: ModelArgs, layers: Sequence[Matrices], caches: Sequence[Cache],
        positions: np.ndarray | Grid, bias: mx.array | None = None, start: int = 0, recents: int = 1,
    ) -> None:  # fmt: skip
        self._matrices = [mx.stack(list(kind)) for kind in zip(*(layer[:4] for layer in layers), strict=True)]
        self._keys, self._values = (mx.stack(list(kind)) for kind in zip(*(c.by_head() for c in caches), strict=True))
        rows, places = self._keys.shape[1], self._keys.shape[3]
        pairs = np.stack(list(angles(args, positions)), axis=-1)  # [turns, 1 or B, d / 2, 2]
        self._angles = mx.unstack(mx.array(np.broadcast_to(pairs, (len(pairs), rows, *pairs.shape[2:]))))
        self._bias = None if bias is None else bias.reshape(rows, places).astype(mx.float32)
        self._start, self._recents = start, min(recents, places)
        shape = (*self._keys.shape[:3], self._recents, self._keys.shape[4])
        self._recent_keys, self._recent_values = mx.zeros(shape, self._keys.dtype), mx.zeros(shape, self._keys.dtype)
        self._run: Callable[..., Any] = DECODE_STEP.reference
        self._shape = Shape(args.num_heads, args.qk_norm, args.rms_norm_eps)
        mx.eval(self._matrices, self._keys, self._values, self._angles, self._recent_keys, self._recent_values)

    def pays(self) -> bool:
        """Whether the kernel agrees with its reference on this device, and is as fast; if so, `step` runs it.

        One trial for all steps, at half of the places.
        """
        x = mx.zeros((self._keys.shape[1], self._matrices[0].shape[1]), self._keys.dtype)
        with forward_only():
            self._run = choose(DECODE_STEP, self._arguments(x, 0, self._keys.shape[3] // 2, 0))
        return self._run is not DECODE_STEP.reference

    def step(self, x: mx.array, turn: int, place: int) -> mx.array:
        """States ``[B, D]`` after the block, whose keys and values are put at a place and see those before.

        A place is the last one, again, or the next, or the first one, where a window begins.
        """
        if place < self._start:
            self._start = 0
        if place - self._start == self._recents:
            self._keys[:, :, :, self._start : place] = self._recent_keys
            self._values[:, :, :, self._start : place] = self._recent_values
            self._start = place
        run = decode_step if mode() == "verify" else self._run
        x, self._recent_keys, self._recent_values = run(*self._arguments(x, turn, self._start, place - self._start))
        return x

    def _arguments(self, x: mx.array, turn: int, count: int, recent: int) -> tuple[Any, ...]:
        caches = self._keys, self._values, self._recent_keys, self._recent_values
        return x, *self._matrices, *caches, self._angles[turn], self._bias, count, recent, self._shape


def stacks_run(args: ModelArgs) -> bool:
    """Whether there is a GPU with Metal, kernels are wanted, and layers of these widths, without biases, fit."""
    widths = (args.hidden_size, args.num_heads, args.num_kv_heads, args.head_size, args.intermediate_size)
    return args.has_plain_layers and available() and mode() != "off" and suits(*widths)
