"""Which of a Metal kernel and its reference runs: a trial on the device decides, once for every shape class.

Without Metal the reference runs. ``PIXWORD_KERNELS`` chooses on a Mac: ``on`` (the default) as decided, ``off`` the
reference always, ``verify`` the kernel always, compared with the reference at every call outside a trace.
"""

import os
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

from ...common.errors import PixWordError, PixWordWarning
from .kernel import Decision, Kernel, KernelError
from .trial import compare, examine, failure

__all__ = ["Decision", "Kernel", "KernelError", "available", "decide", "decisions", "dispatch", "forward_only", "mode"]

VARIABLE, MODES = "PIXWORD_KERNELS", ("on", "off", "verify")

_decisions: dict[Hashable, Decision] = {}
_forward_only: ContextVar[bool] = ContextVar("forward_only", default=False)
_lock = threading.RLock()  # a reference may dispatch other kernels


def dispatch(kernel: Kernel, *args: Any) -> Any:
    """Run a kernel or its reference on these arguments.

    Raises:
        PixWordError: ``PIXWORD_KERNELS`` is something else than ``on``, ``off`` or ``verify``.
        KernelError: in ``verify``, the kernel disagrees with its reference.
    """
    chosen = mode()
    if chosen == "off" or not _metal_available():
        return kernel.reference(*args)
    if chosen == "verify" and _concrete(args):
        compare(kernel, args)
        return kernel.metal(*args)
    return choose(kernel, args)(*args)


@contextmanager
def forward_only() -> Iterator[None]:
    """Inside, kernels are chosen by their forward pass alone, as nobody asks for a gradient; also a decorator.

    MLX takes its own fused attention where no gradient is traced, so a kernel may pay in training and not in reading.
    A gradient that is asked for nonetheless is right.
    """
    token = _forward_only.set(True)
    try:
        yield
    finally:
        _forward_only.reset(token)


def choose(kernel: Kernel, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The kernel's launch or its reference, as was decided for the shape class of these arguments.

    A launch that raises an error after all is not tried again: the reference runs then and from there on.
    """
    if not decide(kernel, *args).used:
        return kernel.reference

    def launch(*launched: Any) -> Any:
        try:
            return kernel.metal(*launched)
        except Exception as error:  # it has no type of its own
            _keep(_key(kernel, launched), failure(kernel, launched, error, _forward_only.get()))
            return kernel.reference(*launched)

    return launch


def decide(kernel: Kernel, *args: Any) -> Decision:
    """What is known of a kernel for the shape class of these arguments; the first call tries it on the device."""
    key = _key(kernel, args)
    decision = _decisions.get(key)
    if decision is None:
        with _lock:
            decision = _decisions.get(key) or examine(kernel, args, _forward_only.get())
            _keep(_key(kernel, args), decision)  # another class, if it is narrower by now
    return decision


def _key(kernel: Kernel, args: tuple[Any, ...]) -> Hashable:
    return kernel.key(args), kernel.trained and _forward_only.get()


def _keep(key: Hashable, decision: Decision) -> None:
    """Remember a decision, and warn of a kernel's first failure."""
    with _lock:
        failed_before = any(known.error for known in decisions() if known.kernel == decision.kernel)
        _decisions[key] = decision
    if decision.error and not failed_before:
        _warn(decision)


def decisions() -> list[Decision]:
    """What was decided in this process, in the order of first use."""
    return list(_decisions.values())


def mode() -> str:
    """The value of ``PIXWORD_KERNELS``."""
    value = os.environ.get(VARIABLE, "on")
    if value not in MODES:
        raise PixWordError(f"{VARIABLE} must be on, off or verify, got {value!r}")
    return value


def available() -> bool:
    """Whether kernels can run here at all, whatever ``PIXWORD_KERNELS`` says."""
    return _metal_available()


def _metal_available() -> bool:
    return mx.metal.is_available() and mx.default_device() != mx.cpu


def _concrete(args: tuple[Any, ...]) -> bool:
    """Whether no array is a tracer of `mx.compile` or `mx.vmap`; evaluates them."""
    try:
        mx.eval([arg for arg in args if isinstance(arg, mx.array)])
    except ValueError:  # MLX refuses to evaluate tracers and has no other way to ask
        return False
    return True


def _warn(decision: Decision) -> None:
    warnings.warn(
        f"the Metal kernel {decision.kernel} failed its check on {decision.shapes} ({decision.error}); MLX's own "
        "operations are used instead, with the same results. Please report it with what this prints: "
        "python -m mlx_pixword.doctor --report",
        PixWordWarning,
        stacklevel=6,  # whoever called dispatch
    )
