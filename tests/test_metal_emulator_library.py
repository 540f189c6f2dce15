"""The emulator's Metal library against NumPy, and 16-bit floats against MLX's."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import metal_emulator as emu
import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import compiler

N = 32
FLOATS = {  # an expression of positive floats x and w, and what it is in float64
    "exp(x)": np.exp,
    "exp2(x)": np.exp2,
    "exp10(x)": lambda x: 10.0**x,
    "log(x)": np.log,
    "log2(x)": np.log2,
    "log10(x)": np.log10,
    "sqrt(x)": np.sqrt,
    "rsqrt(x)": lambda x: 1 / np.sqrt(x),
    "sin(x)": np.sin,
    "cos(x)": np.cos,
    "tan(x)": np.tan,
    "asin(x / 4)": lambda x: np.arcsin(x / 4),
    "acos(x / 4)": lambda x: np.arccos(x / 4),
    "atan(x)": np.arctan,
    "atan2(x, w)": np.arctan2,
    "sinh(x)": np.sinh,
    "cosh(x)": np.cosh,
    "tanh(x)": np.tanh,
    "fast::exp(x) + precise::tanh(x)": lambda x: np.exp(x) + np.tanh(x),
    "metal::precise::sin(x) + metal::fast::cos(x)": lambda x: np.sin(x) + np.cos(x),
    "floor(4 * x) + ceil(4 * x) + trunc(4 * x)": lambda x: 2 * np.floor(4 * x) + np.ceil(4 * x),
    "round(4 * x) - rint(4 * x + 0.25f)": lambda x: np.floor(4 * x + 0.5) - np.rint(4 * x + 0.25),
    "fract(4 * x)": lambda x: 4 * x - np.floor(4 * x),
    "abs(-x) + fabs(1.0f - x)": lambda x: x + abs(1 - x),
    "pow(x, w) + powr(w, x)": lambda x, w: x**w + w**x,
    "fmod(4 * x, w)": lambda x, w: np.fmod(4 * x, w),
    "copysign(x, -w)": lambda x, w: -x,
    "min(x, w) - max(x, w)": lambda x, w: -abs(x - w),
    "fmin(x, NAN) + fmax(NAN, w)": lambda x, w: x + w,
    "max3(x, w, 1.5f) - min3(x, w, 1.5f)": lambda x, w: np.maximum(x, w).clip(1.5) - np.minimum(x, w).clip(max=1.5),
    "clamp(x, 0.5f, 1.5f)": lambda x: x.clip(0.5, 1.5),
    "saturate(x - 0.5f)": lambda x: (x - 0.5).clip(0, 1),
    "fma(x, w, x)": lambda x, w: x * w + x,
    "mix(x, w, 0.25f)": lambda x, w: 0.75 * x + 0.25 * w,
    "step(x, w)": lambda x, w: (w >= x) * 1.0,
    "sign(x - w)": lambda x, w: np.sign(x - w),
    "select(x, w, x < 1.0f)": lambda x, w: np.where(x < 1, w, x),
    "float(isnan(x) + isnan(NAN + x) + isinf(INFINITY) + isfinite(w))": lambda x: np.full_like(x, 3),
    "ldexp(x, 3)": lambda x: 8 * x,
    "dot(float3(x, w, 1.0f), float3(2.0f))": lambda x, w: 2 * (x + w + 1),
    "length(float2(x, w))": np.hypot,
    "normalize(float2(x, w)).y": lambda x, w: w / np.hypot(x, w),
    "cross(float3(x, w, 1), float3(1, 2, 3)).z": lambda x, w: 2 * x - w,
    "exp(float4(x, w, 0, 1)).y + max(float2(x), float2(w)).x": lambda x, w: np.exp(w) + np.maximum(x, w),
    "as_type<float>(as_type<uint>(x) + 0u)": lambda x: x,
    "numeric_limits<float>::infinity() > x ? Limits<float>::min + INFINITY == 0 ? 0 : x : 0": lambda x: x,
}
INTEGERS = {  # of uints a and c, as uint
    "min(a, c) + max(a, 7u)": lambda a, c: np.minimum(a, c) + np.maximum(a, 7),
    "mulhi(a, c)": lambda a, c: (a.astype(np.uint64) * c) >> np.uint64(32),
    "uint(mulhi(int(a), int(c)))": lambda a, c: (a.astype(np.int32).astype(np.int64) * c.astype(np.int32)) >> 32,
    "uint(mulhi(ulong(a) << 32, ulong(c)))": lambda a, c: (a.astype(np.uint64) * c) >> np.uint64(32),
    "popcount(a)": lambda a, c: np.array([int(v).bit_count() for v in a]),
    "clz(a)": lambda a, c: np.array([32 - int(v).bit_length() for v in a]),
    "ctz(a)": lambda a, c: np.array([(int(v) & -int(v)).bit_length() - 1 for v in a]),
    "abs(int(a))": lambda a, c: abs(a.astype(np.int32)),
    "clamp(a, 5u, 1000u)": lambda a, c: a.clip(5, 1000),
    "rotate(a, 5u)": lambda a, c: (a << np.uint32(5)) | (a >> np.uint32(27)),
    "reverse_bits(a)": lambda a, c: np.array([int(f"{v:032b}"[::-1], 2) for v in a]),
    "extract_bits(a, 3, 7)": lambda a, c: (a >> np.uint32(3)) & np.uint32(127),
    "insert_bits(a, c, 4, 8)": lambda a, c: (a & ~np.uint32(0xFF0)) | ((c << np.uint32(4)) & np.uint32(0xFF0)),
    "absdiff(a, c)": lambda a, c: np.maximum(a, c) - np.minimum(a, c),
    "select(a, c, (c & 1u) == 1u)": lambda a, c: np.where(c & 1, c, a),
    "uint(select(uint2(a), uint2(c), uint2(a) < uint2(c)).x)": np.maximum,
    "uint(ulong(a) * c >> 16)": lambda a, c: (a.astype(np.uint64) * c) >> np.uint64(16),
    "uint(any(uint2(a, 0) > 5u)) + uint(all(uint2(a, 0) > 5u))": lambda a, c: (a > 5) * 1,
    "as_type<uint>(uchar4(uchar(a), 0, 1, 0))": lambda a, c: (a & np.uint32(255)) + (1 << 16),
}
LANES = {  # of a value v and the lane l, in a simdgroup of 32
    "simd_sum(v)": lambda v, i: np.full(N, v.sum()),
    "simd_product(1 + v / 64)": lambda v, i: np.full(N, (1 + v / 64).prod()),
    "simd_max(v) - simd_min(v)": lambda v, i: np.full(N, v.max() - v.min()),
    "simd_prefix_exclusive_sum(v)": lambda v, i: np.cumsum(v) - v,
    "simd_prefix_inclusive_sum(v)": lambda v, i: np.cumsum(v),
    "simd_prefix_inclusive_product(1 + v / 64)": lambda v, i: np.cumprod(1 + v / 64),
    "simd_shuffle(v, (l + 5) % 32)": lambda v, i: v[(i + 5) % 32],
    "simd_shuffle_xor(v, 3)": lambda v, i: v[i ^ 3],
    "simd_shuffle_down(v, 4)": lambda v, i: v[np.where(i < 28, i + 4, i)],
    "simd_shuffle_up(v, 4)": lambda v, i: v[np.where(i >= 4, i - 4, i)],
    "simd_shuffle_rotate_down(v, 4)": lambda v, i: v[(i + 4) % 32],
    "simd_shuffle_rotate_up(v, 4)": lambda v, i: v[(i - 4) % 32],
    "simd_shuffle_and_fill_down(v, -v, 2)": lambda v, i: np.where(i < 30, v[(i + 2) % 32], -v[(i + 2) % 32]),
    "simd_shuffle_and_fill_up(v, -v, 2)": lambda v, i: np.where(i < 2, -v[(i - 2) % 32], v[(i - 2) % 32]),
    "simd_broadcast(v, 9)": lambda v, i: np.full(N, v[9]),
    "simd_broadcast_first(v)": lambda v, i: np.full(N, v[0]),
    "simd_all(v > 0) + 2 * simd_any(v > 0.9f)": lambda v, i: np.full(N, (v > 0).all() + 2 * (v > 0.9).any()),
    "simd_sum(float2(v, 1)).y": lambda v, i: np.full(N, 32),
    "float(simd_or(uint(1) << l) == simd_xor(uint(1) << l))": lambda v, i: np.ones(N),
    "float(ulong(simd_ballot(v > 0.5f)) >> l & 1)": lambda v, i: v > 0.5,
    "simd_max(l) + simd_and(l | 64)": lambda v, i: np.full(N, 31 + 64),
}


def evaluate(expressions: list[str], setup: str, inputs: list[mx.array], dtype: mx.Dtype = mx.float32) -> np.ndarray:
    """Values of every expression for every thread of a simdgroup, ``[expressions, 32]``."""
    lines = [f"y[{n * N} + l] = {expression};" for n, expression in enumerate(expressions)]
    kernel = emu.metal_kernel(
        name="library", input_names=["first", "second"], output_names=["y"],
        source="\n".join(["const uint l = thread_position_in_grid.x;", setup, *lines]),
    )  # fmt: skip
    shape = (len(expressions), N)
    launch = {"grid": (N, 1, 1), "threadgroup": (N, 1, 1), "output_shapes": [shape], "output_dtypes": [dtype]}
    return np.array(kernel(inputs=inputs, **launch)[0])


def check(table: dict[str, Callable], got: np.ndarray, *arguments: np.ndarray, tolerance: float = 0) -> None:
    for (expression, function), row in zip(table.items(), got, strict=True):
        count = min(
            len(arguments), getattr(getattr(function, "__code__", None), "co_argcount", getattr(function, "nin", 1))
        )
        assert np.allclose(row, function(*arguments[:count]), rtol=tolerance, atol=tolerance), expression


def test_floats(rng: np.random.Generator) -> None:
    x, w = rng.uniform(0.1, 2.5, (2, N)).astype(np.float32)
    got = evaluate(list(FLOATS), "const float x = first[l], w = second[l];", [mx.array(x), mx.array(w)])
    check(FLOATS, got, x.astype(np.float64), w.astype(np.float64), tolerance=2e-6)


def test_integers(rng: np.random.Generator) -> None:
    a, c = rng.integers(1, 2**32, (2, N), dtype=np.uint32)
    setup = "const uint a = first[l], c = second[l];"
    got = evaluate(list(INTEGERS), setup, [mx.array(a), mx.array(c)], mx.uint32)
    wrapped = {
        expression: (lambda a, c, f=function: np.asarray(f(a, c)).astype(np.uint32))
        for expression, function in INTEGERS.items()
    }
    for (expression, function), row in zip(wrapped.items(), got, strict=True):
        assert row.tolist() == function(a, c).tolist(), expression


def test_lanes(rng: np.random.Generator) -> None:
    v = rng.uniform(0, 1, N).astype(np.float32)
    got = evaluate(list(LANES), "const float v = first[l] + second[0];", [mx.array(v), mx.zeros(1)])
    check(LANES, got, v, np.arange(N), tolerance=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_arithmetic_rounds_every_time(dtype: mx.Dtype, rng: np.random.Generator) -> None:
    """As on a GPU: no 16-bit value is kept wider between two operations."""
    x, w = (mx.array(rng.uniform(-3, 3, N).astype(np.float32)).astype(dtype) for _ in range(2))
    type_ = "half" if dtype == mx.float16 else "bfloat"
    setup = f"const {type_} x = first[l], w = second[l], one = {type_}(1.0f);"
    got = evaluate(["float(x * w + one)", "float(exp(x))", "float(x / w)", "float(max(x, w))"], setup, [x, w])
    expected = [x * w + 1, mx.exp(x.astype(mx.float32)).astype(dtype), x / w, mx.maximum(x, w)]
    assert np.array_equal(got, np.array(mx.stack(expected).astype(mx.float32)))


@pytest.mark.parametrize("type_", ["float", "half", "bfloat"])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(type_: str, transposed: bool, rng: np.random.Generator) -> None:
    """Loads, products and stores of 8 x 8 tiles, and what each lane holds of one."""
    dtype = {"float": mx.float32, "half": mx.float16, "bfloat": mx.bfloat16}[type_]
    a, b = (mx.array(rng.integers(-4, 5, (8, 12)).astype(np.float32)).astype(dtype) for _ in range(2))
    turn = "true" if transposed else "false"
    kernel = emu.metal_kernel(
        name="matrices", input_names=["a", "b"], output_names=["y", "lanes"],
        source=f"""
        simdgroup_matrix<{type_}, 8, 8> m, n;
        simdgroup_load(m, a, 12, ulong2(4, 0), {turn});
        simdgroup_load(n, b, 12);
        simdgroup_matrix<float, 8, 8> sum(2.0f);
        simdgroup_multiply_accumulate(sum, m, n, sum);
        simdgroup_store(sum, y, 8, ulong2(0, 0), {turn});
        const uint lane = thread_index_in_simdgroup;
        for (int e = 0; e < 2; ++e) lanes[2 * lane + e] = sum.thread_elements()[e];
        """,
    )  # fmt: skip
    y, lanes = kernel(
        inputs=[a, b], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(8, 8), (32, 2)],
        output_dtypes=[mx.float32, mx.float32],
    )  # fmt: skip
    left, right = (np.array(m.astype(mx.float32)) for m in (a[:, 4:12], b[:, :8]))
    product = (left.T if transposed else left) @ right + 2 * np.eye(8)
    assert np.array_equal(np.array(y), product.T if transposed else product)
    for lane in range(32):  # MLX's get_coord, steel/gemm/mma.h
        quad = lane // 4
        row, column = (quad & 4) + (lane // 2) % 4, (quad & 2) * 2 + (lane % 2) * 2
        assert lanes[lane].tolist() == product[row, column : column + 2].tolist()


def test_atomics() -> None:
    updates = ["add", "sub", "max", "min", "and", "or", "xor"]
    lines = [f"atomic_fetch_{op}_explicit(&y[{n}], int(l), memory_order_relaxed);" for n, op in enumerate(updates)]
    kernel = emu.metal_kernel(
        name="atomics", input_names=[], output_names=["y"], atomic_outputs=True,
        source="const uint l = thread_position_in_grid.x;\n" + "\n".join(lines) + """
        if (l == 5) atomic_store_explicit(&y[7], 9, memory_order_relaxed);
        if (l == 6) atomic_exchange_explicit(&y[8], 7, memory_order_relaxed);
        int expected = 5;
        atomic_compare_exchange_weak_explicit(&y[9], &expected, 6, memory_order_relaxed, memory_order_relaxed);
        """,
    )  # fmt: skip
    (y,) = kernel(
        inputs=[],
        init_value=5,
        grid=(40, 1, 1),
        threadgroup=(20, 1, 1),
        output_shapes=[(10,)],
        output_dtypes=[mx.int32],
    )
    lanes = np.arange(40)
    combined = [np.bitwise_and.reduce(lanes) & 5, np.bitwise_or.reduce(lanes) | 5, np.bitwise_xor.reduce(lanes) ^ 5]
    assert y.tolist() == [5 + lanes.sum(), 5 - lanes.sum(), 39, 0, *combined, 9, 7, 6]


# --- conversions that processors without 16-bit floats need -----------------------------------------------------------


def test_conversions(tmp_path: Path) -> None:
    """The runtime's own conversions against NumPy's half and MLX's bfloat, for all halves and every kind of float."""
    code = tmp_path / "numbers.cpp"
    numbers = compiler.HERE / "runtime" / "numbers.cpp"
    code.write_text(f"""
    #include "{numbers}"
    extern "C" void narrow(const float* x, u16* half, u16* bfloat, int n) {{
      for (int i = 0; i < n; ++i) half[i] = half_bits(x[i]), bfloat[i] = bfloat_bits(x[i]);
    }}
    extern "C" void widen(const u16* half, float* x, int n) {{
      for (int i = 0; i < n; ++i) x[i] = float_of_half(half[i]);
    }}
    """)
    tools = compiler.toolchain()
    object_, library = tmp_path / "numbers.o", tmp_path / "numbers.so"
    compiler.run([*tools.compile, "-x", "c++", "-std=c++17", "-fPIC", "-O1", "-c", str(code), "-o", str(object_)])
    compiler.run([*tools.link, str(object_), "-o", str(library)])
    functions = ctypes.CDLL(str(library))

    halves = np.arange(65536, dtype=np.uint16)
    wide = np.empty(65536, np.float32)
    functions.widen(halves.ctypes.data_as(ctypes.c_void_p), wide.ctypes.data_as(ctypes.c_void_p), 65536)
    expected = halves.view(np.float16).astype(np.float32)
    assert np.array_equal(wide, expected, equal_nan=True)

    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    near = expected.view(np.uint32)[:, None] + np.array(
        [0, 1, -1, 4096, 4095, 4097, 8191], np.int64
    )  # ties and their like
    x = np.concatenate([bits, near.astype(np.uint32).ravel()]).view(np.float32)
    half, bfloat = np.empty(x.shape, np.uint16), np.empty(x.shape, np.uint16)
    functions.narrow(*(a.ctypes.data_as(ctypes.c_void_p) for a in (x, half, bfloat)), len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.array_equal(half.view(np.float16), x.astype(np.float16), equal_nan=True)
    widened = (bfloat.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(widened, np.array(mx.array(x).astype(mx.bfloat16).astype(mx.float32)), equal_nan=True)
