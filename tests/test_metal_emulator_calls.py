"""The Metal emulator in the place of MLX: what a launch passes, of which types, and inside gradients."""

import metal_emulator as emu
import mlx.core as mx
import pytest
from metal_emulator import EmulatorError, MetalCompileError, Report
from right_kernels import Kernel, uniform


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
