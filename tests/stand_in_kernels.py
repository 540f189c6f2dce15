"""Kernels that are stand-ins in MLX operations, right and broken ones, and a Mac on which they are tried.

There is no Metal here, and the trial's clock is set by hand where a test is not about it.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_pixword.ops.dispatch import choose, trial
from mlx_pixword.ops.dispatch.choose import Kernel, decide, dispatch

RACE = trial.race  # `become_a_mac` puts another in its place
calls: list[str] = []  # which implementation ran, in order


def scaled(x, y, factor):
    calls.append("reference")
    return (x.astype(mx.float32) * y.astype(mx.float32) * factor).astype(x.dtype)


@mx.custom_function
def product(x, y, factor):
    return x * y * factor


@product.vjp
def product_vjp(primals, cotangent, _output):
    x, y, factor = primals
    return cotangent * y * factor, cotangent * x * factor, mx.zeros_like(factor)


def equal(x, y, factor):
    calls.append("metal")
    return product(x, y, mx.array(factor, x.dtype))


def example(x, y, factor):
    draws = (mx.random.normal(a.shape, key=mx.random.key(i)).astype(a.dtype) for i, a in enumerate((x, y)))
    return *draws, factor


KERNEL = Kernel("scaled", scaled, equal, example, trained=True)
X, Y = mx.array([1.0, -2.0, 3.0]), mx.array([0.5, 4.0, 1.0])


def become_a_mac(monkeypatch):
    """A machine with Metal where every kernel is twice as fast as its reference, and nothing is decided yet."""
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "_decisions", {})
    monkeypatch.setattr(trial, "race", lambda runs: [1.0, 2.0])
    monkeypatch.delenv("PIXWORD_KERNELS", raising=False)
    calls.clear()


def last_run(kernel, *args):
    """The result of a call after the trial, and which implementation gave it."""
    decide(kernel, *args)
    ran = []

    def noted(name):
        return lambda *args: ran.append(name) or getattr(kernel, name)(*args)

    out = dispatch(replace(kernel, metal=noted("metal"), reference=noted("reference")), *args)
    (name,) = ran
    return np.array(out.astype(mx.float32)), name


def wrong(x, y, factor):
    return equal(x, y, factor) * 1.01


def wrong_in_one_place(x, y, factor):
    return mx.concatenate([equal(x, y, factor)[:-1], mx.zeros_like(x[-1:])])


@mx.custom_function
def shifted(x, y, factor):
    return product(x, y, factor)


@shifted.vjp
def shifted_vjp(primals, cotangent, _output):
    x, y, factor = primals
    return cotangent * x * factor, cotangent * y * factor, mx.zeros_like(factor)  # x and y exchanged


def wrong_gradient(x, y, factor):
    return shifted(x, y, mx.array(factor, x.dtype))


def not_finite(x, y, factor):
    return mx.where(mx.arange(x.size) == 0, mx.nan, equal(x, y, factor))


def infinite_gradient(x, y, factor):
    return equal(x, y, factor) + mx.sqrt(mx.zeros_like(x) * x)  # the derivative of a root at 0


def raising(x, y, factor):
    raise RuntimeError("[metal::Device] Unable to build metal library\nfrom source")


def raising_when_evaluated(x, y, factor):
    return mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)[0, 0] * equal(x, y, factor)  # singular: an error of MLX's


def other_type(x, y, factor):
    return equal(x, y, factor).astype(mx.float16)


def other_shape(x, y, factor):
    return equal(x, y, factor)[None]


def two_results(x, y, factor):
    return equal(x, y, factor), equal(x, y, factor)


BROKEN = [
    (wrong, "times the tolerance"), (wrong_in_one_place, "times the tolerance"),
    (wrong_gradient, "times the tolerance"), (not_finite, "inf times"), (infinite_gradient, "inf times"),
    (raising, "RuntimeError: .* Unable to build metal library from source"), (raising_when_evaluated, "LU"),
    (other_type, "float16"), (other_shape, r"shape \(1,3\)"), (two_results, "."),
]  # fmt: skip
