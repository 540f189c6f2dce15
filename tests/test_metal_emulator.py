"""The Metal emulator: right kernels pass with right values, and every kind of planted mistake is found."""

import re

import metal_emulator as emu
import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import EmulatorError, MetalCompileError
from metal_emulator.build import build, build_many
from right_kernels import MATMUL, ROW_SUM, SCALE, Kernel, cases, uniform

ORDERS = (0, 1, 7)  # of threads: ascending, descending, shuffled


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", ["scale", "transpose", "row sum", "matmul", "histogram", "reverse"])
def test_right_kernels(name: str, checked: bool) -> None:
    kernel, inputs, shape, expected = cases()[name]
    for seed in ORDERS:
        output, report = kernel.run(inputs, shape, expected.dtype, checked=checked, seed=seed)
        assert report.errors == []
        assert np.allclose(output, expected, rtol=1e-5)


# --- planted mistakes -------------------------------------------------------------------------------------------------

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
MISTAKES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {  # kernel, kind, edits
    "no barrier": ("transpose", "RACE", [(BARRIER, "")]),
    "barrier for no memory": ("transpose", "RACE", [("mem_threadgroup", "mem_none")]),
    "barrier for other memory": ("transpose", "RACE", [("mem_threadgroup", "mem_device")]),
    "barrier of a simdgroup": ("transpose", "RACE", [("threadgroup_barrier", "simdgroup_barrier")]),
    "barrier before the stores": ("row sum", "RACE", [(BARRIER, ""), ("sum = simd_sum", BARRIER + " sum = simd_sum")]),
    "lanes without a barrier": ("reverse", "RACE", [("simdgroup_barrier(mem_flags::mem_threadgroup);", "")]),
    "lanes, barrier for no memory": ("reverse", "RACE", [("mem_threadgroup", "mem_none")]),
    "other simdgroup's memory": ("reverse", "RACE", [("tid ^ 31", "tid ^ 32")]),
    "barrier in a branch": ("row sum", "DIVERGENT-BARRIER", [(BARRIER, f"if (tid < 64) {BARRIER}")]),
    "two barriers": ("row sum", "DIVERGENT-BARRIER", [(BARRIER, f"if (tid < 64) {BARRIER}\nelse {BARRIER}")]),
    "return before a barrier": ("transpose", "DIVERGENT-BARRIER", [(BARRIER, f"if (at.x == 5) return;\n{BARRIER}")]),
    "simdgroup_barrier in a branch": ("reverse", "DIVERGENT-BARRIER", [("simdgroup_b", "if (tid % 2) simdgroup_b")]),
    "simd operation in a branch": ("row sum", "DIVERGENT-SIMD", [("sum = simd", "if (tid % 2) sum = simd")]),
    "different simd operations": (
        "row sum", "DIVERGENT-SIMD", [("sum = simd_sum(sum);", "sum = tid % 2 ? simd_sum(sum)\n: simd_max(sum);")],
    ),
    "matrix product in a branch": (
        "matmul", "DIVERGENT-SIMD", [("simdgroup_multiply", "if (lane < 16) simdgroup_multiply")],
    ),
    "matrix load in a branch": ("matmul", "DIVERGENT-SIMD", [("simdgroup_load(b", "if (lane < 16) simdgroup_load(b")]),
    "matrix store in a branch": ("matmul", "DIVERGENT-SIMD", [("simdgroup_store", "if (lane < 16) simdgroup_store")]),
    "device load past the end": ("scale", "OUT-OF-BOUNDS", [("x[i]", "x[i + 1]")]),
    "device load before the start": ("scale", "OUT-OF-BOUNDS", [("x[i]", "x[int(i) - 1]")]),
    "device load far away": ("scale", "OUT-OF-BOUNDS", [("x[i]", "x[i * 1000000000ul]")]),
    "device store past the end": ("scale", "OUT-OF-BOUNDS", [("y[i]", "y[i + 1]")]),
    "matrix load past the end": ("matmul", "OUT-OF-BOUNDS", [("x + row * K + k", "x + (row + 1) * K + k")]),
    "matrix store past the end": ("matmul", "OUT-OF-BOUNDS", [("y + row * N", "y + (row + 8) * N")]),
    "bound check missing": ("transpose", "OUT-OF-BOUNDS", [("row < rows && ", "")]),
    "bound check off by one": ("transpose", "OUT-OF-BOUNDS", [("row < rows", "row <= rows")]),
    "threadgroup load past the end": ("reverse", "OUT-OF-BOUNDS", [("values[tid ^ 31]", "(values + 33)[tid ^ 31]")]),
    "threadgroup store past the end": ("reverse", "OUT-OF-BOUNDS", [("values[64]", "values[63]")]),
    "index outside a row": ("transpose", "INDEX", [("tile[16][17]", "tile[17][15]")]),
    "index outside a thread's array": ("scale", "INDEX", [("y[i] =", "float own[4] = {1, 2, 3, 4}; y[i] = own[i] *")]),
    "atomic past the end": ("histogram", "OUT-OF-BOUNDS", [("&y[tid]", "&y[tid + 1]")]),
    "threadgroup memory not set": ("row sum", "UNINITIALISED", [("thread_index_in_simdgroup == 0", "tid == 0")]),
    "threadgroup atomic not set": ("histogram", "UNINITIALISED", [("if (tid < 16) atomic_s", "// ")]),
    "output read": ("scale", "UNINITIALISED", [("y[i] =", "y[i] +=")]),
    "matrix not set": ("matmul", "UNINITIALISED", [(" = make_filled_simdgroup_matrix<float, 8, 8>(0.0f)", "")]),
    "matrix not loaded": ("matmul", "UNINITIALISED", [("simdgroup_load(a, x + row * K + k, K);", "")]),
    "unset matrix stored": ("matmul", "UNINITIALISED", [("simdgroup_store(c", "simdgroup_store(simdgroup_float8x8()")]),
    "output not written": ("scale", "UNWRITTEN", [("y[i] =", "if (i != 50) y[i] =")]),
    "threadgroups store at one place": ("row sum", "RACE", [("y[row]", "y[0 * row]")]),
    "a threadgroup reads another's output": ("scale", "RACE", [("2.0f * x[i];", "2.0f; y[i] *= y[i ^ 32];")]),
    "lanes store at one place": ("scale", "RACE", [("y[i]", "y[i / 2]")]),
    "atomic and plain store": (
        "histogram", "RACE", [("uint count = 0;", "uint count = 0; *(threadgroup uint*)(counts + 3) = 1;")],
    ),
    "store to an input": ("scale", "READ-ONLY", [("y[i] =", "((device float*)x)[i] = 1; y[i] =")]),
    "pointer not aligned": ("scale", "MISALIGNED", [("y[i] =", "y[i] = (*(const device float2*)(x + 1)).x *")]),
    "division by zero": ("scale", "DIVISION", [("y[i] =", "y[i] = (i / (i / 100)) *")]),
    "endless loop": ("scale", "BUDGET", [("y[i] =", "for (uint k = 1; k != 0; k += 2) {} y[i] =")]),
    "endless loop without a condition": ("scale", "BUDGET", [("y[i] =", "while (true) {} y[i] =")]),
    "endless reading": ("scale", "BUDGET", [("y[i] =", "while (x[i] < 2.0f) {} y[i] =")]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    name, kind, edits = MISTAKES[mistake]
    kernel, inputs, shape, expected = cases()[name]
    for seed in ORDERS:
        report = kernel.run(inputs, shape, expected.dtype, edits, seed=seed, budget=10**6)[1]
        assert kind in {finding.kind for finding in report.errors}, report.errors


def test_threadgroup_memory() -> None:
    body = "threadgroup float big[%d];\nbig[thread_index_in_threadgroup] = 1; y[0] = big[0];"
    for floats, kinds in ((8192, []), (8193, ["THREADGROUP-MEMORY"])):
        report = Kernel(body % floats, grid=(1, 1, 1), threadgroup=(1, 1, 1)).run([], (1,))[1]
        assert report.threadgroup_bytes == 4 * floats
        assert [finding.kind for finding in report.errors] == kinds


def test_partial_simdgroup() -> None:
    kernel = Kernel(MATMUL.body, grid=(16, 1, 1), threadgroup=(16, 1, 1))
    report = kernel.run([uniform(8, 8), uniform(8, 8)], (8, 8))[1]
    assert "PARTIAL-SIMDGROUP" in {finding.kind for finding in report.errors}


def test_lane_that_does_not_exist() -> None:
    kernel = Kernel(
        "y[thread_index_in_simdgroup] = simd_shuffle_xor(x[0], 16);", grid=(20, 1, 1), threadgroup=(20, 1, 1)
    )
    output, report = kernel.run([mx.ones(8)], (20,))
    assert report.errors == []
    assert np.isnan(np.array(output)).tolist() == [not 16 <= lane < 20 and lane >= 4 for lane in range(20)]


@pytest.mark.parametrize("type_", ["float", "half", "bfloat"])
def test_thread_variables_start_as_nan(type_: str) -> None:
    body = f"{type_} own[4];\nown[1] = {type_}(1.0f);\ny[0] = float(own[x[0] > 0]);\ny[1] = float(own[2 * (x[0] > 0)]);"
    output, _ = Kernel(body, grid=(1, 1, 1), threadgroup=(1, 1, 1)).run([mx.ones(8)], (2,))
    assert output[0] == 1
    assert np.isnan(output[1].item())


def test_stack() -> None:
    body = "float own[40000];\nfor (int i = 0; i < 40000; ++i) own[i] = x[i % 8];\ny[0] = own[int(x[0]) + 3];"
    with pytest.raises(MetalCompileError, match="stack frame size"):
        Kernel(body, grid=(1, 1, 1), threadgroup=(1, 1, 1)).run([mx.ones(8)], (1,))


# --- reports ----------------------------------------------------------------------------------------------------------


def test_message_names_line_and_text() -> None:
    with pytest.raises(EmulatorError) as caught:
        SCALE.run([uniform(100)], (100,), edits=[("x[i]", "x[i + 1]")], strict=True)
    expected = (
        r"OUT-OF-BOUNDS line 6: 'x': load of 4 bytes ends 4 bytes past its end "
        r"\(thread 3 of threadgroup \(3, 0, 0\)\)  \| y\[i\] = 2\.0f \* x\[i \+ 1\];"
    )
    assert re.fullmatch(expected, str(caught.value)), str(caught.value)


def test_bytes_a_line() -> None:
    inputs = [uniform(16, 24), uniform(24, 24)]
    report = MATMUL.run(inputs, (16, 24))[1]
    text = report.source.split("\n")
    lines = {
        (op, text[line - 1].strip().split("(")[0]): size
        for (space, op, line), size in report.lines.items()
        if space == "device"
    }
    tile = 8 * 8 * 4
    assert lines == {
        ("load", "simdgroup_load"): 6 * 3 * tile,  # of b, the later line; a has as many
        ("store", "simdgroup_store"): 6 * tile,
    }
    assert report.traffic == (6 * 3 * 2 + 6) * tile
    assert report.floor == sum(x.nbytes for x in inputs) + 16 * 24 * 4
    assert report.stats["mma"] == 18
    assert report.buffers["x"].unique_loaded == inputs[0].nbytes
    assert report.buffers["y"].unique_stored == 16 * 24 * 4
    assert "simdgroup_load(a, x + row * K + k, K);" in report.line_table()


def test_stats() -> None:
    report = ROW_SUM.run([uniform(3, 300)], (3,))[1]
    stats = report.stats
    assert (stats["threadgroups"], stats["threads"], stats["barriers"]) == (3, 384, 3)
    assert stats["simd_ops"] == 12
    assert (stats["device_load_bytes"], stats["device_store_bytes"]) == (3600, 12)
    assert (stats["threadgroup_load_bytes"], stats["threadgroup_store_bytes"]) == (48, 48)
    assert report.threadgroup_bytes == 16
    assert report.ratio == 1
    assert ROW_SUM.run([uniform(3, 300)], (3,), checked=False)[1].traffic == 0


def test_launch_that_does_not_fit() -> None:
    for grid, threadgroup, text in (
        ((8, 1, 1), (64, 32, 1), "1024 at most"),
        ((8, 1, 0), (8, 1, 1), "3 positive numbers"),
    ):
        with pytest.raises(EmulatorError, match=text):
            Kernel(SCALE.body, grid=grid, threadgroup=threadgroup).run([uniform(8)], (8,))
    kernel = build("[[kernel]] void k(device float* y [[buffer(0)]]) { y[0] = 1; }")
    with pytest.raises(EmulatorError, match=r"1 buffers \['y'\], 0 arguments"):
        emu.launch(kernel, [], (1, 1, 1), (1, 1, 1))


def test_build_many() -> None:
    text = "[[kernel]] void k(device float* y [[buffer(0)]]) {{ y[0] = {}; }}"
    good, bad = build_many([text.format("1.5f"), text.format("no_such_name")])
    assert isinstance(bad, MetalCompileError)
    assert not isinstance(good, MetalCompileError)
    y = np.zeros(1, np.float32)
    emu.launch(good, [emu.Argument(y, "out")], (1, 1, 1), (1, 1, 1))
    assert y[0] == 1.5
