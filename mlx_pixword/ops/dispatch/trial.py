"""A trial of a kernel on the device: its results against the reference's, and its time.

Everything here is computed on concrete arrays that the trial makes itself, so that it can run while a function of the
user is being traced. 16-bit arguments are compared with the reference in float32, so that only the kernel's own
rounding counts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import mlx.core as mx

from .kernel import Decision, Kernel, KernelError

# Relative to the largest absolute value of the reference. float32 has ten times the 1e-5 that the emulator's tests ask
# for: here the reference rounds as well.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1e-2}
ROUNDS = 5
TOO_WIDE = "Thread group size"  # how MLX begins to say that the pipeline's registers allow no such threadgroup
ROUND_SECONDS, MOST_LAUNCHES = 2e-3, 20  # a round launches often enough that the wait for its end counts little

Arrays = list[mx.array]


class Probe(NamedTuple):
    """Arguments whose gradients are wanted, by place, and the cotangents of the results."""

    places: list[int]
    cotangents: Arrays


def examine(kernel: Kernel, args: tuple[Any, ...], forward_only: bool = False) -> Decision:
    """Compare and time a kernel on examples of these arguments; whatever fails becomes the decision's ``error``.

    ``forward_only`` leaves gradients out, as what computes none need not wait for a kernel that is fast at them, or use
    one for their sake. A launch that MLX refuses is tried again in narrower threadgroups, where the kernel has any.
    """
    kernel = replace(kernel, trained=kernel.trained and not forward_only)
    while True:
        try:
            return _examined(kernel, args, forward_only)
        except Exception as error:  # a failed or refused launch has no type of its own; dispatch tells the user
            if TOO_WIDE not in str(error) or kernel.narrow is None or not kernel.narrow():
                return failure(kernel, args, error, forward_only)


def _examined(kernel: Kernel, args: tuple[Any, ...], forward_only: bool) -> Decision:
    example = kernel.example(*args)
    difference = compare(kernel, example)
    probe = make_probe(kernel, example)
    mine, others = race([compiled(run, example, probe) for run in (kernel.metal, kernel.reference)])
    return Decision(kernel.name, " ".join(map(_shape, args)), None, difference, forward_only, mine, others)


def failure(kernel: Kernel, args: tuple[Any, ...], error: Exception, forward_only: bool) -> Decision:
    """The decision against a kernel that raised an error."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Decision(kernel.name, " ".join(map(_shape, args)), text, forward_only=forward_only)


def compare(kernel: Kernel, args: tuple[Any, ...]) -> float:
    """The largest difference between a kernel and its reference, as a share of what is tolerated.

    Raises:
        KernelError: it is above 1, the kernel gives a value that is not finite where the reference's is, or results
            of other shapes or types.
    """
    probe = make_probe(kernel, args)
    found = results(kernel.metal, args, probe)
    mx.eval(found)
    same_types = results(kernel.reference, args, probe)  # not evaluated
    for index, (mine, theirs) in enumerate(zip(found, same_types, strict=True)):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            raise KernelError(f"result {index} of {kernel.name} is {_shape(mine)}, the reference's is {_shape(theirs)}")
    share = _share(kernel, args, probe, found)
    if not share <= 1:
        with mx.stream(mx.cpu):  # some GPUs round float32 products to 10 bits; this one does not
            share = _share(kernel, args, probe, found)
    if not share <= 1:  # NaN is no agreement either
        raise KernelError(f"{kernel.name} differs from its reference by {share:.3g} times the tolerance")
    return share


def _share(kernel: Kernel, args: tuple[Any, ...], probe: Probe, found: Arrays) -> float:
    """Largest difference of ``found`` from the reference, over the tolerance; gradients share one scale."""
    precise = Probe(probe.places, list(map(_precise, probe.cotangents)))
    wanted = results(kernel.reference, tuple(map(_precise, args)), precise)
    mx.eval(wanted)
    outputs = len(wanted) - len(probe.places)
    gradient_scale = max(map(_scale, wanted[outputs:]), default=0.0)
    scales = [*map(_scale, wanted[:outputs]), *[gradient_scale] * (len(wanted) - outputs)]
    return max(map(_difference, found, wanted, scales))


