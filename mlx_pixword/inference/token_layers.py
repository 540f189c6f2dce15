"""Layers for token steps: one token of each row at a time, against keys and values that are there, in few operations.

B  rows           D  hidden size    F  feed-forward width    J  keys that a token sees
H  query heads    G  key heads      d  head size             n  heads of all kinds, H + 2 G (queries, keys, values)

A token step is so little work that the number of operations decides. Weights are laid out before: norms go into the
matrices behind them, and matrices with the same input lie side by side. It is the function of `Layer` in
model/layers.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.args import ModelArgs
from ..model.layers import Layer, plain_bias, plain_weight
from ..ops.exponentials import swiglu
from ..ops.rotary import rotary_table
from .token_caches import Array, Cache, SequenceCache


class Additions(NamedTuple):
    """What layers of some language models have besides matrices: biases, and weights of norms of queries and keys."""

    qkv: Array  # [n d]
    out: Array  # [D]
    gate_up: Array  # [2 F]
    down: Array  # [D]
    norms: Array  # [n, 1, d], or a single one where these norms have no weights


class Matrices(NamedTuple):
    """The matrices of a layer, each ``[inputs, outputs]``, with the weights of its norms folded in."""

    qkv: Array  # [D, n d]
    out: Array  # [H d, D]
    gate_up: Array  # [D, 2 F]
    down: Array  # [F, D]
    more: Additions | None = None


def lay_out(layer: Layer, dtype: mx.Dtype) -> Matrices:
    """The matrices of a layer in the compute type, adapters added."""
    a, f = layer.attention, layer.ffn
    return Matrices(
        side_by_side([plain_weight(w) for w in (a.q_proj, a.k_proj, a.v_proj)], dtype, layer.attention_norm),
        side_by_side([plain_weight(a.o_proj)], dtype),
        side_by_side([plain_weight(f.gate_proj), plain_weight(f.up_proj)], dtype, layer.ffn_norm),
        side_by_side([plain_weight(f.down_proj)], dtype),
        _additions(layer, dtype),
    )


def _additions(layer: Layer, dtype: mx.Dtype) -> Additions | None:
    a, f = layer.attention, layer.ffn
    groups = ((a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (f.gate_proj, f.up_proj), (f.down_proj,))
    if "q_norm" not in a and all(plain_bias(linear) is None for group in groups for linear in group):
        return None
    norms = mx.ones((1, 1, 1))
    if "q_norm" in a:
        weights = [(a.q_norm.weight, a.q_proj), (a.k_norm.weight, a.k_proj), (mx.ones_like(a.q_norm.weight), a.v_proj)]
        every = [mx.broadcast_to(w, (_outputs(linear) // w.size, 1, w.size)) for w, linear in weights]
        norms = mx.concatenate(every)
    return Additions(*(array.astype(dtype) for array in (*map(_biases, groups), norms)))


def _biases(linears: Sequence[nn.Module]) -> mx.array:
    """Biases side by side, zeros where a layer has none."""
    found = [plain_bias(linear) for linear in linears]
    return mx.concatenate([mx.zeros(_outputs(i)) if b is None else b for i, b in zip(linears, found, strict=True)])


def _outputs(linear: nn.Module) -> int:
    return plain_weight(linear).shape[0]


def side_by_side(weights: Sequence[mx.array], dtype: mx.Dtype, norm: nn.RMSNorm | None = None) -> mx.array:
    """``W [outputs, inputs]`` each to ``[inputs, all outputs]``; with a norm of weight g, ``W diag(g)``."""
    joined = mx.concatenate(list(weights))
    return mx.contiguous((joined if norm is None else joined * norm.weight).T.astype(dtype))


class Grid(NamedTuple):
    """Positions that have a row and a column, integers ``[...]`` each."""

    rows: np.ndarray
    columns: np.ndarray


def angles(args: ModelArgs, positions: np.ndarray | Grid) -> np.ndarray:
    """Cosine and sine of RoPE at positions ``[...]``, float32 ``[2, ..., d / 2]``."""
    length = max(args.max_seq_len, args.window_size**2)
    table = rotary_table(length, args.head_size, args.rope_theta, args.scaling)
    if not isinstance(positions, Grid):
        return table[:, positions]
    even = np.arange(args.head_size // 2) % 2 == 0
    return np.where(even, table[:, positions.columns], table[:, positions.rows])


def turn_factors(args: ModelArgs, positions: np.ndarray | Grid) -> np.ndarray:
    """RoPE as a product of complex numbers, which its pairs are: ``[...]`` to complex ``[..., n, 1, d / 2]``.

    Values are not turned; queries are also scaled by ``d^-0.5``.
    """
    cos, sin = angles(args, positions)[..., None, None, :]  # each [..., 1, 1, d / 2]
    head = np.arange(args.num_heads + 2 * args.num_kv_heads)[:, None, None]
    turned = np.where(head < args.num_heads + args.num_kv_heads, cos + 1j * sin, 1)
    return (turned * np.where(head < args.num_heads, args.head_size**-0.5, 1)).astype(np.complex64)


class TokenLayers:
    """What a layer does in a token step, by MLX's fast operations: one kernel each on a GPU."""

    def __init__(self, args: ModelArgs) -> None:
        self._args = args
        self._splits = [args.num_heads, args.num_heads + args.num_kv_heads]
        self._still = self.turns(np.zeros(1, int)) if args.no_rope_every else None

    def keep(self, array: mx.array) -> Array:
        """An array in the library that token steps are computed with."""
        return array

    def laid_out(self, layer: Layer) -> Matrices:
        """`lay_out` in that library."""
        plain = lay_out(layer, self._args.compute_dtype)
        kept = Matrices(*map(self.keep, plain[:4]))
        return kept._replace(more=plain.more and Additions(*map(self.keep, plain.more)))

    def turns(self, positions: np.ndarray | Grid) -> Array:
        """What turns the heads of tokens at these positions, complex ``[..., n, 1, d / 2]``, see `turn_factors`."""
        return self.keep(mx.array(turn_factors(self._args, positions)))

    def of_layer(self, number: int, turn: Array) -> Array:
        """What turns queries and keys of a layer: ``turn``, or nothing where the layer has no RoPE."""
        every = self._args.no_rope_every
        return self._still if every and (number + 1) % every == 0 else turn

    def new_cache(self, count: int, places: int) -> Cache:
        """An empty cache of ``count`` rows."""
        return Cache((count, self._args.num_kv_heads, places, self._args.head_size), self._args.compute_dtype)

    def new_sequence(self, places: int, firsts: Sequence[int]) -> Cache:
        """An empty cache whose tokens take turns in a place; each row sees places from its first one on."""
        shape = (len(firsts), self._args.num_kv_heads, places, self._args.head_size)
        return SequenceCache(shape, self._args.compute_dtype, firsts)

    def norm(self, x: Array) -> Array:
        """RMSNorm without weight over the last axis."""
        return mx.fast.rms_norm(x, None, self._args.rms_norm_eps)

    def heads(self, x: Array, layer: Matrices) -> Array:
        """Normed queries, keys and values ``[B, n, 1, d]`` of states ``[B, D]``, before RoPE."""
        z = self.norm(x) @ layer.qkv
        z = z if layer.more is None else z + layer.more.qkv
        heads = z.reshape(x.shape[0], -1, 1, self._args.head_size)
        if not self._args.qk_norm:
            return heads
        qk, v = mx.split(heads, self._splits[1:], axis=1)
        heads = mx.concatenate([self.norm(qk), v], axis=1)
        return heads if layer.more is None else heads * layer.more.norms

    def combine(
        self, layer: Matrices, x: Array, heads: Array, turn: Array, cache: Cache, place: int, bias: Array = None
    ) -> Array:
        """The layer for states ``x [B, D]``, given their `heads` ``[B, n, 1, d]``.

        Args:
            turn: complex ``[B or 1, n, 1, d / 2]``, from `turns`.
            cache, place: where their keys and values go; they see all places up to their own.
            bias: added to scores, ``[B, 1, 1, places]``; None: 0.
        """
        q, k, v = self._turned(heads, turn)
        y = cache.attend(q, k, v, place, bias).reshape(x.shape[0], -1)
        if (more := layer.more) is None:
            x = self._add_product(x, y, layer.out)
            return self._add_product(x, self._swiglu(self.norm(x) @ layer.gate_up), layer.down)
        x = self._add_product(x + more.out, y, layer.out)
        return self._add_product(x + more.down, self._swiglu(self.norm(x) @ layer.gate_up + more.gate_up), layer.down)

    def logits(self, x: Array, head: Array) -> Array:
        """``[B, D]`` to float32 ``[B, K]``."""
        return (self.norm(x) @ head).astype(mx.float32)

    def _turned(self, heads: Array, turn: Array) -> Array:
        """Queries, keys and values ``[B, .., 1, d]`` after RoPE."""
        turned = (heads.astype(mx.float32).view(mx.complex64) * turn).view(mx.float32)
        return mx.split(turned.astype(heads.dtype), self._splits, axis=1)

    def _add_product(self, x: Array, y: Array, matrix: Array) -> Array:
        return mx.addmm(x, y, matrix)

    def _swiglu(self, gate_up: Array) -> Array:
        return swiglu(*mx.split(gate_up, 2, axis=-1))
