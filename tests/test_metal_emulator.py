"""The Metal emulator: right kernels pass with right values, and every kind of planted mistake is found."""

import re
from collections.abc import Sequence
from typing import Any

import metal_emulator as emu
import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import EmulatorError, MetalCompileError, Report
from metal_emulator.build import build, build_many

ORDERS = (0, 1, 7)  # of threads: ascending, descending, shuffled
Arrays = Sequence[mx.array]


class Kernel:
    """A kernel's body and how it is launched; `run` gives outputs and report, findings included."""

    def __init__(self, body: str, *, grid: Sequence[int], threadgroup: Sequence[int], **options: Any) -> None:
        self.body, self.grid, self.threadgroup, self.options = body.strip("\n"), grid, threadgroup, options

    def run(
        self, inputs: Arrays, shape: Sequence[int], dtype: mx.Dtype = mx.float32, edits: Any = (), **how: Any
    ) -> tuple[mx.array, Report]:
        body = self.body
        for old, new in edits:
            assert old in body, old
            body = body.replace(old, new)
        names = ["x", "w"][: len(inputs)]
        launch = {key: value for key, value in self.options.items() if key in ("template", "init_value")}
        build = {key: value for key, value in self.options.items() if key not in launch}
        kernel = mx.fast.metal_kernel(name="test", input_names=names, output_names=["y"], source=body, **build)

        def call(*arrays: mx.array) -> list[mx.array]:
            return kernel(
                inputs=list(arrays), grid=self.grid, threadgroup=self.threadgroup, output_shapes=[tuple(shape)],
                output_dtypes=[dtype], **launch,
            )  # fmt: skip

        (traced,) = emu.trace(call, *inputs)
        (output,), report = emu.run_traced(traced, inputs, self.options.get("init_value"), **{"strict": False, **how})
        return output, report


# --- right kernels ----------------------------------------------------------------------------------------------------

SCALE = Kernel("uint i = thread_position_in_grid.x;\ny[i] = 2.0f * x[i];", grid=(100, 1, 1), threadgroup=(32, 1, 1))

TRANSPOSE = Kernel(
    """
    threadgroup float tile[16][17];
    const int rows = x_shape[0], columns = x_shape[1];
    const uint2 at = thread_position_in_threadgroup.xy, corner = 16 * threadgroup_position_in_grid.xy;
    int row = corner.y + at.y, column = corner.x + at.x;
    if (row < rows && column < columns) tile[at.y][at.x] = x[row * columns + column];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    row = corner.x + at.y, column = corner.y + at.x;
    if (row < columns && column < rows) y[row * rows + column] = tile[at.x][at.y];
    """,
    grid=(64, 48, 1),
    threadgroup=(16, 16, 1),
)

ROW_SUM = Kernel(
    """
    threadgroup float partial[4];
    const uint tid = thread_index_in_threadgroup, row = threadgroup_position_in_grid.x;
    float sum = 0.0f;
    for (int i = tid; i < x_shape[1]; i += 128) sum += x[row * x_shape[1] + i];
    sum = simd_sum(sum);
    if (thread_index_in_simdgroup == 0) partial[simdgroup_index_in_threadgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid == 0) y[row] = partial[0] + partial[1] + partial[2] + partial[3];
    """,
    grid=(3 * 128, 1, 1),
    threadgroup=(128, 1, 1),
)

MATMUL = Kernel(  # a simdgroup for every 8 x 8 tile of the product
    """
    const int K = x_shape[1], N = w_shape[1], lane = thread_index_in_simdgroup;
    const ulong row = 8 * threadgroup_position_in_grid.y, column = 8 * threadgroup_position_in_grid.x;
    simdgroup_float8x8 a, b, c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int k = 0; k < K; k += 8) {
      simdgroup_load(a, x + row * K + k, K);
      simdgroup_load(b, w, N, ulong2(column, k));
      simdgroup_multiply_accumulate(c, a, b, c);
    }
    simdgroup_store(c, y + row * N + column, N);
    """,
    grid=(3 * 32, 2, 1),
    threadgroup=(32, 1, 1),
)

