"""The attention kernels' arguments, and what they must give: float64, query by query, gradients by the formulas.

B  rows    Q  queries a row    L  keys a row    H  query heads    G  key heads    d  head size
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_pixword.ops.span_attention import Rotary, attend


@dataclass(frozen=True)
class Case:
    """Arrays of one call, and the cotangent ``dy``; all have the values that the kernel's type can hold."""

    arrays: list[np.ndarray]  # q, k, v and perhaps own keys and values
    spans: np.ndarray
    rotary: np.ndarray | None  # angles by place, [L, d / 2]
    places: np.ndarray | None  # of the keys [B, L]; None: their indices
    dy: np.ndarray
    dtype: mx.Dtype

    def arguments(self) -> list[mx.array]:
        return [mx.array(array.astype(np.float32)).astype(self.dtype) for array in self.arrays]

    def turns(self) -> Rotary | None:
        if self.rotary is None:
            return None
        table = np.stack([np.cos(self.rotary), np.sin(self.rotary)]).astype(np.float32)
        return Rotary(mx.array(table), None if self.places is None else mx.array(self.places.astype(np.int32)))

    def run(self) -> list[np.ndarray]:
        """Output and gradients by the kernels, float64."""
        function = attend(mx.array(self.spans), self.turns())
        outputs, gradients = mx.vjp(
            function, self.arguments(), [mx.array(self.dy.astype(np.float32)).astype(self.dtype)]
        )
        return [np.array(array.astype(mx.float32)).astype(np.float64) for array in [*outputs, *gradients]]


def make_case(kind: str, shape: Sequence[int], dtype: mx.Dtype = mx.float32, seed: int = 0, scale: float = 1.0) -> Case:
    """Random arguments: a ``window``, one with pixels ``scattered`` on a grid, a ``read`` out of one or ``own`` keys.

    Shape is B, Q, L, G, H / G, d.
    """
    rng = np.random.default_rng(seed)
    rows, queries, keys, groups, repeat, size = shape
    queries = keys if kind in ("window", "scattered") else queries
    shapes = [(rows, queries, groups * repeat, size), (rows, keys, groups, size), (rows, keys, groups, size)]
    shapes += [(rows, queries, groups, size)] * 2 if kind == "own" else []
    arrays = [held(rng.standard_normal(s) * scale, dtype) for s in shapes]
    return Case(
        arrays,
        make_spans(kind, rng, rows, queries, keys),
        None if kind == "own" else make_angles(kind, rng, keys, size),
        np.stack([rng.permutation(keys) for _ in range(rows)]) if kind == "scattered" else None,
        held(rng.standard_normal(shapes[0]), dtype),
        dtype,
    )


def make_angles(kind: str, rng: np.random.Generator, keys: int, size: int) -> np.ndarray:
    """Radians of each pair at each place: of places in a row, or ``scattered`` ones on a grid, pairs by turns."""
    frequency, side = rng.uniform(-np.pi, np.pi, size // 2), math.isqrt(keys - 1) + 1
    if kind != "scattered":
        return np.arange(keys)[:, None] * frequency
    row, column = np.divmod(np.arange(keys)[:, None], side)
    return np.where(np.arange(size // 2) % 2, row, column) * frequency


def make_spans(kind: str, rng: np.random.Generator, rows: int, queries: int, keys: int) -> np.ndarray:
    """int32 ``[B, Q, 2]``: causal up to a random number of valid pixels; random places; random spans, some empty."""
    if kind in ("window", "scattered"):
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
    if case.rotary is not None:
        of_keys = case.rotary[np.broadcast_to(np.arange(keys), k.shape[:2]) if case.places is None else case.places]
        of_queries = np.take_along_axis(of_keys, np.maximum(case.spans[..., 1] - 1, 0)[..., None], axis=1)
        q, k = turn(q, of_queries), turn(k, of_keys)
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
    if case.rotary is not None:
        dq, dk = turn(dq, -of_queries), turn(dk, -of_keys)
    return [y, dq, *(over_heads(x, repeat) for x in (dk, dv, *values))]


def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotate pairs of ``x [B, L, n, d]`` by angles ``[B, L, d / 2]``."""
    angle, even, odd = angle[:, :, None], x[..., 0::2], x[..., 1::2]
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
