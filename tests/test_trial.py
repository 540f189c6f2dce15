"""A trial of a kernel: what agrees with its reference, and which of the two is faster; see stand_in_kernels.py."""

import time
import warnings
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from stand_in_kernels import BROKEN, KERNEL, RACE, X, Y, become_a_mac, equal, last_run, scaled, wrong, wrong_gradient

from mlx_pixword.common.errors import PixWordWarning
from mlx_pixword.ops.dispatch import choose as module
from mlx_pixword.ops.dispatch import trial
from mlx_pixword.ops.dispatch.choose import Kernel, decide, decisions, dispatch


@pytest.fixture(autouse=True)
def _mac(monkeypatch):
    become_a_mac(monkeypatch)


@pytest.mark.parametrize(("metal", "reason"), BROKEN)
def test_a_broken_kernel_is_never_used_and_asks_for_a_report(metal, reason):
    kernel = replace(KERNEL, metal=metal)
    with pytest.warns(PixWordWarning, match=f"scaled failed .*{reason}.*doctor --report"):
        out, ran = last_run(kernel, X, Y, 2.0)
    assert ran == "reference" and np.array_equal(out, [1, -16, 6])
    (found,) = decisions()
    assert not found.verified and not found.used and found.speed_up is None


def test_gradients_count_only_where_a_kernel_is_trained_through():
    assert last_run(replace(KERNEL, metal=wrong_gradient, trained=False), X, Y, 2.0)[1] == "metal"


def test_constants_need_no_gradient():
    def half(x, y, factor):
        return equal(x, mx.stop_gradient(y), factor)

    assert last_run(replace(KERNEL, metal=half, constants=(1,)), X, Y, 2.0)[1] == "metal"
    with pytest.warns(PixWordWarning):
        assert last_run(replace(KERNEL, name="other", metal=half), X, Y, 2.0)[1] == "reference"


@pytest.mark.parametrize(
    ("dtype", "off", "used"),
    [(mx.float32, 5e-5, True), (mx.float32, 5e-4, False), (mx.float16, 1e-3, True), (mx.float16, 4e-3, False),
     (mx.bfloat16, 4e-3, True), (mx.bfloat16, 2e-2, False)],
)  # fmt: skip
def test_tolerances_are_those_of_the_type(dtype, off, used):
    def near(x, y, factor):
        y = x.astype(mx.float32) * y.astype(mx.float32) * factor
        return (y + off * mx.max(mx.abs(y)) * (mx.arange(x.size) == 0)).astype(x.dtype)

    kernel = replace(KERNEL, metal=near, trained=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PixWordWarning)
        assert last_run(kernel, mx.ones(64, dtype), mx.ones(64, dtype), 1.0)[1] == ("metal" if used else "reference")


