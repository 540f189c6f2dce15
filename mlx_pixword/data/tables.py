"""CSV, TSV and labels in ``.txt``: images and their texts, with or without a line of names."""

import csv
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from ..common.errors import PixWordError
from ..common.settings import shown
from ..pixels.formats import is_image_name
from .base import MAX_TEXT_BYTES, too_long
from .member_file import MemberFile
from .record_parts import IMAGE_KEYS, LABEL_KEYS, MORE_IMAGE_KEYS, TEXT_KEYS, DamagedRecords

_IMAGES, _TEXTS = {*IMAGE_KEYS, *MORE_IMAGE_KEYS}, {*TEXT_KEYS, *LABEL_KEYS}
_KNOWN = _IMAGES | _TEXTS
_DELIMITERS = (",", ";", "\t", "|")
_SEP = re.compile(r"sep=([,;|\t])")  # Excel's line before a table, with its delimiter
_NUMBER = re.compile(r"#\d+$")  # behind an image's name, of its captions: Flickr8k's ``a.jpg#0``
_LONGEST = 2**18  # bytes of a first line
_LOOKED_AT = 16  # lines of a .txt that all have to begin with an image's name, where spaces cut them


class Table:
    """How a table is read: its delimiter, its columns, and whether its first line names them.

    A ``.tsv`` is cut at tabs and at nothing else, a ``.csv`` as Python's ``csv`` does, at commas, semicolons, tabs or
    bars, and a ``.txt`` at whichever of these stands behind the first name, or at the first space of each line.
    Without names, the column of images is the one whose first cell is the name of an image, and the columns
    behind it are the text. Cells beyond the last column belong to it: OCR labels often have commas and no quotes.

    Raises:
        PixWordError: no line, or no column of images or of text can be told.
    """

    def __init__(self, path: Path | MemberFile) -> None:
        self._path, suffix, lines = path, path.suffix.lower(), _beginning(path)
        told = _SEP.fullmatch(lines[0].rstrip("\r\n")) if lines else None
        lines = lines[1:] if told else lines
        first = lines[0] if lines else ""
        found = {".tsv": "\t", ".txt": _text_delimiter(lines)}.get(suffix) or _delimiter(first)
        self._delimiter = told[1] if told else found
        self._plain = suffix == ".tsv" or (suffix == ".txt" and self._delimiter in "\t ")  # a quote is a character
        spaced = re.search(re.escape(self._delimiter) + ' +"', first)  # as in ICDAR's labels: a.png, "text"
        self._style: dict[str, Any] = {"delimiter": self._delimiter}
        self._style |= {"skipinitialspace": True, "escapechar": "\\"} if spaced else {}
        try:
            self.columns, self.has_names = _columns(self._cells(first), path)
        except csv.Error as error:
            raise PixWordError(f"{path}, line 1: {_reason(error)}") from None
        self._unread = int(self.has_names) + (told is not None)  # lines before the first record
        names = self._cells(first)[1:] if self.has_names else [""]
        self._spaced = all(name.startswith(" ") for name in names)  # a space behind every delimiter

    def scan(self, file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
        """Spans, numbers of the first line and bytes of the records that are not blank."""
        lines = _Lines(file)
        strict = csv.reader(lines, strict=True, **self._style)  # or an open quote takes all that follows
        records = ([line] for line in lines) if self._plain else strict
        start, number = 0, 1
        try:
            for count, cells in enumerate(records):
                raw = b"".join(lines.taken)
                lines.taken.clear()
                if any(cell.strip() for cell in cells) and count >= self._unread:
                    if len(raw) > MAX_TEXT_BYTES:
                        raise PixWordError(too_long(len(raw)))
                    yield start, start + len(raw), number, raw
                start, number = start + len(raw), lines.number + 1
        except csv.Error as error:
            raise PixWordError(f"{self._path}, line {number}: {_reason(error)}") from None

    def parse(self, raw: bytes) -> dict[str, Any]:
        """Cells as a record; raises `PixWordError` without its place."""
        try:
            cells = self._cells(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            of_captions = _IMAGES.intersection(self.columns) and _TEXTS.intersection(self.columns)
            kind = DamagedRecords if of_captions else PixWordError
            raise kind("not valid UTF-8; save the file as UTF-8") from None
        except csv.Error as error:
            raise PixWordError(_reason(error)) from None
        last = len(self.columns) - 1
        if len(cells) > last + 1:
            if self.columns[last] not in _TEXTS:
                raise PixWordError(f"{len(cells)} cells in {last + 1} columns")
            cells[last:] = [self._delimiter.join(cells[last:])]
        record: dict[str, Any] = {name: cell for name, cell in zip(self.columns, cells, strict=False) if name}
        for name, cell in record.items():
            record[name] = _image_name(cell) if name in _IMAGES else cell.removeprefix(" " if self._spaced else "")
        return record

    def _cells(self, text: str) -> list[str]:
        if not self._plain:
            return next(csv.reader(StringIO(text, newline=""), **self._style), [])
        cells = text.rstrip("\r\n").split(self._delimiter, 1 if self._delimiter == " " else -1)
        quoted = (len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        return [cell[1:-1].replace('""', '"') if q else cell for cell, q in zip(cells, quoted, strict=True)]


def is_labels(path: Path | MemberFile) -> bool:
    """Whether a ``.txt`` is a table of images and their texts, as many OCR sets have it, and no text of words."""
    try:
        return _text_delimiter(_beginning(path)) is not None
    except PixWordError:
        return False  # it is reported when its turn comes


def _beginning(path: Path | MemberFile) -> list[str]:
    """The first lines of a file, each as far as it tells what the columns are."""
    try:
        with path.open("rb") as file:
            raw = [file.readline(_LONGEST) for _ in range(_LOOKED_AT)]
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None
    return [line.decode("utf-8-sig", "replace") for line in raw if line]


def _reason(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "lines end with CR alone, as on old Macs, or quotes are missing; save the file with LF"
    return f"{error}; quotes may be missing"


class _Lines:
    """The lines of a file, one character a byte; ``taken`` are the bytes since it was last cleared."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.taken, self.number = file, list[bytes](), 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_TEXT_BYTES + 1):
            self.taken.append(line)
            self.number += 1
            yield line.decode("latin-1")


def _text_delimiter(lines: list[str]) -> str | None:
    """What cuts the lines of a ``.txt`` into the name of an image and its text; None if it is no table of these."""
    first = lines[0] if lines else ""
    for delimiter in ("\t", ",", ";", "|"):
        cells = [cell.strip(' "\r\n') for cell in first.split(delimiter)]
        names = set(map(_name, cells))
        if len(cells) > 1 and (_is_image(cells[0]) or (names & _IMAGES and names & _TEXTS)):
            return delimiter
    halves = [line.rstrip("\r\n").partition(" ") for line in lines if line.strip()]
    return " " if len(halves) > 1 and all(space and _is_image(name) for name, space, _ in halves) else None


def _is_image(cell: str) -> bool:
    return is_image_name(_image_name(cell))


def _image_name(cell: str) -> str:
    """A cell without the spaces around it, and without the number of one of several captions."""
    name = _NUMBER.sub("", cell.strip())
    return name if is_image_name(name) else cell.strip()


def _delimiter(first: str) -> str:
    """What cuts the first line into cells of which one is known or an image; the one with most cells of several."""

    def fits(delimiter: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            return False, 0
        known = any(_name(cell) in _KNOWN or _is_image(cell) for cell in cells)
        return known and len(cells) > 1, -_DELIMITERS.index(delimiter)

    return max(_DELIMITERS, key=fits)


def _columns(cells: list[str], path: Path | MemberFile) -> tuple[list[str], bool]:
    """A name for each column, and whether they stand in the first line."""
    if not any(cell.strip() for cell in cells):
        raise PixWordError(f"{path} holds no documents; give a file with at least one line")
    names = [_name(cell) for cell in cells]
    image = next((n for n, cell in enumerate(cells) if _is_image(cell)), None)
    if image is None:
        if len(names) == 2 and sum(name in _IMAGES for name in names) == 1 and not _KNOWN.issuperset(names):
            names = [name if name in _IMAGES else "text" for name in names]  # the other column can be nothing else
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
