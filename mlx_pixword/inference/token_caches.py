"""Keys and values that token steps of one layer see, by MLX, and the attention over them.

B  rows    H  query heads    G  key heads    d  head size    J  keys that a token sees
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx

from ..ops.conditional_attention import CONDITIONAL_ATTENTION, conditional_attention
from ..ops.dispatch.choose import available, choose, forward_only, mode
from ..ops.span_attention import suits

Array: TypeAlias = Any  # MLX's or, in token_layers_numpy.py, NumPy's


class Cache:
    """Turned keys and values ``[B, G, places, d]`` each, of all places; a token's are written in place."""

    def __init__(self, shape: Sequence[int], dtype: mx.Dtype) -> None:
        self.keys: Array = mx.zeros(shape, dtype)
        self.values: Array = mx.zeros(shape, dtype)

    def put(self, k: Array, v: Array, place: int) -> None:
        """Write ``[B, G, J, d]`` from a place on."""
        self.keys[:, :, place : place + k.shape[2]] = k
        self.values[:, :, place : place + v.shape[2]] = v

    def by_head(self) -> tuple[Array, Array]:
        """Keys and values ``[B, G, places, d]``."""
        return self.keys, self.values

    def attend(self, q: Array, k: Array, v: Array, place: int, bias: Array = None) -> Array:
        """Put a token of each row at a place, and attend from there to all places up to it.

        Args:
            q: turned and scaled queries ``[B, H, 1, d]``.
            k, v: turned keys, and values ``[B, G, 1, d]``.
            bias: added to scores, 0 or minus infinity ``[B, 1, 1, places]``; None: 0.

        Returns:
            ``softmax(q k^T + bias) v``: ``B H d`` numbers.
        """
        self.put(k, v, place)
        keys, values = self.keys[:, :, : place + 1], self.values[:, :, : place + 1]
        mask = None if bias is None else bias[..., : place + 1]
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=mask)


class SequenceCache(Cache):
    """Keys and values ``[B, places, G, d]`` of closed places, and apart from them those of the open one.

    In the language block the pixels of a window take turns in one place. MLX copies an array that is written to while a
    launch still reads it, so the open place has small arrays of its own, which are written once, when the next place
    opens: no pixel copies the sequence.

    Args:
        shape: ``[B, G, places, d]``, as of `Cache`.
        firsts: the first place that each row sees, int ``[B]``; empty: 0. A bias hides the same places.
    """

    def __init__(self, shape: Sequence[int], dtype: mx.Dtype, firsts: Sequence[int] = ()) -> None:
        rows, groups, places, size = shape
        super().__init__((rows, places, groups, size), dtype)
        self._firsts = mx.array(list(firsts or [0] * rows), mx.int32)
        self._open: tuple[int, mx.array, mx.array] | None = None  # its place, keys and values [B, 1, G, d]
        self._spans: mx.array | None = None  # int32 [B, 1, 2], the closed places that rows see
        self._attention: Callable[..., mx.array] | None = None  # chosen by the first token

    def put(self, k: mx.array, v: mx.array, place: int) -> None:
        self.keys[:, place : place + k.shape[2]] = k.swapaxes(1, 2)
        self.values[:, place : place + v.shape[2]] = v.swapaxes(1, 2)

    def by_head(self) -> tuple[mx.array, mx.array]:
        return self.keys.swapaxes(1, 2), self.values.swapaxes(1, 2)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, place: int, bias: Array = None) -> mx.array:
        """As `Cache`; a place is the open one, again, or a later one."""
        if self._open is not None and self._open[0] != place:
            last, keys, values = self._open
            self.keys[:, last : last + 1], self.values[:, last : last + 1] = keys, values
            self._spans = None
        q, own_k, own_v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B, 1, n, d]
        self._open = place, own_k, own_v
        if self._spans is None:
            self._spans = mx.stack([self._firsts, mx.full(self._firsts.shape, place, mx.int32)], axis=-1)[:, None]
        if self._attention is None:
            self._attention = _kernel(q, own_k, own_v, self.keys, self.values, self._spans) or attend_with_own
        if self._attention is not attend_with_own:  # the kernel scales
            return self._attention(q * q.shape[-1] ** 0.5, own_k, own_v, self.keys, self.values, self._spans)
        mask = None if bias is None else bias[..., :place]
        return attend_with_own(q, own_k, own_v, self.keys[:, :place], self.values[:, :place], mask)


def _kernel(*args: mx.array) -> Callable[..., mx.array] | None:
    """The kernel of conditional attention, where it runs for these arguments and pays; one trial for all steps."""
    if not available() or mode() == "off" or not suits(args[0], args[3]):
        return None
    if mode() == "verify":
        return conditional_attention
    with forward_only():
        run = choose(CONDITIONAL_ATTENTION, args)
    return None if run is CONDITIONAL_ATTENTION.reference else run


def attend_with_own(
    q: mx.array, own_k: mx.array, own_v: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None
) -> mx.array:
    """Attention of one query a row to places that all heads see, and to its own key, in few operations.

    Args:
        q: turned and scaled queries ``[B, 1, H, d]``.
        own_k, own_v: ``[B, 1, G, d]``.
        keys, values: ``[B, J, G, d]``.
        bias: added to the scores of places, ``[B, 1, 1, J]``, or None.

    Returns:
        ``[B, G, H / G, d]``; the softmax is float32.
    """
    rows, _, heads, size = q.shape
    groups = keys.shape[2]
    q = q.reshape(rows, groups, heads // groups, size)
    scores = q @ keys.transpose(0, 2, 3, 1)  # [B, G, H / G, J]
    own = q @ own_k.transpose(0, 2, 3, 1)  # [B, G, H / G, 1]
    scores = mx.concatenate([scores if bias is None else scores + bias, own], axis=-1)
    shares = mx.softmax(scores, axis=-1, precise=True)
    return mx.addmm(shares[..., -1:] * own_v.swapaxes(1, 2), shares[..., :-1], values.swapaxes(1, 2))
