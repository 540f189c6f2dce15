"""Layers: a Llama layer that attends in a sequence, inside windows, or from query pixels to a sequence.

B  rows of a batch             L  elements of a row                     D  hidden size
U  distinct windows            P  pixels a window, w * w                 R  pixels that are read out of a window
H  query heads, G  key heads   d  head size, D / H                       Q  query pixels a row
c  elements of a row that count in the loss
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..common.errors import PixWordError
from ..ops.attention import attention
from ..ops.conditional_attention import conditional_attention
from ..ops.exponentials import swiglu
from ..ops.rotary import rotate
from ..ops.window_attention import window_attention
from .args import ModelArgs

GROUPS = (128, 64, 32)  # weights that share a scale, as MLX has them


class Linear(nn.Linear):
    """``y = x W^T``, plus a bias where asked for; the weight is kept in float32 and used in the type of ``x``.

    It is MLX's own layer, so that `nn.quantize` and mlx-lm's LoRA find and replace it. Only the type differs: training
    needs a float32 master weight, and MLX's layer would then compute in float32 whatever the type of ``x``.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight.astype(x.dtype).T
        return y + self.bias.astype(x.dtype) if "bias" in self else y

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", quantize_input: bool = False
    ) -> Any:
        """This layer in few bits; it stays as it is where no group divides its width.

        `nn.quantize` calls it, from here and from outside. A group that does not divide the width gives way to the
        next smaller one.
        """
        if mode != "affine":
            width = self.weight.shape[1]
            return self if width % 32 else super().to_quantized(group_size, bits, mode, quantize_input)
        groups = [group for group in GROUPS if group <= (group_size or 64) and self.weight.shape[1] % group == 0]
        return QuantizedLinear.from_linear(self, groups[0], bits or 4) if groups else self