HISTOGRAM = Kernel(
    """
    threadgroup atomic_uint counts[16];
    const uint tid = thread_index_in_threadgroup, i = thread_position_in_grid.x;
    if (tid < 16) atomic_store_explicit(&counts[tid], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&counts[x[i] % 16], 1u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint count = 0;
    if (tid < 16) count = atomic_load_explicit(&counts[tid], memory_order_relaxed);
    if (tid < 16) atomic_fetch_add_explicit(&y[tid], count, memory_order_relaxed);
    """,
    grid=(300, 1, 1),
    threadgroup=(64, 1, 1),
    atomic_outputs=True,
    init_value=0,
)

REVERSE = Kernel(  # lanes swap values through memory that only their simdgroup uses
    """
    threadgroup float values[64];
    const uint tid = thread_index_in_threadgroup, i = thread_position_in_grid.x;
    values[tid] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = values[tid ^ 31];
    """,
    grid=(128, 1, 1),
    threadgroup=(64, 1, 1),
)


def uniform(*shape: int) -> mx.array:
    return mx.random.uniform(shape=shape)


def cases() -> dict[str, tuple[Kernel, list[mx.array], tuple[int, ...], mx.array]]:
    """Kernel, inputs, shape of the output, and what it should be."""
    line, matrix, rows = uniform(100), uniform(37, 53), uniform(3, 300)
    a, b, waves = uniform(16, 24), uniform(24, 24), uniform(128)
    numbers = mx.random.randint(0, 1000, (300,)).astype(mx.uint32)
    counts = mx.array(np.bincount(np.array(numbers) % 16, minlength=16).astype(np.uint32))
    return {
        "scale": (SCALE, [line], (100,), 2 * line),
        "transpose": (TRANSPOSE, [matrix], (53, 37), matrix.T),
        "row sum": (ROW_SUM, [rows], (3,), rows.sum(1)),
        "matmul": (MATMUL, [a, b], (16, 24), a @ b),
        "histogram": (HISTOGRAM, [numbers], (16,), counts),
        "reverse": (REVERSE, [waves], (128,), waves.reshape(4, 32)[:, ::-1].reshape(128)),
    }


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


# --- what MLX passes --------------------------------------------------------------------------------------------------


def test_small_inputs_are_constant() -> None:
    """MLX passes inputs of fewer than 8 elements in constant memory, so a pointer must not name its space."""
    body = "{} p = x;\ny[thread_position_in_grid.x] = p[thread_position_in_grid.x];"
    for pointer, size, fits in (("auto", 7, True), ("auto", 8, True), ("const device float*", 8, True)):
        kernel = Kernel(body.format(pointer), grid=(size, 1, 1), threadgroup=(8, 1, 1))
        output, report = kernel.run([mx.arange(size).astype(mx.float32)], (size,))
        assert fits and output.tolist() == list(range(size))
        assert report.stats["constant_loads"] == (size if size < 8 else 0)
    kernel = Kernel(body.format("const device float*"), grid=(7, 1, 1), threadgroup=(8, 1, 1))
    with pytest.raises(MetalCompileError, match=r"kernel\.metal:\d+:\d+: error: cannot initialize"):
        kernel.run([mx.zeros(7)], (7,))


def test_scalar_input() -> None:
    output, _ = Kernel("y[0] = x + 1.0f;", grid=(1, 1, 1), threadgroup=(1, 1, 1)).run([mx.array(3.0)], ())
    assert output.item() == 4


