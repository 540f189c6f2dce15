"""A stand-in for `mx.fast.metal_kernel` that runs the same texts on an NVIDIA GPU, by way of `mx.fast.cuda_kernel`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import mlx.core as mx

from mlx_pixword.ops.dispatch import load

from .render import render_body, render_header, translation_unit

_TYPES = {
    mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int32: "int32_t", mx.uint32: "uint32_t",
    mx.uint8: "uint8_t", mx.bool_: "bool",
}  # fmt: skip


@dataclass
class Unit:
    """A launch as a file for a CUDA compiler."""

    name: str
    text: str
    threadgroup: tuple[int, int, int]


@dataclass
class Units:
    """Every file that launches asked for, each once."""

    found: list[Unit] = field(default_factory=list)

    def add(self, unit: Unit) -> None:
        if all(unit.text != known.text for known in self.found):
            self.found.append(unit)


def cuda_kernel(*, name: str, source: str, header: str, **how: Any) -> Callable[..., Sequence[mx.array]]:
    """As `mx.fast.metal_kernel`, run by CUDA."""
    kernel = cast(
        Callable[..., Sequence[mx.array]],
        mx.fast.cuda_kernel(name=name, source=render_body(source), header=render_header(header), **how),
    )

    def call(*, grid: tuple[int, int, int], template: Sequence[tuple[str, Any]] = (), **launch: Any) -> Any:
        return kernel(grid=grid, template=[*template, *_sizes(grid)], **launch)

    return call


def unit_kernel(
    units: Units, /, *, name: str, source: str, header: str, input_names: Sequence[str], output_names: Sequence[str],
    **_: Any,
) -> Callable[..., list[mx.array]]:  # fmt: skip
    """As `cuda_kernel`, but nothing runs: launches become files, and give zeros."""
    body, rendered = render_body(source), render_header(header)

    def call(
        *, inputs: Sequence[mx.array], grid: tuple[int, int, int], threadgroup: tuple[int, int, int],
        output_shapes: Sequence[Any], output_dtypes: Sequence[mx.Dtype], template: Sequence[tuple[str, Any]] = (),
    ) -> list[mx.array]:  # fmt: skip
        arguments = [(n, _TYPES[x.dtype]) for n, x in zip(input_names, inputs, strict=True)]
        results = [(n, _TYPES[dtype]) for n, dtype in zip(output_names, output_dtypes, strict=True)]
        values = {key: _TYPES.get(value, value) for key, value in [*template, *_sizes(grid)]}
        units.add(Unit(name, translation_unit(name, rendered, body, arguments, results, values), threadgroup))
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    return call


def _sizes(grid: tuple[int, int, int]) -> list[tuple[str, int]]:
    """The grid, which CUDA's threads cannot ask for."""
    return list(zip(("GRID_X", "GRID_Y", "GRID_Z"), grid, strict=True))


@contextmanager
def standing_in(kernel: Callable[..., Any]) -> Iterator[None]:
    """While this holds, `mlx_pixword` builds its kernels with another function."""
    real = load.metal_kernel
    load.metal_kernel = kernel
    load.build_kernel.cache_clear()
    try:
        yield
    finally:
        load.metal_kernel = real
        load.build_kernel.cache_clear()


def units_of(runs: Sequence[Callable[[], Any]]) -> list[Unit]:
    """The files of all launches that some functions make."""
    units = Units()
    with standing_in(partial(unit_kernel, units)):
        for run in runs:
            mx.eval(run())
    return units.found
