"""Layers for rows: one place of each sequence at a time, against keys and values that are there, in few operations.

N  rows           D  hidden size    F  feed-forward width    J  keys that a row sees
H  query heads    G  key heads      d  head size             n  heads of all kinds, H + 2 G (queries, keys, values)

A row is so little work that the number of operations decides. Weights are laid out before: norms go into the matrices
behind them, and matrices with the same input lie side by side. It is the function of `Layer` in model.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .args import ModelArgs
from .elementary import softmax, swiglu
from .model import Layer
from .rotary import rotary_table


class Matrices(NamedTuple):
    """The matrices of a layer, each ``[inputs, outputs]``, with the weights of its norms folded in."""

    qkv: mx.array  # [D, n d]
    out: mx.array  # [H d, D]
    gate_up: mx.array  # [D, 2 F]
    down: mx.array  # [F, D]


def lay_out(layer: Layer, dtype: mx.Dtype) -> Matrices:
    """The matrices of a layer in the compute type."""
    a, f = layer.attention, layer.ffn
    return Matrices(
        side_by_side([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight], dtype, layer.attention_norm),
        side_by_side([a.o_proj.weight], dtype),
        side_by_side([f.gate_proj.weight, f.up_proj.weight], dtype, layer.ffn_norm),
        side_by_side([f.down_proj.weight], dtype),
    )


def side_by_side(weights: Sequence[mx.array], dtype: mx.Dtype, norm: nn.RMSNorm | None = None) -> mx.array:
    """``W [outputs, inputs]`` each to ``[inputs, all outputs]``; with a norm of weight g, ``W diag(g)``."""
    joined = mx.concatenate(list(weights))
    return mx.contiguous((joined if norm is None else joined * norm.weight).T.astype(dtype))


def turns(args: ModelArgs, positions: np.ndarray) -> mx.array:
    """RoPE as a product of complex numbers, which its pairs are: ``[...]`` to complex ``[..., n, 1, d / 2]``.

    Values are not turned; queries are also scaled by ``d^-0.5``.
    """
    table = rotary_table(max(args.max_seq_len, args.window_size**2), args.head_size, args.rope_theta)
    cos, sin = table[:, positions][..., None, None, :]  # each [..., 1, 1, d / 2]
    head = np.arange(args.num_heads + 2 * args.num_kv_heads)[:, None, None]
    turned = np.where(head < args.num_heads + args.num_kv_heads, cos + 1j * sin, 1)
    return mx.array((turned * np.where(head < args.num_heads, args.head_size**-0.5, 1)).astype(np.complex64))


class Cache:
    """Turned keys and values of one layer, ``[N, G, places, d]``, written in place."""

    def __init__(self, shape: Sequence[int], dtype: mx.Dtype) -> None:
        self.keys, self.values = mx.zeros(shape, dtype), mx.zeros(shape, dtype)

    def put(self, k: mx.array, v: mx.array, place: int) -> None:
        """Write ``[N, G, J, d]`` from a place on."""
        self.keys[:, :, place : place + k.shape[2]] = k
        self.values[:, :, place : place + v.shape[2]] = v

    def first(self, places: int) -> tuple[mx.array, mx.array]:
        """Keys and values of the first places."""
        return self.keys[:, :, :places], self.values[:, :, :places]


class Rows:
    """What a layer does with rows.

    MLX's fast operations are one kernel each on a GPU, and up to a dozen operations on a CPU. There, the norm of a
    state and that of its queries and keys become one factor a head, with z = x W and s^2 = mean(x^2) + eps:

        (z / s) / sqrt(mean((z / s)^2) + eps) = z / sqrt(mean(z^2) + eps s^2)

    Args:
        args: the shape of the model.
        fast: use MLX's fast operations; None: where they are kernels, and for types that need care.
    """

    def __init__(self, args: ModelArgs, fast: bool | None = None) -> None:
        on_cpu = mx.default_device() == mx.cpu and args.compute_dtype == mx.float32
        self._args, self._fast = args, not on_cpu if fast is None else fast
        self._splits = [args.num_heads, args.num_heads + args.num_kv_heads]
        heads, size, eps = args.num_heads + 2 * args.num_kv_heads, args.head_size, args.rms_norm_eps
        normed = (np.arange(heads) < self._splits[1]) & args.qk_norm
        self._mean = _means(np.ones((args.hidden_size, 1)))
        self._state_means = _means(np.tile(np.where(normed, eps, 1), (args.hidden_size, 1)))  # [D, n]
        self._head_means = _means(np.repeat(np.diag(normed), size, axis=0), size)  # [n d, n]
        self._eps, self._offsets = mx.full((1, 1), eps), mx.array(np.where(normed, eps * eps, eps), mx.float32)[None]

    def norm(self, x: mx.array) -> mx.array:
        """RMSNorm without weight over the last axis."""
        if self._fast:
            return mx.fast.rms_norm(x, None, self._args.rms_norm_eps)
        return x * mx.rsqrt(mx.addmm(self._eps, x * x, self._mean))

    def heads(self, x: mx.array, qkv: mx.array) -> mx.array:
        """Normed queries, keys and values ``[N, n, 1, d]`` of states ``[N, D]``, before RoPE."""
        if self._fast:
            heads = self._split_heads(self.norm(x) @ qkv)
            if not self._args.qk_norm:
                return heads
            qk, v = mx.split(heads, self._splits[1:], axis=1)
            return mx.concatenate([self.norm(qk), v], axis=1)
        z, spread = x @ qkv, mx.addmm(self._offsets, x * x, self._state_means)
        if self._args.qk_norm:
            spread = mx.addmm(spread, z * z, self._head_means)
        return self._split_heads(z) * mx.expand_dims(mx.rsqrt(spread), (2, 3))

    def _split_heads(self, x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], -1, 1, self._args.head_size)

    def combine(
        self, layer: Matrices, x: mx.array, heads: mx.array, turn: mx.array, cache: Cache, place: int,
        bias: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        """The layer for states ``x [N, D]``, given their `heads` ``[N, n, 1, d]``.

        Args:
            turn: complex ``[N or 1, n, 1, d / 2]``, see `turns`.
            cache, place: where their keys and values go; they see all places up to their own.
            bias: added to scores, ``[N, 1, 1, places]``; None: 0.
        """
        turned = (heads.astype(mx.float32).view(mx.complex64) * turn).view(mx.float32).astype(x.dtype)
        q, k, v = mx.split(turned, self._splits, axis=1)
        cache.put(k, v, place)
        x = mx.addmm(x, self._attend(q, *cache.first(place + 1), bias), layer.out)
        gate, up = mx.split(self.norm(x) @ layer.gate_up, 2, axis=-1)
        return mx.addmm(x, swiglu(gate, up), layer.down)

    def _attend(self, q: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None) -> mx.array:
        """``softmax(q k^T + bias) v`` of scaled queries: ``[N, H, 1, d]`` over ``[N, G, J, d]`` to ``[N, H d]``."""
        bias = None if bias is None else bias[..., : keys.shape[2]]
        if self._fast:
            y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=1.0, mask=bias)
        else:
            scores = q.reshape(*keys.shape[:2], -1, q.shape[-1]) @ keys.swapaxes(-1, -2)  # [N, G, H / G, J]
            y = softmax(scores if bias is None else scores + bias) @ values
        return y.reshape(q.shape[0], -1)


def _means(pattern: np.ndarray, count: int = 0) -> mx.array:
    """A matrix that takes means of squares: a pattern over the number of rows that count."""
    return mx.array((pattern / (count or len(pattern))).astype(np.float32))