DTYPES = [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64, mx.float16, mx.bfloat16,
    mx.float32,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types(dtype: mx.Dtype) -> None:
    x = mx.random.randint(0, 100, (40,)).astype(dtype)
    body = "uint i = thread_position_in_grid.x;\ny[i] = x[i];"
    output, report = Kernel(body, grid=(40, 1, 1), threadgroup=(40, 1, 1)).run([x], (40,), dtype)
    assert output.dtype == dtype
    assert output.tolist() == x.tolist()
    assert report.traffic == report.floor == 2 * x.nbytes


VIEWS = {
    "transposed": lambda x: x.T,
    "every second": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1],
    "broadcast": lambda x: mx.broadcast_to(x[:, None], (4, 3, 10)),
    "offset": lambda x: x[1:, 2:7],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("contiguous", [True, False])
def test_views(view: str, contiguous: bool) -> None:
    x = VIEWS[view](uniform(4, 10))
    read = "x[i]" if contiguous else "x[elem_to_loc<int64_t>(i, x_shape, x_strides, x_ndim)]"
    kernel = Kernel(
        f"uint i = thread_position_in_grid.x;\ny[i] = {read};",
        grid=(x.size, 1, 1), threadgroup=(16, 1, 1), ensure_row_contiguous=contiguous,
    )  # fmt: skip
    output, report = kernel.run([x], x.shape)
    assert report.errors == []
    assert mx.array_equal(output, x)


def test_between_the_elements_of_a_view() -> None:
    body = "uint i = thread_position_in_grid.x;\ny[i] = x[i];"
    kernel = Kernel(body, grid=(10, 1, 1), threadgroup=(10, 1, 1), ensure_row_contiguous=False)
    report = kernel.run([uniform(20)[::2]], (10,))[1]
    assert {finding.kind for finding in report.errors} == {"UNINITIALISED"}


def test_template_header_and_outputs(emulated: list[Report]) -> None:
    kernel = emu.metal_kernel(
        name="both", input_names=["x"], output_names=["twice", "plus"],
        header="template <typename T> T add(T a, int b) { return a + T(b); }\n",
        source="uint i = thread_position_in_grid.x;\ntwice[i] = x[i] * (BIG ? 2 : 1);\nplus[i] = add<T>(x[i], N);",
    )  # fmt: skip
    x = mx.arange(12)
    twice, plus = kernel(
        inputs=[x], template=[("T", mx.int32), ("N", 5), ("BIG", True)], grid=(12, 1, 1), threadgroup=(256, 1, 1),
        output_shapes=[(12,), (3, 4)], output_dtypes=[mx.int32, mx.int32],
    )  # fmt: skip
    assert twice.tolist() == (2 * x).tolist()
    assert plus.tolist() == (x + 5).reshape(3, 4).tolist()
    assert [report.stats["threads"] for report in emulated] == [12]


def test_gradients(emulated: list[Report]) -> None:
    """The stand-in works where MLX differentiates: values are there, the graph is not."""
    kernel = emu.metal_kernel(
        name="square", input_names=["x"], output_names=["y"],
        source="uint i = thread_position_in_grid.x;\ny[i] = x[i] * x[i];",
    )  # fmt: skip

    def launch(x: mx.array) -> mx.array:
        grid = {"grid": (x.size, 1, 1), "threadgroup": (32, 1, 1)}
        return kernel(inputs=[x], output_shapes=[x.shape], output_dtypes=[x.dtype], **grid)[0]

    @mx.custom_function
    def square(x: mx.array) -> mx.array:
        return launch(x)

    @square.vjp
    def square_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return 2 * cotangent * launch(x) / x

    x = mx.arange(1, 51).astype(mx.float32)
    value, gradient = mx.value_and_grad(lambda x: square(3 * x).sum())(x)
    assert value == 9 * (x * x).sum()
    assert mx.allclose(gradient, 18 * x)
    (weighted,) = mx.vjp(square, [x], [x])[1]
    assert mx.allclose(weighted, 2 * x * x)
    assert len(emulated) == 4


def test_using(emulated: list[Report]) -> None:
    kernel = emu.metal_kernel(name="one", input_names=[], output_names=["y"], source="y[0] = 1;\ny[1] = 1;")
    launch = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(3,)], "output_dtypes": [mx.float32]}
    with pytest.raises(EmulatorError, match="UNWRITTEN"):
        kernel(inputs=[], **launch)
    with emu.using(checked=False):
        kernel(inputs=[], **launch)
    with emu.using(strict=False):
        kernel(inputs=[], **launch)
    assert [len(report.errors) for report in emulated] == [0, 1]
    assert emu.options.strict and emu.options.checked
    with pytest.raises(TypeError, match="no option sead"), emu.using(sead=3):
        pass


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
