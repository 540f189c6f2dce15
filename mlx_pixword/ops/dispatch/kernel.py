"""What a kernel is to the dispatch, and what a Mac was found to make of it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Standard = Callable[[], Mapping[str, tuple[Any, ...]]]

TRIAL_BYTES = 200_000_000  # that a trial may take by its kernel's estimate; the peak stays under 256 MB
TRIAL_WINDOWS = 32  # of a trial at most; rows of a batch, too
SMALL_ARRAY = 8  # elements; MLX hands smaller inputs over in another address space, which makes another text


@dataclass(frozen=True)
class Kernel:
    """An operation that Metal can do in one launch or a few, beside the same in MLX's own operations.

    All callables but ``standard`` and ``small`` take the same arguments: arrays, and static values that can be hashed.

    Args:
        name: as in ``window_attention``.
        reference: MLX operations; an array or a tuple of arrays.
        metal: the launch, with results of the same shapes and types; it has gradients if it is ``trained`` through.
        example: concrete random arguments of the same shape class, no more of them than a trial needs, see
            `trial_count`. It reads shapes, types and static values alone, as the arguments may be tracers.
        trained: gradients by the floating-point arguments are compared and timed as well.
        constants: places of floating-point arguments that have no gradient, such as tables.
        shape_class: what decides which text is launched, where whole shapes would be too fine, as for images of any
            size. The default is the shapes and types of all arrays, and the static values. Equal classes must launch
            equal texts in threadgroups of equal size, as one of them is tried for all.
        standard: arguments by name for `doctor` and the benchmark, of the sizes that training meets.
        small: the same for the emulator, of sizes that it runs in seconds.
        narrow: makes threadgroups of further launches narrower and gives True, or False if they cannot be; called when
            MLX refuses one as too wide. What it changes is part of the shape class.
        rival: MLX's own fused operation, where there is one, for the benchmark.
        sources: names of its files in ``metal``, if it is not one file of the kernel's name.
    """

    name: str
    reference: Callable[..., Any]
    metal: Callable[..., Any]
    example: Callable[..., tuple[Any, ...]]
    trained: bool
    constants: tuple[int, ...] = ()
    shape_class: Callable[..., Hashable] | None = None
    standard: Standard = dict
    small: Standard = dict
    narrow: Callable[[], bool] | None = None
    rival: Callable[..., Any] | None = None
    sources: tuple[str, ...] = ()

    def key(self, args: tuple[Any, ...]) -> Hashable:
        """The shape class of arguments; arrays are not read."""
        described = self.shape_class(*args) if self.shape_class else tuple(map(_describe, args))
        small = tuple(arg.size < SMALL_ARRAY for arg in args if isinstance(arg, mx.array))
        return self.name, described, small


def _describe(arg: Any) -> Hashable:
    """An array's shape and type, or a static value with its type: ``True`` is not ``1``."""
    return (arg.shape, arg.dtype) if isinstance(arg, mx.array) else (type(arg).__name__, arg)


@dataclass(frozen=True)
class Decision:
    """What a trial of a kernel on the device found, for one shape class."""

    kernel: str
    shapes: str
    error: str | None = None  # why the kernel is not used, though it could be faster
    difference: float | None = None  # the largest, as a share of the tolerance
    forward_only: bool = False  # gradients were neither compared nor timed
    kernel_seconds: float | None = None
    reference_seconds: float | None = None

    @property
    def verified(self) -> bool:
        """The kernel agreed with the reference."""
        return self.error is None

    @property
    def speed_up(self) -> float | None:
        """The reference's time over the kernel's, or None if they were not timed."""
        if not self.kernel_seconds or not self.reference_seconds:
            return None
        return self.reference_seconds / self.kernel_seconds

    @property
    def used(self) -> bool:
        """The kernel agreed with the reference and took no longer."""
        return self.verified and self.speed_up is not None and self.speed_up >= 1


class KernelError(RuntimeError):
    """A Metal kernel disagreed with its reference: a bug of this library, never a user's mistake."""


def normal(shape: Sequence[int], dtype: mx.Dtype, seed: int) -> mx.array:
    """Normal numbers."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def whole(shape: Sequence[int], below: int) -> mx.array:
    """Integers from 0 to below a limit, int32."""
    return mx.random.randint(0, below, shape, key=mx.random.key(99))


def trial_count(count: int, bytes_each: int, least: int = 1, most: int = TRIAL_WINDOWS) -> int:
    """How many of ``count`` equal parts, such as windows, a trial takes: a part's time is what it is among more."""
    return min(count, most, max(least, TRIAL_BYTES // bytes_each))


def bucket(count: int) -> int:
    """The power of two that a count does not exceed: sizes of one bucket share a decision."""
    return 1 << max(count - 1, 0).bit_length()
