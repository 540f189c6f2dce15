"""CSV and TSV of images and their texts, with or without a line of names."""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from ..common.errors import PixWordError
from ..common.settings import shown
from ..pixels.formats import is_image_name
from .base import MAX_TEXT_BYTES, too_long
from .member_file import MemberFile
from .record_parts import IMAGE_KEYS, LABEL_KEYS, TEXT_KEYS

_KNOWN = {*IMAGE_KEYS, *TEXT_KEYS, *LABEL_KEYS}
_DELIMITERS = (",", ";", "\t", "|")
_BEGINNING = 2**16  # bytes that tell what a table's columns are


class Table:
    """How a table is read: its delimiter, its columns, and whether its first line names them.

    A ``.tsv`` is cut at tabs and at nothing else, a ``.csv`` as Python's ``csv`` does, at commas, semicolons, tabs or
    bars. Without names, the column of images is the one whose first cell is the name of an image, and the columns
    behind it are the text. Cells beyond the last column belong to it: OCR labels often have commas and no quotes.

    Raises:
        PixWordError: no line, or no column of images or of text can be told.
    """

    def __init__(self, path: Path | MemberFile) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                lines = _Lines(file)
                first = next(iter(lines), "")
        except OSError as error:
            raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None
        first = first.encode("latin-1").decode("utf-8-sig", "replace")
        self._tabs = path.suffix.lower() == ".tsv"
        self._delimiter = "\t" if self._tabs else _delimiter(first)
        try:
            self.columns, self.has_names = _columns(self._cells(first), path)
        except csv.Error as error:
            raise PixWordError(f"{path}, line 1: {error}; quotes may be missing") from None

    def scan(self, file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
        """Spans, numbers of the first line and bytes of the records that are not blank."""
        lines = _Lines(file)
        strict = csv.reader(lines, delimiter=self._delimiter, strict=True)  # or an open quote takes all that follows
        records = ([line] for line in lines) if self._tabs else strict
        start, number = 0, 1
        try:
            for cells in records:
                raw = b"".join(lines.taken)
                lines.taken.clear()
                if any(cell.strip() for cell in cells) and not (self.has_names and start == 0):
                    if len(raw) > MAX_TEXT_BYTES:
                        raise PixWordError(too_long(len(raw)))
                    yield start, start + len(raw), number, raw
                start, number = start + len(raw), lines.number + 1
        except csv.Error as error:
            raise PixWordError(f"{self._path}, line {number}: {error}; quotes may be missing") from None

    def parse(self, raw: bytes) -> dict[str, Any]:
        """Cells as a record; raises `PixWordError` without its place."""
        try:
            cells = self._cells(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise PixWordError("not valid UTF-8; save the file as UTF-8") from None
        except csv.Error as error:
            raise PixWordError(f"{error}; quotes may be missing") from None
        last = len(self.columns) - 1
        if len(cells) > last + 1:
            if self.columns[last] not in _KNOWN - set(IMAGE_KEYS):
                raise PixWordError(f"{len(cells)} cells in {last + 1} columns")
            cells[last:] = [self._delimiter.join(cells[last:])]
        record = {name: cell for name, cell in zip(self.columns, cells, strict=False) if name}
        return {name: cell.strip() if name in IMAGE_KEYS else cell for name, cell in record.items()}

    def _cells(self, text: str) -> list[str]:
        if not self._tabs:
            return next(csv.reader(StringIO(text, newline=""), delimiter=self._delimiter), [])
        cells = text.rstrip("\r\n").split("\t")
        quoted = (len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        return [cell[1:-1].replace('""', '"') if q else cell for cell, q in zip(cells, quoted, strict=True)]


class _Lines:
    """The lines of a file, one character a byte; ``taken`` are the bytes since it was last cleared."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.taken, self.number = file, list[bytes](), 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_TEXT_BYTES + 1):
            self.taken.append(line)
            self.number += 1
            yield line.decode("latin-1")


def _delimiter(first: str) -> str:
    """What cuts the first line into cells of which one is known or an image; the one with most cells of several."""

    def fits(delimiter: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            return False, 0
        known = any(_name(cell) in _KNOWN or is_image_name(cell.strip()) for cell in cells)
        return known and len(cells) > 1, -_DELIMITERS.index(delimiter)

    return max(_DELIMITERS, key=fits)


def _columns(cells: list[str], path: Path | MemberFile) -> tuple[list[str], bool]:
    """A name for each column, and whether they stand in the first line."""
    if not any(cell.strip() for cell in cells):
        raise PixWordError(f"{path} holds no documents; give a file with at least one line")
    names = [_name(cell) for cell in cells]
    image = next((n for n, cell in enumerate(cells) if is_image_name(cell.strip())), None)
    if image is None:
        if len(names) == 2 and sum(name in IMAGE_KEYS for name in names) == 1 and not _KNOWN.issuperset(names):
            names = [name if name in IMAGE_KEYS else "text" for name in names]  # the other column can be nothing else
        return names, True
    if image + 1 == len(cells) and image != 1:
        raise PixWordError(
            f"{path}, line 1: no text beside the image {shown(cells[image])}; give columns such as file_name,text"
        )
    if image + 1 == len(cells):
        return ["text", "file_name"], False
    return [*[""] * image, "file_name", "text"], False


def _name(cell: str) -> str:
    return cell.strip().lower().replace(" ", "_")
