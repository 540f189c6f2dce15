"""Apple chips: what their makers publish, and the roofline of a piece of work on one. Nothing here was measured.

Roofline: Williams, Waterman & Patterson, "Roofline", CACM 52(4), 2009.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ..common.errors import PixWordError

GPU_SHARE = 2 / 3  # of the memory that macOS lets the GPU hold on small machines; about 3/4 on large ones


class Work(NamedTuple):
    """Floating-point operations, bytes to and from memory, and kernels that are started."""

    flops: float
    bytes: float
    kernels: float

    def plus(self, other: "Work", times: float = 1) -> "Work":
        """The two together, the other one ``times`` over."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Rates:
    """Fractions of the published figures that a program reaches, and seconds a kernel takes at least."""

    flops: float
    bandwidth: float
    kernel_seconds: float


@dataclass(frozen=True)
class Chip:
    """A chip with all its GPU cores: float32 TFLOP/s, GB/s, and the largest memory it is sold with, GiB."""

    name: str
    tflops: float
    bandwidth: float
    memory: int

    @property
    def gpu_bytes(self) -> float:
        """Bytes of the largest memory that the GPU may hold."""
        return GPU_SHARE * self.memory * 2**30

    def seconds(self, work: Work, rates: Rates) -> tuple[float, str]:
        """Estimated seconds of a piece of work, and what bounds it: compute, bandwidth or kernels."""
        bounds = {
            "compute": work.flops / (self.tflops * 1e12 * rates.flops),
            "bandwidth": work.bytes / (self.bandwidth * 1e9 * rates.bandwidth),
            "kernels": work.kernels * rates.kernel_seconds,
        }
        bound = max(bounds, key=lambda name: bounds[name])
        return bounds[bound], bound


# Bandwidth and memory as Apple publishes them. TFLOP/s as commonly quoted: Apple gives none for M3 and M4, for which
# lists differ by 15% (huggingface.js, pull request 1044, has most of these).
CHIPS = {
    chip.name.lower().replace(" ", "-"): chip
    for chip in (
        Chip("M1", 2.6, 68, 16), Chip("M1 Pro", 5.2, 200, 32), Chip("M1 Max", 10.4, 400, 64),
        Chip("M1 Ultra", 20.8, 800, 128),
        Chip("M2", 3.6, 100, 24), Chip("M2 Pro", 6.8, 200, 32), Chip("M2 Max", 13.6, 400, 96),
        Chip("M2 Ultra", 27.2, 800, 192),
        Chip("M3", 4.1, 100, 24), Chip("M3 Pro", 7.4, 150, 36), Chip("M3 Max", 16.4, 400, 128),
        Chip("M3 Ultra", 32.8, 819, 512),
        Chip("M4", 4.3, 120, 32), Chip("M4 Pro", 9.2, 273, 64), Chip("M4 Max", 18.4, 546, 128),
    )
}  # fmt: skip


def find_chip(name: str) -> Chip:
    """The chip of a name such as ``m1-max``; raises `PixWordError` for one that is not known."""
    if (key := name.lower()) in CHIPS:
        return CHIPS[key]
    reason = "there is no M4 Ultra" if key == "m4-ultra" else f"{name!r} is not known"
    raise PixWordError(f"--chip: {reason}; choose one of {', '.join(CHIPS)}")