class QuantizedLinear(nn.QuantizedLinear):
    """MLX's quantised layer, which computes in the type of ``x`` whatever the type of its scales."""

    @classmethod
    def from_linear(
        cls, linear_layer: nn.Module, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> "QuantizedLinear":
        """Quantise a layer. Scales are rounded to float16, which files keep, so that a loaded model is the same."""
        layer: QuantizedLinear = super().from_linear(linear_layer, group_size or 64, bits or 4, mode)
        for name in ("scales", "biases"):
            layer[name] = layer[name].astype(mx.float16).astype(linear_layer.weight.dtype)
        layer.freeze()
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        scales, biases = (self[name].astype(x.dtype) for name in ("scales", "biases"))
        y = mx.quantized_matmul(x, self.weight, scales, biases, True, self.group_size, self.bits, self.mode)
        return y + self.bias.astype(x.dtype) if "bias" in self else y


def plain_weight(linear: nn.Module) -> mx.array:
    """The matrix ``[outputs, inputs]`` that a linear layer multiplies with, whatever form it is kept in.

    A quantised layer is dequantised; of mlx-lm's `LoRALinear` it is the sum ``W + scale (A B)^T``.

    Raises:
        PixWordError: a layer of another kind, which has no single matrix.
    """
    if isinstance(linear, nn.QuantizedLinear):
        return mx.dequantize(
            linear.weight, linear.scales, linear.get("biases"), linear.group_size, linear.bits, linear.mode
        )
    if "lora_a" in linear and "linear" in linear and "m" not in linear:
        update = (linear.scale * linear.lora_b.T) @ linear.lora_a.T
        return plain_weight(linear.linear) + update
    if not isinstance(linear, nn.Linear):
        raise PixWordError(f"{type(linear).__name__} cannot be used one token at a time; fuse it into its layer first")
    return linear.weight


def plain_bias(linear: nn.Module) -> mx.array | None:
    """The bias ``[outputs]`` of a linear layer, which no adapter changes, or None."""
    inner: nn.Module = linear.linear if "linear" in linear else linear
    return inner.get("bias")


class Attention(nn.Module):
    """Causal grouped-query attention, ``softmax(q k^T / sqrt(d)) v`` per head, then an output projection."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        size = args.head_size
        self.q_proj = Linear(args.hidden_size, args.num_heads * size, args.attention_bias)
        self.k_proj = Linear(args.hidden_size, args.num_kv_heads * size, args.attention_bias)
        self.v_proj = Linear(args.hidden_size, args.num_kv_heads * size, args.attention_bias)
        self.o_proj = Linear(args.num_heads * size, args.hidden_size, args.output_bias)
        if args.qk_norm_weights:
            self.q_norm = nn.RMSNorm(size, args.rms_norm_eps)
            self.k_norm = nn.RMSNorm(size, args.rms_norm_eps)
        self._args, self._scale = args, size**-0.5

    def queries(self, x: mx.array) -> mx.array:
        """``[..., L, D]`` to ``[..., L, H d]``, before RoPE."""
        return self._norm_heads(self.q_proj(x), "q_norm")

    def keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """``[..., L, D]`` to keys and values ``[..., L, G d]``, before RoPE."""
        return self._norm_heads(self.k_proj(x), "k_norm"), self.v_proj(x)

    def _norm_heads(self, x: mx.array, name: str) -> mx.array:
        if not self._args.qk_norm:
            return x
        heads = x.reshape(*x.shape[:-1], -1, self._args.head_size)
        if name in self:
            return rms_norm(self[name], heads).reshape(x.shape)
        return mx.fast.rms_norm(heads, None, self._args.rms_norm_eps).reshape(x.shape)

    def split_heads(self, x: mx.array) -> mx.array:
        """``[B, L, n d]`` to ``[B, n, L, d]``."""
        return x.reshape(*x.shape[:2], -1, self._args.head_size).swapaxes(1, 2)

    def __call__(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        q_rotary: mx.array,
        k_rotary: mx.array,
        mask: mx.array | str | None,
        cache: Any = None,
    ) -> mx.array:
        """In a sequence: projected ``q [B, Lq, H d]``, ``k, v [B, Lk, G d]`` to ``[B, Lq, D]``."""
        q, k, v = rotate(self.split_heads(q), q_rotary), rotate(self.split_heads(k), k_rotary), self.split_heads(v)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        return self.o_proj(attention(q, k, v, self._scale, mask).swapaxes(1, 2).flatten(-2))

    def windowed(
        self, q: mx.array, k: mx.array, v: mx.array, reads: mx.array | None = None,
        rotary: mx.array | None = None, places: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        """Inside windows: ``q [U, R, H d]``, of all pixels or ``reads``, and ``k, v [U, P, G d]`` to ``[U, R, D]``.

        ``rotary`` and ``places`` as `window_attention` takes them.
        """
        q, k, v = (self._heads_last(x) for x in (q, k, v))
        return self.o_proj(window_attention(q, k, v, reads, self._args.rope_theta, rotary, places).flatten(-2))

    def conditional(
        self,
        queries: tuple[mx.array, mx.array, mx.array],
        sequence: tuple[mx.array, mx.array],
        q_rotary: mx.array,
        k_rotary: mx.array,
        spans: mx.array,
    ) -> mx.array:
        """Query pixels: ``queries [B, Q, n d]`` over spans of ``sequence [B, L, G d]`` and themselves."""
        q, own_k, own_v = (self._heads_last(x) for x in queries)
        k, v = (self._heads_last(x) for x in sequence)
        q_rotary, k_rotary = q_rotary.swapaxes(2, 3), k_rotary.swapaxes(2, 3)  # [2, B, Q, 1, d / 2]
        q, own_k, k = rotate(q, q_rotary), rotate(own_k, q_rotary), rotate(k, k_rotary)
        return self.o_proj(conditional_attention(q, own_k, own_v, k, v, spans).flatten(-2))

    def _heads_last(self, x: mx.array) -> mx.array:
        """``[B, L, n d]`` to ``[B, L, n, d]``."""
        return x.reshape(*x.shape[:2], -1, self._args.head_size)


class FeedForward(nn.Module):
    """SwiGLU, ``W_down (silu(W_gate x) * W_up x)``."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = Linear(args.hidden_size, args.intermediate_size, args.mlp_bias)
        self.up_proj = Linear(args.hidden_size, args.intermediate_size, args.mlp_bias)
        self.down_proj = Linear(args.intermediate_size, args.hidden_size, args.mlp_bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """Pre-norm Llama layer: ``x += attention(norm(x))``, then ``x += ffn(norm(x))``."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.attention = Attention(args)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.ffn = FeedForward(args)
        self.recompute = False  # True trades a second forward pass for the memory of the layer's inside

    def project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values of ``x [..., D]``, before RoPE."""
        y = rms_norm(self.attention_norm, x)
        return self.attention.queries(y), *self.attention.keys_values(y)

    def __call__(self, x: mx.array, rotary: mx.array, mask: mx.array | str | None, cache: Any = None) -> mx.array:
        """The whole layer: ``[B, L, D]`` to ``[B, L, D]``."""
        return self._recomputed(self._whole)(x, rotary, mask, cache)

    def read_out(self, x: mx.array, places: mx.array, q_rotary: mx.array, rotary: mx.array, mask: mx.array) -> mx.array:
        """The layer for elements at ``places [B, c]`` of ``x [B, L, D]`` alone; keys and values are those of all.

        Args:
            x: ``[B, L, D]``.
            places: int32 ``[B, c]``.
            q_rotary, rotary: ``[2, B, 1, c, d / 2]`` of these elements, and ``[2, B, 1, L, d / 2]`` of all.
            mask: boolean ``[B, 1, c, L]``, True where an element sees a key.

        Returns:
            ``[B, c, D]``.
        """
        return self._recomputed(self._read_out)(x, places, q_rotary, rotary, mask)

    def windowed(
        self, x: mx.array, projected: Sequence[mx.array] = (), reads: mx.array | None = None,
        rotary: mx.array | None = None, places: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        """The layer inside windows: ``x [U, R, D]`` to ``[U, R, D]``, for all pixels or ``reads``.

        ``projected`` are queries of these pixels and keys and values of all, where they are there already.
        """
        return self._recomputed(self._windowed)(x, tuple(projected), reads, rotary, places)

    def conditioned(self, x: mx.array, z: mx.array, *attention_inputs: Any) -> tuple[mx.array, mx.array]:
        """The layer for a sequence ``x [B, L, D]`` and for query pixels ``z [B, Q, D]`` that are conditioned on it."""
        return self._recomputed(self._conditioned)(x, z, *attention_inputs)

    def _conditioned(
        self, x: mx.array, z: mx.array, rotary: mx.array, z_rotary: mx.array, mask: mx.array | str, spans: mx.array
    ) -> tuple[mx.array, mx.array]:
        q, k, v = self.project(x)
        z = z + self.attention.conditional(self.project(z), (k, v), z_rotary, rotary, spans)
        return self._combine(x, q, k, v, rotary, rotary, mask), self._feed(z)

    def _whole(self, x: mx.array, rotary: mx.array, mask: mx.array | str | None, cache: Any) -> mx.array:
        return self._combine(x, *self.project(x), rotary, rotary, mask, cache)

    def _read_out(
        self, x: mx.array, places: mx.array, q_rotary: mx.array, rotary: mx.array, mask: mx.array
    ) -> mx.array:
        y, places = rms_norm(self.attention_norm, x), places[..., None]
        q = self.attention.queries(mx.take_along_axis(y, places, axis=1))
        rows = mx.take_along_axis(x, places, axis=1)
        return self._combine(rows, q, *self.attention.keys_values(y), q_rotary, rotary, mask)

    def _combine(self, x: mx.array, *attention_inputs: Any) -> mx.array:
        return self._feed(x + self.attention(*attention_inputs))

    def _windowed(self, x: mx.array, projected: tuple[mx.array, ...], *options: Any) -> mx.array:
        return self._feed(x + self.attention.windowed(*(projected or self.project(x)), *options))

    def _feed(self, x: mx.array) -> mx.array:
        return x + self.ffn(rms_norm(self.ffn_norm, x))

    def _recomputed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return nn.utils.checkpoint(self, function) if self.recompute else function


def checkpoint_layers(layers: Sequence[Layer]) -> None:
    """Recompute the inside of layers in the backward pass instead of keeping it in memory."""
    for layer in layers:
        layer.recompute = True


def rms_norm(norm: nn.RMSNorm, x: mx.array) -> mx.array:
    """RMSNorm in float32; the result has the type of ``x``."""
    return mx.fast.rms_norm(x.astype(mx.float32), norm.weight, norm.eps).astype(x.dtype)
