"""Fuzzing Parquet files, with images inside and with their paths, in several codings."""

import json
import random
import struct
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from fuzz_texts import read_through
from fuzzing import Target, broken, random_edits
from PIL import Image

LABELS = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["dog", "cat"]}}}})}


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        path.write_bytes(data)
        read_through(path)


def _png(color: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


@cache
def seeds() -> list[bytes]:
    rows = [{"image": {"bytes": _png(c), "path": f"{c}.png"}, "text": f"\xfc {c}"} for c in ("red", "blue", "lime")]
    paths = [{"file_name": "a.png", "caption": "one"}, {"file_name": None, "caption": None}]
    labels = [{"image": _png("red"), "label": n} for n in (0, 1, 7)]
    several = [{"images": [{"bytes": _png("red"), "path": None}] * 2, "text": "<image> and <image>"}]
    return [
        _table(rows, row_group_size=2),
        _table(rows * 9, compression="zstd", use_dictionary=False),
        _table(paths, compression="none"),
        _table(labels, LABELS, compression="gzip", data_page_version="2.0"),
        _table(several),
    ]


def _table(rows: list[dict[str, object]], metadata: dict[str, str] | None = None, **options: object) -> bytes:
    file = BytesIO()
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table.replace_schema_metadata(metadata), file, **options)
    return file.getvalue()


def remake(seed: bytes, rng: random.Random) -> bytes:
    """Break what stands at the end, which says where all else lies, or the pages alone."""
    (length,) = struct.unpack("<I", seed[-8:-4])
    pages, end = seed[: -8 - length], seed[-8 - length : -8]
    if rng.random() < 0.6:
        end = broken(end, random_edits(rng), WORDS)
    else:
        pages = broken(pages, random_edits(rng), WORDS)
    return pages + end + struct.pack("<I", len(end)) + b"PAR1"


WORDS = (
    b"PAR1", b"\0", b"\xff", b"\xff\xff\xff\xff\x0f", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x15\x00",
    b"\x19\x1c", b"\x18\x05image", b"bytes", b"list.element", b"text", b"\x80\x80\x80\x80\x10",
)  # fmt: skip
TARGET = Target("parquet", seeds, check, WORDS, remake=remake)
