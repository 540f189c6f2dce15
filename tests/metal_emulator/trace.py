"""MLX's side: let MLX itself generate a kernel's text and launch, and stand in for `mx.fast.metal_kernel`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import numpy as np

from .errors import EmulatorError
from .launch import BUDGET, Argument, Report, launch

_real_metal_kernel = mx.fast.metal_kernel
_NUMPY = {
    mx.bool_: np.bool_, mx.uint8: np.uint8, mx.int8: np.int8, mx.uint16: np.uint16, mx.int16: np.int16,
    mx.uint32: np.uint32, mx.int32: np.int32, mx.uint64: np.uint64, mx.int64: np.int64,
    mx.float16: np.float16, mx.bfloat16: np.uint16, mx.float32: np.float32,
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One kernel call as MLX would hand it to Metal."""

    name: str
    source: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    shape_infos: list[tuple[bool, bool, bool]]  # an input: are its shape, strides and ndim arguments too
    row_contiguous: bool
    inputs: list[tuple[tuple[int, ...], mx.Dtype]]
    outputs: list[tuple[tuple[int, ...], mx.Dtype]]


@dataclass
class Options:
    """How `metal_kernel`'s launches run; see `launch`."""

    checked: bool = True
    seed: int = 0
    budget: int = BUDGET
    strict: bool = True

    def as_arguments(self) -> dict[str, Any]:
        return {"checked": self.checked, "seed": self.seed, "budget": self.budget, "strict": self.strict}


options = Options()
reports: list[Report] = []


@contextlib.contextmanager
def using(**changes: Any) -> Iterator[Options]:
    """Other `Options` inside a with block: ``using(checked=False, seed=3)``."""
    before = replace(options)
    for name, value in changes.items():
        if not hasattr(options, name):
            raise TypeError(f"no option {name}; there are {sorted(vars(options))}")
        setattr(options, name, value)
    try:
        yield options
    finally:
        vars(options).update(vars(before))


# --- tracing ----------------------------------------------------------------------------------------------------------


def trace(function: Callable[..., Any], *arrays: mx.array) -> list[Call]:
    """Every kernel call that `function(*arrays)` makes, without running any."""
    calls: list[Call] = []

    def keep(event: dict[str, Any]) -> None:
        if event["type"] == "primitive" and event["name"] == "CustomKernel":
            calls.append(_call(event))

    mx.export_function(keep, function, *arrays)
    return calls


def _call(event: dict[str, Any]) -> Call:
    a = event["arguments"]  # the fill value is not among them
    return Call(
        name=a[0],
        source=a[1],
        grid=tuple(a[2:5]),
        threadgroup=tuple(a[5:8]),
        shape_infos=list(a[8]),
        row_contiguous=a[9],
        inputs=[(tuple(shape), dtype) for _, shape, dtype in event["inputs"]],
        outputs=[(tuple(shape), dtype) for _, shape, dtype in event["outputs"]],
    )


# --- running ----------------------------------------------------------------------------------------------------------


def run_traced(
    call: Call, inputs: Sequence[mx.array], init_value: float | None = None, **how: Any
) -> tuple[list[mx.array], Report]:
    """Run a traced call on arrays of its shapes; returns the outputs and the report.

    `init_value` is as in MLX's call, whose trace leaves it out; `how` goes to `launch`.
    """
    arguments: list[Argument] = []
    for array, infos, (shape, dtype) in zip(inputs, call.shape_infos, call.inputs, strict=True):
        if tuple(array.shape) != shape or array.dtype != dtype:
            raise EmulatorError(f"{call.name} was traced with {dtype} {shape}, not {array.dtype} {tuple(array.shape)}")
        arguments += _input_arguments(array, infos, call.row_contiguous)
    outputs = [_filled(shape, dtype, init_value) for shape, dtype in call.outputs]
    role = "out" if init_value is None else "init"
    arguments += [Argument(output, role) for output in outputs]
    report = launch(call.source, arguments, call.grid, call.threadgroup, **how)
    return [_to_mlx(o, dtype) for o, (_, dtype) in zip(outputs, call.outputs, strict=True)], report


