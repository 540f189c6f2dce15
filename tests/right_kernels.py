"""Kernels that are right, for the emulator's tests: what a body is launched with, and what must come out."""

from collections.abc import Sequence
from typing import Any

import metal_emulator as emu
import mlx.core as mx
import numpy as np
from metal_emulator import Report

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
