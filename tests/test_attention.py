"""Attention's parts on a CPU agree with MLX's own operation and with float64, under every kind of mask."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.ops import attention as module
from mlx_pixword.ops import exponentials
from mlx_pixword.ops.attention import attention

SCALE = 0.3


def inputs(rng: np.random.Generator, queries: int, keys: int) -> list[mx.array]:
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """One query at a time, float64."""
    y = np.zeros(q.shape)
    for b, h, i in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(sees[b, i])
        scores = SCALE * k[b, h // 2, seen].astype(float) @ q[b, h, i].astype(float)
        weights = np.exp(scores - scores.max())
        y[b, h, i] = weights / weights.sum() @ v[b, h // 2, seen].astype(float)
    return y


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 6), (3, 7), (33, 33), (70, 70), (131, 131), (70, 75)])
@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "shared"])
def test_every_mask_agrees_with_float64(
    pays: bool, queries: int, keys: int, kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "polynomials_pay", lambda _: pays)
    monkeypatch.setattr(exponentials, "polynomials_pay", lambda _: pays)
    q, k, v = inputs(rng, queries, keys)
    sees = np.ones((2, queries, keys), bool)
    if kind == "causal":
        sees = np.broadcast_to(np.arange(keys - queries, keys)[:, None] >= np.arange(keys), sees.shape)
    elif kind != "none":
        sees = rng.random((2 if kind == "boolean" else 1, queries, keys)) < 0.6
        sees[..., 0] = True
        sees = np.broadcast_to(sees, (2, queries, keys))
    mask = {"none": None, "causal": "causal", "boolean": mx.array(sees)[:, None], "shared": mx.array(sees[:1])[:, None]}
    found = np.array(attention(q, k, v, SCALE, mask[kind]))
    assert np.abs(found - reference(*map(np.array, (q, k, v)), sees)).max() < 2e-6


@pytest.mark.parametrize("count", [6, 70])
def test_gradients_agree_with_mlx(count: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = inputs(rng, count, count)
    weights = mx.array(rng.standard_normal((2, 4, count, 8)).astype(np.float32))
    gradients = []
    for pays in (True, False):
        monkeypatch.setattr(module, "polynomials_pay", lambda _, pays=pays: pays)
        monkeypatch.setattr(exponentials, "polynomials_pay", lambda _, pays=pays: pays)
        total = lambda q, k, v: (attention(q, k, v, SCALE, "causal") * weights).sum()  # noqa: E731
        gradients.append(mx.grad(total, argnums=(0, 1, 2))(*arrays))
    for ours, theirs in zip(*gradients, strict=True):
        assert np.abs(np.array(ours - theirs)).max() < 2e-6
