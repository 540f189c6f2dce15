"""Metal source texts: found in a wheel, an editable install or a bare checkout, and built once."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ...common.errors import PixWordError

_PACKAGE = Path(__file__).resolve().parents[2]


def metal_folder() -> Path:
    """The folder of the ``.metal`` files; raises `PixWordError` if it was not installed."""
    folders = (_PACKAGE / "metal", _PACKAGE.parent / "metal")  # a wheel; a checkout
    for folder in folders:
        if (folder / "header.h").is_file():
            return folder
    raise PixWordError(f"no Metal sources in {' or '.join(map(str, folders))}; install mlx-pixword again")


def read_source(name: str) -> str:
    """Text of ``metal/NAME``."""
    return (metal_folder() / name).read_text(encoding="utf-8")


@cache
def build_kernel(
    name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], flags: tuple[str, ...] = ()
) -> Callable[..., Sequence[mx.array]]:
    """The kernel in ``metal/NAME.metal`` as `mx.fast.metal_kernel` returns it; ``flags`` are defined in its text.

    Inputs are made contiguous.
    """
    return metal_kernel(
        name="_".join(("pixword", name, *map(str.lower, flags))),
        input_names=list(inputs),
        output_names=list(outputs),
        source=read_source(f"{name}.metal"),
        header="".join(f"#define {flag}\n" for flag in flags) + read_source("header.h"),
        ensure_row_contiguous=True,
    )


def metal_kernel(**options: Any) -> Callable[..., Sequence[mx.array]]:
    """`mx.fast.metal_kernel`, looked up at each call: the tests put the emulator's in its place."""
    return cast(Callable[..., Sequence[mx.array]], mx.fast.metal_kernel(**options))
