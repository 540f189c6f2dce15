"""Safetensors files, looked at before MLX opens them: a header may be cut short, oversized, lie, or overlap.

Source: the format's description, https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Container
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..common.errors import PixWordError
from ..common.settings import shown

MAX_DIMENSIONS = 32
MAX_HEADER = 100_000_000  # bytes, the limit of the format's own library
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it; the bytes lie at ``start .. end`` behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> dict[str, mx.array]:
    """The tensors of a file, by name, not loaded yet; raises `PixWordError` if header and bytes do not agree."""
    read_header(path)
    try:
        return dict(mx.load(str(path)))  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        raise PixWordError(f"{path} cannot be loaded: {error}") from error


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file as its header describes them, every claim checked.

    Raises:
        PixWordError: not a safetensors file, truncated, with bytes that belong to no tensor, or with tensors whose
            size is not that of their shape, or which overlap.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
            text = file.read(length) if length <= min(size - 8, MAX_HEADER) else None
    except OSError as error:
        raise PixWordError(f"{path}: {error.strerror}") from error
    if text is None:
        raise PixWordError(f"{path} is truncated or not a safetensors file ({size:,} bytes); copy or download it again")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PixWordError(f"{path} is not a safetensors file") from error
    if not isinstance(header, dict):
        raise PixWordError(f"{path} is not a safetensors file")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    _check_places(path, entries, size - 8 - length)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _entry(path: Path, name: str, value: Any) -> Entry:
    values: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, place = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    bits = _BITS.get(dtype, 0) if isinstance(dtype, str) else 0
    # MLX counts in 32 bits; the product of a million numbers would take hours
    if not (bits and _counts(shape, range(MAX_DIMENSIONS + 1), 2**31) and _counts(place, (2,), 2**62)):
        raise PixWordError(f"{path}: {shown(name)} has no usable type, shape and place: {shown(value)}")
    entry = Entry(dtype, tuple(shape), *place)  # type: ignore[arg-type, misc]
    if entry.end - entry.start != prod(entry.shape) * bits // 8:
        raise PixWordError(
            f"{path}: {shown(name)} is {dtype} {list(entry.shape)} and has {entry.end - entry.start:,} bytes"
        )
    return entry


def _counts(value: Any, lengths: Container[int], end: int) -> bool:
    """Whether a value is a list of so many integers from 0 to below ``end``."""
    return isinstance(value, list) and len(value) in lengths and all(type(n) is int and 0 <= n < end for n in value)


def _check_places(path: Path, entries: dict[str, Entry], size: int) -> None:
    """Tensors must follow each other without overlap or hole, up to the end of the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            problem = "overlaps another tensor" if entry.start < end else "leaves bytes before it unused"
            raise PixWordError(f"{path}: {shown(name)} {problem}")
        end = entry.end
    if size < end:
        raise PixWordError(f"{path} is truncated: its header names {end:,} bytes of tensors, {size:,} are there")
    if size > end:
        raise PixWordError(f"{path} has {size - end:,} bytes that belong to no tensor; copy or download it again")
