"""All Metal kernels of the library, and what this machine makes of them."""

from dataclasses import asdict, dataclass
from typing import Any

from .conditional_attention import CONDITIONAL_ATTENTION
from .decode_step import DECODE_STEP
from .dispatch.choose import Decision, Kernel, available, mode
from .dispatch.trial import examine
from .fold import FOLD, UNFOLD
from .window_attention import WINDOW_ATTENTION

KERNELS: tuple[Kernel, ...] = (FOLD, UNFOLD, WINDOW_ATTENTION, CONDITIONAL_ATTENTION, DECODE_STEP)


@dataclass(frozen=True)
class Finding:
    """A kernel's trials on its standard arguments, by name; none where the reference always runs."""

    kernel: str
    trials: dict[str, Decision]
    reason: str | None = None  # why nothing was tried

    def __str__(self) -> str:
        """One line for a person."""
        if self.reason:
            return self.reason
        if failed := {name: trial.error for name, trial in self.trials.items() if trial.error}:
            name, error = next(iter(failed.items()))
            return f"available, NOT verified on {len(failed)} of {len(self.trials)}, first {name}: {error}"
        gains = [trial.speed_up or 0.0 for trial in self.trials.values()]
        used = sum(trial.used for trial in self.trials.values())
        return (
            f"available, verified, {min(gains):.2g} to {max(gains):.2g} times as fast as its reference, "
            f"used on {used} of {len(gains)} sizes"
        )

    def as_json(self) -> dict[str, Any]:
        """The same, with everything that was found."""
        trials = {
            name: {**asdict(trial), "verified": trial.verified, "used": trial.used, "speed_up": trial.speed_up}
            for name, trial in self.trials.items()
        }
        return {"kernel": self.kernel, "available": not self.reason, "reason": self.reason, "trials": trials}


def survey() -> list[Finding]:
    """Try every kernel on its standard arguments; nothing is tried, or kept for `dispatch`, where none would run."""
    if reason := _reason():
        return [Finding(kernel.name, {}, reason) for kernel in KERNELS]
    return [
        Finding(kernel.name, {name: examine(kernel, args) for name, args in kernel.standard().items()})
        for kernel in KERNELS
    ]


def _reason() -> str | None:
    if not available():
        return "not available: no Metal GPU in use; the reference runs, in MLX's own operations"
    return "off: PIXWORD_KERNELS=off; the reference runs" if mode() == "off" else None
