"""What is launched to render or to compare every kernel: the sizes of the benchmark, and ragged ones of the tests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_pixword.ops.dispatch.trial import make_probe, results
from mlx_pixword.ops.survey import KERNELS


def launches(standard: bool) -> list[Callable[[], Any]]:
    """Every kernel forward, and with gradients where it is trained through, on small or on `standard` sizes."""
    runs: list[Callable[[], Any]] = []
    for kernel in KERNELS:
        sizes = kernel.standard() if standard else kernel.small()
        for args in (kernel.example(*some) for some in sizes.values()):
            runs.append(partial(results, kernel.metal, args, make_probe(kernel, args)))
    return [*runs, *_attention()]


def _attention() -> list[Callable[[], Any]]:
    """Own keys, large heads whose operands are parked, 16-bit types, places on a grid."""
    from span_attention import make_case

    cases = [
        ("own", (2, 20, 13, 2, 2, 64), mx.float16), ("own", (1, 7, 5, 1, 8, 128), mx.float32),
        ("scattered", (2, 0, 64, 1, 2, 32), mx.bfloat16), ("window", (2, 0, 33, 1, 4, 128), mx.float32),
    ]  # fmt: skip
    return [partial(make_case(kind, shape, dtype).run) for kind, shape, dtype in cases]
