"""Safetensors headers: what is true is read, and every kind of lie is one line before a byte is used."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.weights.safetensors import read_safetensors, read_shapes


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
    assert read_shapes(path) == {name: array.shape for name, array in arrays.items()}
    assert all(np.array_equal(np.array(a), np.array(arrays[n])) for n, a in read_safetensors(path).items())


def test_weights_in_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    """MLX itself takes no such name."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")) / "a.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        mx.save_safetensors(file, {"a": mx.arange(5)})
    assert (read_safetensors(path)["a"] + 1).tolist() == [1, 2, 3, 4, 5]


def test_a_written_header_is_a_good_one(tmp_path: Path) -> None:
    two = {"a": tensor([2], 0, 8), "b": tensor([2, 2], 8, 24), "__metadata__": {"x": "y"}}
    assert read_shapes(write(tmp_path / "a", two)) == {"a": (2,), "b": (2, 2)}


WRONG = "is no safetensors file, is cut short, or is damaged"
GOOD = {"a": tensor([6], 0, 24)}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (GOOD, bytes(23), r"is cut short, or is damaged \(\d+ bytes\): .*not fully covered; copy"),
        (GOOD, bytes(25), "not fully covered"),
        ({}, bytes(1), "not fully covered"),
        ({"a": tensor([2], 0, 8), "b": tensor([5], 4, 24)}, bytes(24), "offset for tensor `b`"),
        ({"a": tensor([6], 0, 24), "b": tensor([6], 0, 24)}, bytes(24), "offset for tensor `[ab]`"),
        ({"a": tensor([2], 0, 8), "b": tensor([3], 12, 24)}, bytes(24), "offset for tensor `b`"),
        ({"a": tensor([2], 16, 24)}, bytes(24), "offset for tensor `a`"),
        ({"a": tensor([7], 0, 24)}, bytes(24), "invalid shape, data type, or offset"),
        ({"a": tensor([6], 0, 24, "F16")}, bytes(24), "invalid shape, data type, or offset"),
        ({"a": tensor([6], 24, 0)}, bytes(24), "offset for tensor `a`"),
        ({"a": tensor([2**30, 2**30], 0, 24)}, bytes(24), "overflow computing buffer size"),
        ({"a": tensor([2**31, 0], 0, 0)}, bytes(0), r"a has no usable shape: \(2147483648, 0\)"),
        ({"a": tensor([1] * 33, 0, 4)}, bytes(4), "a has no usable shape"),
        ({"a": tensor([2**61] * 10**6, 0, 24)}, bytes(24), WRONG),
        ({"a": tensor([-6], 0, 24)}, bytes(24), WRONG),
        ({"a": tensor([6.0], 0, 24)}, bytes(24), WRONG),
        ({"a": tensor([True], 0, 4)}, bytes(4), WRONG),
        ({"a": tensor("6", 0, 24)}, bytes(24), WRONG),
        ({"a": tensor([6], 0, "24")}, bytes(24), WRONG),
        ({"a": tensor([6], -24, 0)}, bytes(24), WRONG),
        ({"a": tensor([6], 0, 2**64)}, bytes(24), WRONG),
        ({"a": tensor([6], 0, 24, "F128")}, bytes(24), WRONG),
        ({"a": tensor([6], 0, 24, ["F32"])}, bytes(24), WRONG),
        ({"a": {}}, bytes(0), WRONG),
        ({"a": None}, bytes(0), WRONG),
        ({"x" * 999: None}, bytes(0), WRONG),
        ([1], bytes(0), WRONG),
        (b'{"a": 1', bytes(0), WRONG),
        (b"\xff\xfe", bytes(0), WRONG),
        (b"[" * 100_000, bytes(0), WRONG),
        (b'{"a": {}, "a": {}}', bytes(0), WRONG),
    ],
)
def test_lies_are_one_line(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    path = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(PixWordError, match=words) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [25, 2**40, 2**64 - 1])
def test_headers_that_are_longer_than_their_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(PixWordError, match=r"invalid header length|header too large"):
        read_shapes(write(tmp_path / "a", b"", length=length))


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PixWordError, match=r"No such file|Is a directory"):
        read_shapes(tmp_path / "absent" if kind == "absent" else tmp_path)


def test_of_a_name_that_occurs_twice_the_checked_one_is_loaded(tmp_path: Path) -> None:
    one, two = (json.dumps(tensor(shape, 0, end)) for shape, end in (([2**20], 2**22), ([6], 24)))
    path = write(tmp_path / "a.safetensors", f'{{"a": {one}, "a": {two}}}'.encode())
    assert read_shapes(path) == {"a": (6,)} and read_safetensors(path)["a"].shape == (6,)
    with pytest.raises(PixWordError, match=WRONG):
        read_safetensors(write(tmp_path / "b.safetensors", f'{{"a": {two}, "a": {one}}}'.encode()))


def test_types_that_mlx_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": tensor([48], 0, 24, "F4")})
    with pytest.raises(PixWordError, match=r"a\.safetensors cannot be loaded"):
        read_safetensors(path)