def test_the_page_says_what_is_tolerated():
    page = " ".join((Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8").split())
    shares = [f"{share:.0e} in {str(dtype).rpartition('.')[2]}" for dtype, share in trial.TOLERANCE.items()]
    assert ", ".join(shares).replace("e-0", "e-") in page
    assert trial.ROUNDS == 5 and "the median of five rounds" in page
    assert all(f"| `{value}` |" in page for value in module.MODES)


def test_16_bit_kernels_are_compared_with_float32_and_need_not_round_as_mlx_does():
    def narrow(x, y, factor):
        return mx.cumsum(mx.cumsum(x))[-1:] * y * factor  # rounds at every step

    def wide(x, y, factor):
        return narrow(x.astype(mx.float32), y.astype(mx.float32), factor).astype(x.dtype)

    args = mx.ones(256, mx.bfloat16), mx.ones(1, mx.bfloat16), 1.0
    assert last_run(Kernel("sum", narrow, wide, lambda *_: args, False), *args)[0] > 0
    assert decisions()[0].used
    assert decide(replace(KERNEL, trained=False), X, Y, 1.0).used
    with pytest.warns(PixWordWarning, match="the Metal kernel narrow"):
        assert not decide(Kernel("narrow", wide, narrow, lambda *_: args, False), *args).verified


def test_a_coarse_reference_on_the_gpu_is_settled_on_the_cpu(monkeypatch):
    coarse = [True]

    def reference(x, y, factor):
        return scaled(x, y, factor) * (1.001 if coarse[0] else 1)

    class Exact:
        def __enter__(self):
            coarse[0] = False

        def __exit__(self, *_):
            coarse[0] = True

    monkeypatch.setattr(trial.mx, "stream", lambda device: Exact())
    assert decide(replace(KERNEL, reference=reference), X, Y, 2.0).verified


def test_where_the_reference_is_not_finite_nothing_is_compared():
    def reference(x, y, factor):
        return mx.where(mx.arange(x.size) == 0, mx.inf, scaled(x, y, factor))

    kernel = replace(KERNEL, reference=reference, trained=False)
    assert decide(kernel, X, Y, 2.0).used
    with pytest.warns(PixWordWarning):
        assert not decide(replace(kernel, name="other", metal=wrong), X, Y, 2.0).used


def test_a_reference_that_is_nowhere_finite_verifies_nothing():
    kernel = replace(KERNEL, reference=lambda x, y, factor: scaled(x, y, factor) * mx.nan, trained=False)
    with pytest.warns(PixWordWarning, match="inf times"):
        assert not decide(kernel, X, Y, 2.0).verified


def test_integers_must_be_equal():
    kernel = Kernel("next", lambda x: x + 1, lambda x: x + 1 + (x == 7), lambda x: (mx.arange(x.size),), False)
    assert decide(kernel, mx.array([1, 2])).used
    with pytest.warns(PixWordWarning):
        assert not decide(kernel, mx.zeros(8, mx.int32)).used


# --- the clock --------------------------------------------------------------------------------------------------------


def test_the_faster_of_two_real_runs_is_found(monkeypatch):
    """By a real clock, which other work on the machine may disturb for a while: in one of ten trials at least."""
    monkeypatch.setattr(trial, "race", RACE)

    def repeated(times):
        def run(x):
            for _ in range(times):
                x = x @ x
            return x

        return run

    args = (mx.eye(256),)
    slow, fast = repeated(40), repeated(1)
    for runs, found in (((slow, fast), lambda ratio: ratio > 2), ((fast, slow), lambda ratio: ratio < 0.5)):
        kernels = (Kernel(f"try {n} of {found}", *runs, lambda x: args, False) for n in range(10))
        assert any(found(decide(kernel, *args).speed_up) for kernel in kernels)


def test_gradients_are_timed_too(monkeypatch):
    """What the clock runs over has the backward pass in it where a kernel is trained, and nowhere else."""
    passes: list[str] = []

    @mx.custom_function
    def square(x):
        passes.append("forward")
        return x @ x

    @square.vjp
    def _(x, cotangent, _output):
        passes.append("backward")
        return cotangent @ x.T + x.T @ cotangent

    def race(runs):
        passes.clear()
        for run in runs:
            mx.eval(run())
        timed.append(sorted(set(passes)))
        return [1.0, 1.0]

    timed: list[list[str]] = []
    monkeypatch.setattr(trial, "race", race)
    args = (mx.eye(8),)
    kernel = Kernel("square", lambda x: x @ x, square, lambda x: args, True)
    for tried in (kernel, replace(kernel, name="forward", trained=False)):
        assert not decide(tried, *args).error
    assert timed == [["backward", "forward"], ["forward"]]


def test_runs_take_turns_and_the_first_one_is_not_timed():
    order = []

    def run(name, seconds):
        def work():
            order.append(name)
            time.sleep(0.5 if order.count(name) == 1 else seconds)  # the first compiles
            return [mx.array(1)]

        return work

    a, b = RACE([run("a", 0.002), run("b", 0.004)])
    assert 0.002 <= a < 0.5 and 0.004 <= b < 0.5
    assert [name for name, _ in groupby(order[4:])] == ["a", "b"] * trial.ROUNDS


def test_launches_of_a_round_are_handed_over_one_by_one(monkeypatch):
    """MLX mixes the operations of what is evaluated together, and then holds what all launches need on their way."""
    order = []
    monkeypatch.setattr(trial.mx, "async_eval", lambda results: order.append("started"))
    assert trial._seconds(lambda: order.append("made") or [mx.array(1)], 3) > 0
    assert order == ["made", "started"] * 3


@pytest.mark.parametrize(
    "trace", [mx.compile, mx.checkpoint, lambda function: mx.grad(lambda *args: function(*args).sum())]
)
def test_the_clock_runs_inside_a_trace(monkeypatch, trace):
    monkeypatch.setattr(trial, "race", RACE)
    mx.eval(trace(lambda x, y: dispatch(KERNEL, x, y, 2.0))(X, Y))
    (found,) = decisions()
    assert not found.error and found.kernel_seconds > 0 and found.reference_seconds > 0
