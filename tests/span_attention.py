"""The attention kernels' arguments, and what they must give: float64, query by query, gradients by the formulas.

B  rows    Q  queries a row    L  keys a row    H  query heads    G  key heads    d  head size
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_pixword.ops.span_attention import attend

TURN = 2 * np.pi / 2**32  # radians of a unit of frequency


@dataclass(frozen=True)
class Case:
    """Arrays of one call, and the cotangent ``dy``; all have the values that the kernel's type can hold."""

    arrays: list[np.ndarray]  # q, k, v and perhaps own keys and values
    spans: np.ndarray
    frequencies: np.ndarray | None
    dy: np.ndarray
    dtype: mx.Dtype

    def arguments(self) -> list[mx.array]:
        return [mx.array(array.astype(np.float32)).astype(self.dtype) for array in self.arrays]

    def run(self) -> list[np.ndarray]:
        """Output and gradients by the kernels, float64."""
        frequencies = None if self.frequencies is None else mx.array(self.frequencies)
        function = attend(mx.array(self.spans), frequencies)
        outputs, gradients = mx.vjp(
            function, self.arguments(), [mx.array(self.dy.astype(np.float32)).astype(self.dtype)]
        )
        return [np.array(array.astype(mx.float32)).astype(np.float64) for array in [*outputs, *gradients]]


def make_case(kind: str, shape: Sequence[int], dtype: mx.Dtype = mx.float32, seed: int = 0, scale: float = 1.0) -> Case:
    """Random arguments: a ``window``, a ``read`` out of one or ``own`` keys; shape is B, Q, L, G, H / G, d."""
    rng = np.random.default_rng(seed)
    rows, queries, keys, groups, repeat, size = shape
    queries = keys if kind == "window" else queries
    shapes = [(rows, queries, groups * repeat, size), (rows, keys, groups, size), (rows, keys, groups, size)]
    shapes += [(rows, queries, groups, size)] * 2 if kind == "own" else []
    arrays = [held(rng.standard_normal(s) * scale, dtype) for s in shapes]
    frequencies = None if kind == "own" else rng.integers(0, 2**32, size // 2, dtype=np.uint32)
    return Case(
        arrays,
        make_spans(kind, rng, rows, queries, keys),
        frequencies,
        held(rng.standard_normal(shapes[0]), dtype),
        dtype,
    )


def make_spans(kind: str, rng: np.random.Generator, rows: int, queries: int, keys: int) -> np.ndarray:
    """int32 ``[B, Q, 2]``: causal up to a random number of valid pixels; random places; random spans, some empty."""
    if kind == "window":
        valid, ends = rng.integers(1, keys + 1, (rows, 1)), np.arange(1, keys + 1)
        ends = np.where(ends <= valid, ends, 0)
    elif kind == "read":
        ends = rng.integers(1, keys + 1, (rows, queries))
    else:
        return np.sort(rng.integers(0, keys + 1, (rows, queries, 2)), axis=-1).astype(np.int32)
    return np.stack([np.zeros_like(ends), ends], axis=-1).astype(np.int32)


def held(values: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """The nearest values of a type, float64."""
    return np.array(mx.array(values.astype(np.float32)).astype(dtype).astype(mx.float32)).astype(np.float64)


def expected(case: Case) -> list[np.ndarray]:
    """Output and gradients in float64."""
    q, k, v, *own = case.arrays
    size, repeat, keys = q.shape[-1], q.shape[2] // k.shape[2], k.shape[1]
    ends, frequencies = case.spans[..., 1], case.frequencies
    if frequencies is not None:
        q, k = turn(q, ends - 1, frequencies), turn(k, np.broadcast_to(np.arange(keys), k.shape[:2]), frequencies)
    k, v, *own = (np.repeat(x, repeat, axis=2) for x in (k, v, *own))  # [B, L, H, d]
    scores = np.einsum("bqhd,blhd->bhql", q, k) * size**-0.5
    places = np.arange(keys)
    seen = (places >= case.spans[..., :1]) & (places < case.spans[..., 1:])  # [B, Q, L]
    scores = np.where(seen[:, None], scores, -np.inf)
    values, grads = [], np.einsum("bqhd,blhd->bhql", case.dy, v)
    if own:
        scores = np.concatenate([scores, np.einsum("bqhd,bqhd->bhq", q, own[0])[..., None] * size**-0.5], axis=-1)
        grads = np.concatenate([grads, np.einsum("bqhd,bqhd->bhq", case.dy, own[1])[..., None]], axis=-1)
    highest = np.max(scores, axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)  # a query that sees nothing gives 0
    y = np.einsum("bhql,blhd->bqhd", weights[..., :keys], v)
    y = y + np.einsum("bhq,bqhd->bqhd", weights[..., keys], own[1]) if own else y
    ds = weights * (grads - (weights * grads).sum(axis=-1, keepdims=True)) * size**-0.5
    dq, dk = np.einsum("bhql,blhd->bqhd", ds[..., :keys], k), np.einsum("bhql,bqhd->blhd", ds[..., :keys], q)
    dv = np.einsum("bhql,bqhd->blhd", weights[..., :keys], case.dy)
    if own:
        dq = dq + np.einsum("bhq,bqhd->bqhd", ds[..., keys], own[0])
        values = [
            np.einsum("bhq,bqhd->bqhd", ds[..., keys], q),
            np.einsum("bhq,bqhd->bqhd", weights[..., keys], case.dy),
        ]
    if frequencies is not None:
        dq, dk = turn(dq, 1 - ends, frequencies), turn(dk, -np.broadcast_to(places, k.shape[:2]), frequencies)
    return [y, dq, *(over_heads(x, repeat) for x in (dk, dv, *values))]


def turn(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Rotate pairs of ``x [B, L, n, d]`` by positions ``[B, L]``."""
    angle = (positions[..., None] * frequencies.astype(np.float64) * TURN)[:, :, None]  # [B, L, 1, d / 2]
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)]
    return np.stack(pairs, axis=-1).reshape(x.shape)


def over_heads(x: np.ndarray, repeat: int) -> np.ndarray:
    """``[B, L, H, d]`` to sums over the query heads of each key head, ``[B, L, G, d]``."""
    return x.reshape(*x.shape[:2], -1, repeat, x.shape[-1]).sum(axis=3)


def difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference, relative to the largest value of the array, or of all gradients."""
    scales = [np.abs(wanted[0]).max(), *[max([np.abs(w).max() for w in wanted[1:]], default=0.0)] * (len(wanted) - 1)]
    parts = [np.abs(f - w).max() / max(s, 1e-30) for f, w, s in zip(found, wanted, scales, strict=True)]
    return float(max(parts)) if all(np.isfinite(f).all() for f in found) else float("inf")
