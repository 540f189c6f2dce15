"""Layers for token steps on a CPU, by NumPy: its calls cost less than MLX's, and its exponentials are vectorised.

B  rows    D  hidden size    G  key heads    H  query heads    d  head size    n  heads of all kinds, H + 2 G

With the preset tiny on x86, NumPy takes a quarter of the time of MLX's CPU build, for one row and for 64.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..model.args import ModelArgs
from .token_caches import Array, Cache
from .token_layers import Matrices, TokenLayers


class NumpyCache(Cache):
    """Turned keys ``[B, G, d, places]``, which products take several times faster, and values ``[B, G, places, d]``."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.values = np.zeros(shape, np.float32)
        self.keys = np.zeros((*shape[:2], shape[3], shape[2]), np.float32)

    def put(self, k: Array, v: Array, place: int) -> None:
        self.keys[..., place : place + k.shape[2]] = k.swapaxes(-1, -2)
        self.values[:, :, place : place + v.shape[2]] = v

    def attend(self, q: Array, k: Array, v: Array, place: int, bias: Array = None) -> Array:
        self.put(k, v, place)
        keys, values = self.keys[..., : place + 1], self.values[:, :, : place + 1]
        scores = q.reshape(*keys.shape[:2], -1, q.shape[-1]) @ keys  # [B, G, H / G, J]
        if bias is not None:
            scores += bias[..., : place + 1]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        return (scores @ values) / scores.sum(axis=-1, keepdims=True)


class NumpyTokenLayers(TokenLayers):
    """What a layer does in a token step, in float32.

    The norm of a state and that of its queries and keys are one factor a head, with z = x W, s^2 = mean(x^2) + eps:

        (z / s) / sqrt(mean((z / s)^2) + eps) = z / sqrt(mean(z^2) + eps s^2)

    A bias b of the projection makes z / s + b of z / s, which is the same with z + s b for z.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        heads, size, eps = args.num_heads + 2 * args.num_kv_heads, args.head_size, args.rms_norm_eps
        normed = (np.arange(heads) < self._splits[1]) & args.qk_norm
        self._mean = _float32(np.full((args.hidden_size, 1), 1 / args.hidden_size))
        self._state_means = _float32(np.tile(np.where(normed, eps, 1) / args.hidden_size, (args.hidden_size, 1)))
        self._head_means = _float32(np.repeat(np.diag(normed) / size, size, axis=0))  # [n d, n]
        self._eps, self._offsets = np.float32(eps), _float32(np.where(normed, eps * eps, eps))

    def keep(self, array: mx.array) -> Array:
        return np.array(array)

    def new_cache(self, count: int, places: int) -> Cache:
        return NumpyCache((count, self._args.num_kv_heads, places, self._args.head_size))

    def new_sequence(self, places: int, firsts: Sequence[int]) -> Cache:
        return self.new_cache(len(firsts), places)

    def norm(self, x: Array) -> Array:
        return x / np.sqrt((x * x) @ self._mean + self._eps)

    def heads(self, x: Array, layer: Matrices) -> Array:
        z, spread = x @ layer.qkv, (x * x) @ self._state_means + self._offsets  # [B, n d], [B, n]
        if layer.more is not None:
            z += np.sqrt((x * x) @ self._mean + self._eps) * layer.more.qkv
        if self._args.qk_norm:
            spread += (z * z) @ self._head_means
        heads = z.reshape(x.shape[0], -1, 1, self._args.head_size) / np.sqrt(spread)[:, :, None, None]
        return heads if layer.more is None else heads * layer.more.norms

    def logits(self, x: Array, head: Array) -> Array:
        return self.norm(x) @ head

    def _turned(self, heads: Array, turn: Array) -> Array:
        turned = (heads.view(np.complex64) * turn).view(np.float32)
        queries, keys = self._splits
        return [turned[:, :queries], turned[:, queries:keys], turned[:, keys:]]

    def _add_product(self, x: Array, y: Array, matrix: Array) -> Array:
        return x + y @ matrix

    def _swiglu(self, gate_up: Array) -> Array:
        half = gate_up.shape[1] // 2
        gate, up = gate_up[:, :half], gate_up[:, half:]
        return gate / (1 + np.exp(-gate)) * up


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
