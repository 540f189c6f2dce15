"""Files of records, opened by their suffix: lines of JSON, tables, Parquet, arrays and objects of JSON."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ..common.errors import PixWordError
from .base import MAX_TEXT_BYTES, Picture
from .coco import MAX_BYTES, CaptionObject
from .member_file import MemberFile, as_utf8
from .parquet import ParquetFile
from .record_parts import LIST_KEYS, TEXT_KEYS, TURN_KEYS, array_parts, caption_parts
from .records import RecordFile, parse_json, scan_array, scan_lines
from .tables import Table, is_labels

LLAVA_FILE = "chat.json"
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")  # besides .json, which may hold anything

Records: TypeAlias = "RecordFile | ParquetFile | CaptionObject"


def open_records(path: Path | MemberFile, resolve: Callable[[str], Picture]) -> Records:
    """Open a file of records, or of captions in one JSON object.

    Args:
        path: the file.
        resolve: makes pictures of image references.

    Raises:
        PixWordError: a malformed file.
    """
    suffix, path = path.suffix.lower(), as_utf8(path)
    if suffix == ".json":
        return _open_json(path, resolve)
    if suffix == ".parquet":
        return ParquetFile(path, resolve)
    if suffix == ".txt" and not is_labels(path):
        raise PixWordError(f"{path} is no table of images and texts")
    if suffix in (".csv", ".tsv", ".txt"):
        table = Table(path)
        return RecordFile(path, resolve, table.scan, caption_parts, table.parse)
    return RecordFile(path, resolve, scan_array if _is_array(path) else scan_lines, array_parts)


def image_folder(path: Path) -> Path:
    """Where the images of records lie: of ``.json`` in images.zip, images/ or COCO's split, or else beside them."""
    folder, split = path.parent, path.stem.removeprefix("captions_")
    if path.suffix.lower() != ".json":
        return folder
    places = (folder / "images.zip", folder / "images", *([folder.parent / split] if split != path.stem else []))
    return next((place for place in places if place.exists()), folder)


def _open_json(path: Path | MemberFile, resolve: Callable[[str], Picture]) -> Records:
    """An array of records, an object of captions, or lines of records that have this suffix by mistake."""
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_TEXT_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
            lines = _is_record(first)
            content = first + file.read(MAX_BYTES) if first.startswith(b"{") and not lines else b""
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None
    if lines:
        return RecordFile(path, resolve, scan_lines, array_parts)
    if not content:
        to_parts = partial(array_parts, captions=path.name == LLAVA_FILE)
        return RecordFile(path, resolve, scan_array, to_parts)
    if len(content) > MAX_BYTES:
        raise PixWordError(f"{path} has more than {MAX_BYTES:,} bytes; make it .jsonl, a record a line")
    return CaptionObject(path, content, resolve)


def _is_array(path: Path | MemberFile) -> bool:
    """Whether a file that is named as lines of JSON is an array of objects instead."""
    try:
        with path.open("rb") as file:
            return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(1024)) is not None
    except OSError:
        return False  # it is reported by what reads it


def _is_record(line: bytes) -> bool:
    """Whether the first line of a file is a whole record, with a key of its own for text or images."""
    try:
        return bool({*TEXT_KEYS, *LIST_KEYS, *TURN_KEYS} & parse_json(line).keys())
    except PixWordError:
        return False
