"""Exponentials: MLX's own, and polynomials where MLX's own are slow, on x86 CPUs (12 ns an element and more).

    e^x = 2^k e^r,    k = round(x / ln 2),    r = x - k ln 2

``2^k`` is put together from bits; ``e^r`` is a minimax polynomial of degree 5 with a relative error of 7.5e-8. Some
twenty plain MLX operations take a third of the time of `mx.exp` there, and need no compiler. Reduction of the range:
Cody & Waite, *Software Manual for the Elementary Functions*, 1980.
"""

import math
import platform
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

FEW = 4096  # of fewer elements MLX's one operation is done sooner than twenty
LIMIT = 88.0  # e^-88 comes out as an exact 0
ROUND = 1.5 * 2**23 + 127  # adding it rounds to an integer and leaves the exponent bits of 2^k in the lowest byte
LN2_HIGH, LN2_LOW = 0.693359375, math.log(2) - 0.693359375  # k times the high part is exact
POLYNOMIAL = (0.00829765509, 0.041915382, 0.166675747, 0.499988948, 0.999999692, 1.00000007)

Function = TypeVar("Function", bound=Callable[..., Any])


class Custom(Protocol):
    """A function with a gradient of its own; MLX's type for it names neither."""

    def __call__(self, *arguments: Any) -> Any: ...

    def vjp(self, function: Function) -> Function: ...


def custom(function: Callable[..., Any]) -> Custom:
    """`mx.custom_function`, with a type."""
    return mx.custom_function(function)


def polynomials_pay(elements: int) -> bool:
    """True for many elements where MLX computes exponentials one by one: in its CPU build on x86."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return elements >= FEW and on_x86 and mx.default_device() == mx.cpu


def exp(x: mx.array) -> mx.array:
    """``e^x`` by the polynomial, within 1e-6 of the value, for float32 x of at most 88; exactly 0 below -88."""
    x = mx.maximum(x, -LIMIT)
    rounded = x * (1 / math.log(2)) + ROUND
    k = rounded - ROUND
    r = x - k * LN2_HIGH - k * LN2_LOW
    y = r * POLYNOMIAL[0] + POLYNOMIAL[1]
    for coefficient in POLYNOMIAL[2:]:
        y = y * r + coefficient
    return y * (rounded.view(mx.int32) << 23).view(mx.float32)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``gate / (1 + e^-gate) * up``."""
    if polynomials_pay(gate.size) and gate.dtype == mx.float32:
        return _swiglu(gate, up)[0]
    # MLX compiles nn.silu, on Linux by g++ into a folder that may be another user's, and nothing is won there.
    return (gate * mx.sigmoid(gate) if mx.default_device() == mx.cpu else nn.silu(gate)) * up


def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis, computed in float32; an entry of -inf gets exactly 0."""
    return _softmax(x.astype(mx.float32)) if polynomials_pay(x.size) else mx.softmax(x, axis=-1, precise=True)


def logsumexp(x: mx.array) -> mx.array:
    """``log sum e^x`` over the last axis, ``[..., n]`` to ``[...]``."""
    return _logsumexp(x)[0][..., 0] if polynomials_pay(x.size) and x.dtype == mx.float32 else mx.logsumexp(x, axis=-1)


# ------------------------------------------------------------------------------- by the polynomial, and gradients


@custom
def _swiglu(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The result, and what its gradient is made of: the polynomial costs more than what keeping it takes."""
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    return silu * up, sigmoid, silu


@_swiglu.vjp
def _swiglu_vjp(
    inputs: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
) -> tuple[mx.array, mx.array]:
    _, up = inputs
    cotangent, (_, sigmoid, silu) = cotangents[0], outputs
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + exp(mx.minimum(-x, LIMIT)))


@custom
def _softmax(x: mx.array) -> mx.array:
    y, total, _ = _shifted(x)
    return y / total


@_softmax.vjp
def _softmax_vjp(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    weighted = cotangent * y
    return weighted - y * _row_sums(weighted)


@custom
def _logsumexp(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The result ``[..., 1]``, and what its gradient is made of."""
    y, total, highest = _shifted(x)
    return mx.log(total) + highest, y, total


@_logsumexp.vjp
def _logsumexp_vjp(x: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
    _, y, total = outputs
    return y * (cotangents[0] / total)


def _shifted(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """``e^(x - highest)``, its row sums and the highest entries."""
    highest = mx.max(x, axis=-1, keepdims=True)
    y = exp(x - highest)
    return y, _row_sums(y), highest


def _row_sums(x: mx.array) -> mx.array:
    """Sums over the last axis, ``[..., n]`` to ``[..., 1]``: a product with ones is several times faster there."""
    return x @ mx.ones((x.shape[-1], 1))
