"""The kernel that takes a row through a block, run by the emulator: against float64, and its mutants."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import reports, traffic
from mutants import Mutant, assert_caught
from mutations import mutations

from mlx_pixword.ops.decode_step import DECODE_STEP, Shape, decode_step, example, launch, reference, suits
from mlx_pixword.ops.dispatch.load import read_source

TOLERANCE = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1e-2}
Arguments = tuple[Any, ...]


def case(
    layers: int, rows: int, hidden: int, heads: tuple[int, int, int], wide: int, places: int, count: int,
    dtype: mx.Dtype = mx.float32, qk_norm: bool = True, biased: bool = False, recents: int = 1, recent: int = 0,
) -> Arguments:  # fmt: skip
    """Random arguments; heads are query heads, key heads and their size."""
    queries, groups, size = heads
    inputs, outputs = (hidden, queries * size, hidden, wide), ((queries + 2 * groups) * size, hidden, 2 * wide, hidden)
    shapes = [(rows, hidden), *((layers, i, o) for i, o in zip(inputs, outputs, strict=True))]
    shapes += [(layers, rows, groups, places, size)] * 2 + [(layers, rows, groups, recents, size)] * 2
    arrays = [mx.zeros(shape, dtype) for shape in shapes]
    *drawn, bias, count, recent, shape = example(
        *arrays, mx.zeros((rows, size // 2, 2)), None, count, recent, Shape(queries, qk_norm, 1e-5)
    )
    if biased:
        hidden_places = np.random.default_rng(0).random((rows, places)) < 0.4
        bias = mx.array(np.where(hidden_places, -np.inf, 0).astype(np.float32))
    return *drawn, bias, count, recent, shape


CASES = {  # layers, rows, hidden size, heads, feed-forward width, places, seen
    "tiny": case(3, 1, 64, (4, 2, 16), 128, 40, 37),
    "rows and a bias": case(2, 3, 64, (4, 2, 16), 128, 70, 66, biased=True, recents=7, recent=4),
    "an open window": case(2, 1, 64, (4, 2, 16), 128, 16, 0, recents=16, recent=7),
    "nothing seen": case(1, 2, 96, (6, 3, 32), 200, 1, 0, qk_norm=False),
    "odd sizes": case(2, 1, 40, (5, 1, 8), 24, 100, 99),
    "wide": case(1, 1, 384, (6, 3, 64), 1152, 33, 5),
    "many heads": case(1, 1, 144, (12, 12, 12), 48, 9, 3, qk_norm=False),
}


def expected(arguments: Arguments) -> list[np.ndarray]:
    """Row by row, float64."""
    *arrays, bias, count, recent, shape = arguments
    x, qkv, out, gate_up, down, keys, values, *new, angles = (
        np.array(a.astype(mx.float32)).astype(float) for a in arrays
    )
    rows, groups, size, seen = len(x), keys.shape[2], keys.shape[4], count + recent
    keys, values = (
        np.concatenate([cache[..., :count, :], young[..., :recent, :]], axis=3)
        for cache, young in zip((keys, values), new, strict=True)
    )
    own_keys, own_values = np.zeros((2, len(qkv), rows, groups, new[0].shape[3], size))
    own_keys[..., :recent, :], own_values[..., :recent, :] = keys[..., count:, :], values[..., count:, :]
    for a, n in np.ndindex(len(qkv), rows):
        z = (norm(x[n], shape.eps) @ qkv[a]).reshape(-1, size)
        turned = [turn(norm(h, shape.eps) if shape.qk_norm else h, angles[n]) for h in z[: shape.heads + groups]]
        own_keys[a, n, :, recent], own_values[a, n, :, recent] = turned[shape.heads :], z[shape.heads + groups :]
        heads = []
        for h in range(shape.heads):
            g = h * groups // shape.heads
            k = np.vstack([keys[a, n, g], own_keys[a, n, g, recent]])
            scores = k @ turned[h] / size**0.5
            scores[:seen] += 0 if bias is None else np.array(bias)[n, :seen]
            weights = np.exp(scores - scores.max())
            heads.append(weights @ np.vstack([values[a, n, g], own_values[a, n, g, recent]]) / weights.sum())
        x[n] += np.concatenate(heads) @ out[a]
        gate, up = np.split(norm(x[n], shape.eps) @ gate_up[a], 2)
        x[n] += (gate / (1 + np.exp(-gate)) * up) @ down[a]
    return [x, own_keys, own_values]


def norm(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2) + eps)


def turn(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    cos, sin = angles.T
    return np.stack([x[::2] * cos - x[1::2] * sin, x[::2] * sin + x[1::2] * cos], axis=-1).ravel()


def difference(found: Any, wanted: list[np.ndarray]) -> float:
    """Largest difference, relative to the largest value of each array."""
    parts = [
        np.abs(np.array(f.astype(mx.float32)) - w).max() / np.abs(w).max() for f, w in zip(found, wanted, strict=True)
    ]
    return float(max(parts)) if np.isfinite(parts).all() else float("inf")


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_reference_agree_with_float64(emulated: Any, name: str) -> None:
    wanted = expected(CASES[name])
    assert difference(reference(*CASES[name]), wanted) < 1e-5
    assert difference(launch(*CASES[name]), wanted) < 1e-5
    assert len(reports) == 1 and reports[0].threadgroup_bytes <= 32768


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).rpartition(".")[2])
@pytest.mark.parametrize("seed", range(6))
def test_random_layers_of_every_type(emulated: Any, seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    groups, size, places = int(rng.integers(1, 4)), int(rng.choice([16, 32, 64])), int(rng.integers(1, 60))
    heads = (groups * int(rng.integers(1, 5)), groups, size)
    widths = (
        int(rng.integers(1, 4)),
        int(rng.integers(1, 4)),
        int(rng.integers(8, 200)),
        heads,
        int(rng.integers(8, 300)),
    )
    arguments = case(*widths, places, int(rng.integers(0, places + 1)), dtype, bool(seed % 2))
    assert difference(launch(*arguments), expected(arguments)) < TOLERANCE[dtype]


def test_weights_are_read_once(emulated: Any) -> None:
    """A launch for one row moves each weight once, and the keys and values that are seen."""
    arguments = CASES["tiny"]
    launch(*arguments)
    *arrays, _, count, _, _ = arguments
    seen = [a.nbytes * count // a.shape[3] for a in arrays[5:7]]
    assert traffic(reports[0]) <= 1.2 * (sum(a.nbytes for a in arrays[:5]) + sum(seen))


def test_widths_that_do_not_fit() -> None:
    assert suits(64, 4, 2, 16, 128) and suits(768, 12, 6, 64, 2304)
    assert not suits(2048, 16, 8, 128, 8192) and not suits(64, 4, 2, 15, 128)
    assert suits(512, 4, 2, 96, 512) and not suits(512, 4, 2, 98, 512)  # of 128 registers a thread


def test_without_metal_the_reference_runs() -> None:
    found = decode_step(*CASES["tiny"])
    assert all(mx.array_equal(a, b) for a, b in zip(found, reference(*CASES["tiny"]), strict=True))
    assert not DECODE_STEP.trained


# --- mutants ----------------------------------------------------------------------------------------------------------

WANTED = {name: expected(arguments) for name, arguments in CASES.items()}


def run(name: str) -> tuple[float, tuple[int, ...]]:
    reports.clear()
    error = difference(launch(*CASES[name]), WANTED[name])
    return error, (traffic(reports[0]), reports[0].stats["barriers"])


@cache
def cost_of(name: str) -> tuple[int, ...]:
    return run(name)[1]


def check() -> None:
    for name in CASES:
        error, cost = run(name)
        assert error < 1e-5, f"{name}: off by {error:.1e}"
        assert cost == cost_of(name), f"{name}: other traffic or barriers"


EQUIVALENT = {  # by what stands in the line
    "constexpr int WIDE": "where both are equal either will do",
    "float highest = LOWEST, total": "the first key multiplies it by 0, and so does the largest score of all lanes",
    "sums[i] = 0.0f": "the same",
    "float score = 0.0f": "a number added to all scores changes no weight",
}


def all_mutants() -> Iterator[tuple[str, Mutant]]:
    lines = read_source("decode_step.metal").split("\n")
    for mutant in mutations("decode_step.metal"):
        line = lines[int(mutant.name.split()[0]) - 1]
        if not any(same in line for same in EQUIVALENT):
            yield "decode_step.metal", mutant
    yield from (("header.h", mutant) for mutant in mutations("header.h", after="// ---- a row times a matrix"))


ALL = list(all_mutants())


@pytest.mark.parametrize(("file", "mutant"), ALL, ids=[f"{file}:{mutant.name}" for file, mutant in ALL])
def test_mutants_are_noticed(emulated: Any, file: str, mutant: Mutant) -> None:
    for name in CASES:
        cost_of(name)
    assert_caught(file, mutant, check)
