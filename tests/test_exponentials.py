"""Exponentials by polynomials: within 1e-6 of float64, gradients included; elsewhere MLX's own."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.ops import exponentials
from mlx_pixword.ops.exponentials import LIMIT, exp, logsumexp, polynomials_pay, softmax, swiglu

FUNCTIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: swiglu(x, mx.ones_like(x)),
    "softmax": softmax,
    "logsumexp": logsumexp,
}


@pytest.fixture(params=[True, False], ids=["polynomials", "mlx"])
def polynomials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(exponentials, "polynomials_pay", lambda _: request.param)
    return bool(request.param)


def reference(name: str, x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    return {
        "silu": lambda: x / (1 + np.exp(-x)),
        "softmax": lambda: e / total,
        "logsumexp": lambda: (np.log(total) + x.max(-1, keepdims=True))[..., 0],
    }[name]()


def vjp_reference(name: str, x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    y = reference("softmax" if name == "logsumexp" else name, x)
    return {
        "silu": lambda: cotangent * (1 + np.exp(-x) * (1 + x)) / (1 + np.exp(-x)) ** 2,
        "softmax": lambda: y * (cotangent - (cotangent * y).sum(-1, keepdims=True)),
        "logsumexp": lambda: y * cotangent[..., None],
    }[name]()


def test_exp_is_within_1e_6_of_float64_everywhere() -> None:
    x = np.linspace(-87, 88, 2_000_001).astype(np.float32)
    y = np.array(exp(mx.array(x)))
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 1e-6


def test_exp_at_the_ends() -> None:
    y = np.array(exp(mx.array([0.0, -LIMIT, -1e30, -np.inf, LIMIT, np.nan])))
    assert y[0] == pytest.approx(1, abs=1e-6) and y[1:4].tolist() == [0, 0, 0]
    assert y[4] == pytest.approx(np.exp(LIMIT), rel=1e-6) and np.isnan(y[5])


@pytest.mark.parametrize("name", ["silu", "softmax", "logsumexp"])
@pytest.mark.parametrize("shape", [(5, 1), (3, 7), (2, 3, 300)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_functions_and_gradients_agree_with_float64(
    name: str, shape: tuple[int, ...], scale: float, polynomials: bool, rng: np.random.Generator
) -> None:
    function = FUNCTIONS[name]
    x = (scale * rng.standard_normal(shape)).astype(np.float32)
    expected = reference(name, x.astype(np.float64))
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    (value,), (gradient,) = mx.vjp(function, [mx.array(x)], [mx.array(cotangent)])
    error = np.abs(np.array(value) - expected)
    relative = error / (
        np.abs(x).max(-1) + 1 if name == "logsumexp" else np.abs(expected) + 1e-30
    )  # e^-90 is no float32
    rounding = max(1, scale / 10)  # of x - max(x) in float32
    assert relative.max() < (2e-6 * rounding if polynomials else 1e-4)
    assert np.abs(np.array(gradient) - vjp_reference(name, x.astype(np.float64), cotangent)).max() < 2e-6


def test_hidden_entries_get_exactly_nothing(polynomials: bool) -> None:
    y = np.array(softmax(mx.array([[1.0, -np.inf, 2.0], [-np.inf, 0.0, -np.inf]])))
    assert y[0, 1] == y[1, 0] == y[1, 2] == 0 and y[1, 1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_numbers_stay_visible(polynomials: bool, value: float) -> None:
    x = mx.array([[1.0, value, 2.0]])
    assert np.isnan(np.array(softmax(x))).any() and not np.isfinite(np.array(logsumexp(x))).all()
    assert np.isnan(np.array(swiglu(mx.array([np.nan]), mx.array([1.0]))))


def test_other_number_types_keep_mlx(polynomials: bool) -> None:
    x = mx.array([0.5, 1.0], mx.bfloat16)
    assert swiglu(x, x).dtype == logsumexp(x).dtype == mx.bfloat16
    assert softmax(x).dtype in (mx.float32, mx.bfloat16)


@pytest.mark.parametrize(
    ("machine", "device", "pays"),
    [("x86_64", mx.cpu, True), ("AMD64", mx.cpu, True), ("arm64", mx.cpu, False), ("x86_64", mx.gpu, False)],
)
def test_where_polynomials_pay(
    machine: str, device: mx.DeviceType, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exponentials.platform, "machine", lambda: machine)
    monkeypatch.setattr(exponentials.mx, "default_device", lambda: mx.Device(device, 0))
    assert polynomials_pay(10_000) == pays and not polynomials_pay(100)


def test_both_inputs_of_swiglu_get_their_gradients(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [mx.array(rng.standard_normal((3, 5)).astype(np.float32)) for _ in range(2)]
    found = []
    for pays in (True, False):
        monkeypatch.setattr(exponentials, "polynomials_pay", lambda _, pays=pays: pays)
        found.append(mx.grad(lambda gate, up: (swiglu(gate, up) ** 2).sum(), argnums=(0, 1))(*arrays))
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(np.array(ours - theirs)).max() < 1e-5
