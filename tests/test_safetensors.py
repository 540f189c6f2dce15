"""Safetensors headers: what is true is read, and every kind of lie is one line before a byte is used."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.weights import safetensors
from mlx_pixword.weights.safetensors import Entry, read_header, read_safetensors


def write(path: Path, header: Any, data: bytes = bytes(24), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(shape: Any, start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_true_headers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {
        "b": mx.arange(6).reshape(2, 3),
        "a": mx.array(1.5),
        "none": mx.zeros((0, 3)),
        "h": mx.ones(3, mx.float16),
    }
    mx.save_safetensors(str(path), arrays, {"format": "mlx", "x": "y"})
    header = read_header(path)
    assert {name: entry.shape for name, entry in header.items()} == {n: a.shape for n, a in arrays.items()}
    assert header["h"].dtype == "F16" and header["a"].end - header["a"].start == 4
    assert all(np.array_equal(np.array(a), np.array(arrays[n])) for n, a in read_safetensors(path).items())


def test_a_written_header_is_a_good_one(tmp_path: Path) -> None:
    two = {"a": tensor([2], 0, 8), "b": tensor([2, 2], 8, 24), "__metadata__": {"x": "y"}}
    assert read_header(write(tmp_path / "a", two)) == {"a": Entry("F32", (2,), 0, 8), "b": Entry("F32", (2, 2), 8, 24)}


GOOD = {"a": tensor([6], 0, 24)}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (GOOD, bytes(23), "truncated: its header names 24 bytes of tensors, 23 are there"),
        (GOOD, bytes(25), "1 bytes that belong to no tensor"),
        ({}, bytes(1), "belong to no tensor"),
        ({"a": tensor([2], 0, 8), "b": tensor([5], 4, 24)}, bytes(24), "'b' overlaps"),
        ({"a": tensor([6], 0, 24), "b": tensor([6], 0, 24)}, bytes(24), "overlaps"),
        ({"a": tensor([2], 0, 8), "b": tensor([3], 12, 24)}, bytes(24), "'b' leaves bytes before it unused"),
        ({"a": tensor([2], 16, 24)}, bytes(24), "leaves bytes before it unused"),
        ({"a": tensor([7], 0, 24)}, bytes(24), "'a' is F32 .7. and has 24 bytes"),
        ({"a": tensor([6], 0, 24, "F16")}, bytes(24), "is F16"),
        ({"a": tensor([6], 24, 0)}, bytes(24), "has -24 bytes"),
        ({"a": tensor([2**30, 2**30], 0, 24)}, bytes(24), "has 24 bytes"),
        ({"a": tensor([2**31, 0], 0, 0)}, bytes(0), "no usable"),
        ({"a": tensor([1] * 33, 0, 4)}, bytes(4), "no usable"),
        ({"a": tensor([2**61] * 10**6, 0, 24)}, bytes(24), "no usable"),
        ({"a": tensor([-6], 0, 24)}, bytes(24), "no usable type, shape and place"),
        ({"a": tensor([6.0], 0, 24)}, bytes(24), "no usable"),
        ({"a": tensor([True], 0, 4)}, bytes(4), "no usable"),
        ({"a": tensor("6", 0, 24)}, bytes(24), "no usable"),
        ({"a": tensor([6], 0, "24")}, bytes(24), "no usable"),
        ({"a": tensor([6], -24, 0)}, bytes(24), "no usable"),
        ({"a": tensor([6], 0, 2**64)}, bytes(24), "no usable"),
        ({"a": tensor([6], 0, 24, "F128")}, bytes(24), "no usable"),
        ({"a": tensor([6], 0, 24, ["F32"])}, bytes(24), "no usable"),
        ({"a": {}}, bytes(0), "no usable"),
        ({"a": None}, bytes(0), "no usable"),
        ({"x" * 999: None}, bytes(0), r"'x{96}\.\.\. has no usable"),
        ([1], bytes(0), "not a safetensors file"),
        (b'{"a": 1', bytes(0), "not a safetensors file"),
        (b"\xff\xfe", bytes(0), "not a safetensors file"),
        (b"[" * 100_000, bytes(0), "not a safetensors file"),
        (b'{"a": {}, "a": {}}', bytes(0), "not a safetensors file"),
    ],
)
def test_lies_are_one_line(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    path = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(PixWordError, match=words) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [25, 2**40, 2**64 - 1])
def test_headers_that_are_longer_than_their_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(PixWordError, match="truncated or not"):
        read_header(write(tmp_path / "a", b"", length=length))


def test_headers_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_HEADER", 10)
    with pytest.raises(PixWordError, match="truncated or not"):
        read_header(write(tmp_path / "a", GOOD))


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PixWordError, match=r"No such file|Is a directory"):
        read_header(tmp_path / "absent" if kind == "absent" else tmp_path)