def _difference(found: mx.array, wanted: mx.array, scale: float) -> float:
    """Largest difference over the tolerance; places where the reference is not finite are left out."""
    if not mx.issubdtype(found.dtype, mx.floating):
        return 0.0 if mx.array_equal(found, wanted).item() else float("inf")
    if not found.size:
        return 0.0
    counted = mx.isfinite(wanted)
    wrong = counted & ~mx.isfinite(found) if mx.any(counted).item() else mx.isfinite(found)
    if mx.any(wrong).item():
        return float("inf")
    return _largest(mx.where(counted, found.astype(mx.float32) - wanted, 0)) / (TOLERANCE[found.dtype] * scale)


def _scale(wanted: mx.array) -> float:
    """Largest finite absolute value; never 0."""
    return max(_largest(mx.where(mx.isfinite(wanted), wanted, 0)), 1e-30) if wanted.size else 1e-30


def _largest(values: mx.array) -> float:
    return float(cast(float, mx.max(mx.abs(values)).item()))


def _precise(arg: Any) -> Any:
    narrow = isinstance(arg, mx.array) and arg.dtype in (mx.float16, mx.bfloat16)
    return arg.astype(mx.float32) if narrow else arg


def make_probe(kernel: Kernel, args: tuple[Any, ...]) -> Probe:
    """What a kernel's gradients are asked for with: random cotangents of its results' shapes and types."""
    if not kernel.trained:
        return Probe([], [])
    places = [i for i, arg in enumerate(args) if _is_floating(arg) and i not in kernel.constants]
    outputs = enumerate(_listed(kernel.reference(*args)))
    draws = [mx.random.normal(out.shape, key=mx.random.key(index)).astype(out.dtype) for index, out in outputs]
    return Probe(places, draws)


def results(function: Callable[..., Any], args: tuple[Any, ...], probe: Probe) -> Arrays:
    """What a function returns, and then the gradients that a probe asks for."""
    if not probe.places:
        return _listed(function(*args))
    primals = [args[place] for place in probe.places]
    outputs, gradients = mx.vjp(_of_places(function, args, probe.places), primals, probe.cotangents)
    return [*outputs, *gradients]


def compiled(function: Callable[..., Any], args: tuple[Any, ...], probe: Probe) -> Callable[[], Arrays]:
    """The same work as in a compiled training step, ready to be run again and again."""
    places = [i for i, arg in enumerate(args) if isinstance(arg, mx.array)]

    def work(*arrays: mx.array) -> Arrays:
        return results(function, _merged(args, places, arrays), probe)

    run, arrays = mx.compile(work), [args[place] for place in places]
    return lambda: run(*arrays)


def race(runs: Sequence[Callable[[], Arrays]]) -> list[float]:
    """Median seconds of each run; the runs take turns, A B A B, so that a change of clocks touches all alike."""
    launches = []
    for run in runs:
        mx.eval(run())  # compiles
        launches.append(min(MOST_LAUNCHES, 1 + int(ROUND_SECONDS / _seconds(run, 1))))
    rounds = [[_seconds(run, count) for run, count in zip(runs, launches, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], Arrays], launches: int) -> float:
    """Seconds of one of several launches, of which the last is waited for.

    Each is handed over by itself and its results are dropped: evaluated together, they would mix their operations, and
    hold what all of them need on their way.
    """
    start = time.perf_counter()
    for _ in range(launches):
        last = run()
        mx.async_eval(last)
    mx.eval(last)
    return (time.perf_counter() - start) / launches


def _of_places(function: Callable[..., Any], args: tuple[Any, ...], places: Sequence[int]) -> Callable[..., Arrays]:
    """The function of the arguments at some places; the others stay as they are."""
    return lambda *chosen: _listed(function(*_merged(args, places, chosen)))


def _merged(args: tuple[Any, ...], places: Sequence[int], chosen: Sequence[mx.array]) -> tuple[Any, ...]:
    """The arguments with others at some places."""
    changed = dict(zip(places, chosen, strict=True))
    return tuple(changed.get(index, arg) for index, arg in enumerate(args))


def _listed(value: Any) -> Arrays:
    return [value] if isinstance(value, mx.array) else list(value)


def _is_floating(arg: Any) -> bool:
    return isinstance(arg, mx.array) and mx.issubdtype(arg.dtype, mx.floating)


def _shape(arg: Any) -> str:
    """Such as ``float32[2,3]``, or a static value."""
    if not isinstance(arg, mx.array):
        return repr(arg)
    return f"{str(arg.dtype).rpartition('.')[2]}[{','.join(map(str, arg.shape))}]"