def _filled(shape: tuple[int, ...], dtype: mx.Dtype, value: float | None) -> np.ndarray:
    return np.array(_to_numpy(mx.contiguous(mx.broadcast_to(mx.array(value or 0).astype(dtype), shape))))


def _input_arguments(array: mx.array, infos: tuple[bool, bool, bool], row_contiguous: bool) -> list[Argument]:
    """The array itself, then its shape, strides and number of dimensions where the text uses them."""
    view = _to_numpy(array)
    if row_contiguous:
        view = np.ascontiguousarray(view).reshape(view.shape)
    found = [_memory_of(view)]
    if view.ndim:
        strides = [stride // view.itemsize for stride in view.strides]
        extras: list[np.ndarray] = [
            np.array(view.shape, np.int32),
            np.array(strides, np.int64),
            np.array([view.ndim], np.int32),
        ]
        found += [Argument(extra, "info") for extra, wanted in zip(extras, infos, strict=True) if wanted]
    return found


def _memory_of(view: np.ndarray) -> Argument:
    """The memory that a view reaches into; what lies between its elements holds no value."""
    if view.flags.c_contiguous:
        return Argument(view)
    strides = [stride // view.itemsize for stride in view.strides]
    reach = [(size - 1) * stride for size, stride in zip(view.shape, strides, strict=True)]
    offset = -sum(r for r in reach if r < 0)
    memory = np.zeros(offset + sum(r for r in reach if r > 0) + 1, view.dtype)
    known = np.zeros(memory.shape, np.bool_)
    place = np.full(view.shape, offset)
    for axis, (size, stride) in enumerate(zip(view.shape, strides, strict=True)):
        place += (np.arange(size) * stride).reshape([-1 if k == axis else 1 for k in range(view.ndim)])
    memory[place], known[place] = view, True
    return Argument(memory, initialised=known, offset=offset)


def _to_numpy(array: mx.array) -> np.ndarray:
    """A view with MLX's own strides; bfloat16 as bits."""
    if array.dtype not in _NUMPY:
        raise EmulatorError(f"the emulator does not know the type {array.dtype}")
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    mx.eval(array)
    return np.array(array, copy=False)


def _to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)


# --- stand-in ---------------------------------------------------------------------------------------------------------


def metal_kernel(**how: Any) -> Callable[..., list[mx.array]]:
    """As `mx.fast.metal_kernel`: what it returns is called in the same way and runs in the emulator.

    Works eagerly and inside `mx.grad`, `mx.vjp` and `mx.custom_function`; not inside `mx.compile`, where arrays have no
    values. Every launch appends its `Report` to `reports`.
    """
    kernel = cast(Callable[..., Any], _real_metal_kernel(**how))

    def call(
        *, inputs: Sequence[Any], init_value: float | None = None, stream: Any = None, **launch_: Any
    ) -> list[mx.array]:
        arrays = [_concrete(x) for x in inputs]
        (traced,) = trace(lambda *xs: kernel(inputs=list(xs), init_value=init_value, **launch_), *arrays)
        outputs, report = run_traced(traced, arrays, init_value, **options.as_arguments())
        reports.append(report)
        return outputs

    return call


def noting_kernel(calls: list[Call], /, **how: Any) -> Callable[..., list[mx.array]]:
    """As `metal_kernel`, but nothing runs: every launch appends its `Call` to a list and gives zeros."""
    kernel = cast(Callable[..., Any], _real_metal_kernel(**how))

    def call(*, inputs: Sequence[Any], **launch_: Any) -> list[mx.array]:
        arrays = [_concrete(x) for x in inputs]
        calls.extend(trace(lambda *xs: kernel(inputs=list(xs), **launch_), *arrays))
        shapes, dtypes = launch_["output_shapes"], launch_["output_dtypes"]
        return [mx.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    return call


def _concrete(x: Any) -> mx.array:
    """Values apart from any graph that is being differentiated."""
    return mx.stop_gradient(x) if isinstance(x, mx.array) else mx.array(x)
