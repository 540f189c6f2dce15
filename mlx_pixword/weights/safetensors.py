"""Safetensors files, read by their own library before MLX opens them: a header may be cut short, lie, or overlap."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..common.errors import PixWordError
from ..common.settings import named, shown
from ..common.streams import hold_descriptors

MAX_DIMENSIONS = 32
MAX_SIDE = 2**31  # MLX counts in 32 bits


def read_safetensors(path: Path) -> dict[str, mx.array]:
    """The tensors of a file, by name, not loaded yet; raises `PixWordError` if header and bytes do not agree."""
    read_shapes(path)
    hold_descriptors()  # a program that was started without standard input may load a model too
    try:
        return dict(_load(path))
    except (RuntimeError, ValueError) as error:
        raise PixWordError(f"{path} cannot be loaded: {error}") from error


def _load(path: Path) -> Any:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # a name that is no UTF-8, or with another locale; MLX takes none of these
        with path.open("rb") as file:
            arrays = mx.load(file, format="safetensors")
            mx.eval(arrays)
            return arrays
    return mx.load(str(path))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors as its header describes them, every claim checked.

    Raises:
        PixWordError: not a safetensors file, truncated, with bytes that belong to no tensor, with tensors whose size is
            not that of their shape, or which overlap; or shapes that MLX cannot have.
    """
    if not path.is_file():
        raise PixWordError(f"{path}: {'Is a directory' if path.is_dir() else 'No such file'}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise PixWordError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())[:200]
        raise PixWordError(
            f"{path} is no safetensors file, is cut short, or is damaged ({path.stat().st_size:,} bytes): "
            f"{named(reason)}; copy or download it again"
        ) from error
    for name, shape in shapes.items():
        if len(shape) > MAX_DIMENSIONS or max(shape, default=0) >= MAX_SIDE:
            raise PixWordError(f"{path}: {named(name)} has no usable shape: {shown(shape[: MAX_DIMENSIONS + 1])}")
    return shapes
