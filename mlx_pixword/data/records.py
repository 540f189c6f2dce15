"""Documents kept as records: lines of JSON, LLaVA's JSON array, lines of a table. Found by offset, never all held."""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..common.errors import PixWordError
from .base import MAX_TEXT_BYTES, Picture, too_long
from .member_file import MemberFile
from .record_parts import DamagedRecords, each_caption

Scan = Callable[[BinaryIO], Iterator[tuple[int, int, int, bytes]]]  # first byte, end, number from 1, the bytes
ToParts = Callable[[Mapping[str, Any], Callable[[str], Any]], list[Any]]

_CHUNK = 2**20
_LONGEST = 2**26  # bytes of a record in an array, after which the search for its end gives up
_DECODE = json.JSONDecoder().raw_decode
_FIRST = re.compile(r"(?:\xef\xbb\xbf)?\s*\[\s*(\])?")
_NEXT = re.compile(r"\s*(?:,|(\]))\s*")


class RecordFile:
    """A source with one document a record, and of a record with several captions one a caption.

    Every record is checked when the file is opened.

    Args:
        path: the file.
        resolve: makes pictures of image references.
        scan: finds the records: ``scan_lines``, ``scan_array`` or a table's.
        to_parts: makes a document of a record: ``caption_parts`` or ``array_parts``.
        parse: makes a record of its bytes; by default JSON's.

    Raises:
        PixWordError: no record, or a malformed one; file and record are named.
    """

    endless = False

    def __init__(
        self,
        path: Path | MemberFile,
        resolve: Callable[[str], Picture],
        scan: Scan,
        to_parts: ToParts,
        parse: Callable[[bytes], dict[str, Any]] | None = None,
    ) -> None:
        self.name = str(path)
        self.captioned = False  # until an image with a caption is found
        self.unusable: list[tuple[str, str]] = []
        self._path, self._resolve, self._to_parts, self._parse_raw = path, resolve, to_parts, parse or parse_json
        self._unit = "record" if scan is scan_array else "line"
        self._digest, self._each = hashlib.sha256(), array("Q")  # of all records; of each
        self._spans = self._index(scan)  # int64 [documents, 4]: first byte, end, number, the caption's place

    def __len__(self) -> int:
        return len(self._spans)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; a reference that leaves the folder of images raises ``PixWordError``."""
        return self._read(index, self._resolve)

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without opening an image."""
        return [part for part in self._read(index, _no_picture) if part is not None]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for index in range(len(self)):
            yield from self.document_texts(index)

    def references(self) -> Iterator[str]:
        """All references to images, as they are written."""
        found: list[str] = []
        for index in range(len(self)):
            self._read(index, found.append)
            yield from found
            found.clear()

    def digest(self) -> str:
        """See ``Source.digest``: every record's bytes."""
        return self._digest.hexdigest()

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: a digest of its record."""
        return ((f"{digest:016x}", -1) for digest in self._each)

    def label(self, index: int) -> str:
        """What a message calls a record."""
        return f"{self._unit} {self._spans[index][2]} of {self._path.name}"

    def _index(self, scan: Scan) -> np.ndarray:
        spans = array("q")
        try:
            with self._path.open("rb") as file:
                for start, end, number, raw in scan(file):
                    for place, record in enumerate(self._parse(raw, number)):
                        parts = self._convert(record, number, _no_picture)
                        self.captioned |= len(parts) == 2 and parts[0] is None and parts[1] is not None
                        spans.extend((start, end, number, place))
                        key = raw + b"\0%d" % place if place else raw
                        self._each.frombytes(hashlib.blake2b(key, digest_size=8).digest())
                    self._digest.update(raw)
        except BrokenArray as error:
            raise PixWordError(f"{self._path} is no JSON array of records: {error}") from None
        except OSError as error:
            raise PixWordError(f"{self._path} cannot be read: {error.strerror or error}") from None
        except PixWordError as error:
            raise (DamagedRecords if self.captioned else type(error))(str(error)) from None
        if not spans:
            raise PixWordError(f"{self._path} holds no documents; give a file with at least one {self._unit}")
        return np.array(spans, np.int64).reshape(-1, 4)

    def _read(self, index: int, resolve: Callable[[str], Any]) -> list[Any]:
        start, end, number, place = self._spans[index].tolist()
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                raw = file.read(end - start)
        except OSError as error:
            raise self._error(number, f"cannot be read: {error.strerror or error}") from None
        records = self._parse(raw, number)
        return self._convert(records[min(place, len(records) - 1)], number, resolve)  # a file may have changed

    def _parse(self, raw: bytes, number: int) -> list[Mapping[str, Any]]:
        """The record for each of its captions."""
        try:
            return each_caption(self._parse_raw(raw))
        except PixWordError as error:
            raise self._error(number, error) from None

    def _convert(self, record: Mapping[str, Any], number: int, resolve: Callable[[str], Any]) -> list[Any]:
        try:
            return self._to_parts(record, resolve)
        except PixWordError as error:
            raise self._error(number, error) from None

    def _error(self, number: int, problem: PixWordError | str) -> PixWordError:
        kind = DamagedRecords if isinstance(problem, DamagedRecords) else PixWordError
        return kind(f"{self._path}, {self._unit} {number}: {problem}")


def parse_json(raw: bytes) -> dict[str, Any]:
    """A record of JSON; raises `PixWordError` without its place."""
    if len(raw) > MAX_TEXT_BYTES:
        raise PixWordError(too_long(len(raw)))
    try:
        record = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise PixWordError("not valid UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise PixWordError(f"not valid JSON, {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise PixWordError("JSON nested too deeply for a document") from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise PixWordError("a number in the JSON is too long for a document") from None
    if not isinstance(record, dict):
        raise PixWordError(f"expected a JSON object, got {raw[:40]!r}")
    return record


def scan_lines(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Spans, line numbers and bytes of the lines that are not blank; of a line that is too long, the beginning."""
    start = 0
    for number, line in enumerate(iter(lambda: file.readline(MAX_TEXT_BYTES + 1), b""), 1):
        if line.strip():
            yield start, start + len(line), number, line
        start += len(line)


def scan_array(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Spans, numbers and bytes of the elements of a JSON array, read piece by piece; raises ``BrokenArray``."""
    # Latin-1 makes one character of each byte, so places in the text are offsets in the file; JSON's marks are ASCII.
    text, base, place = "", 0, 0  # base: offset of the text's first character; place: where a separator is due
    for number in count(1):
        while (span := _element(text, place, _NEXT if number > 1 else _FIRST)) is None:
            more = file.read(max(_CHUNK, len(text)))
            if not more or len(text) - place > _LONGEST:
                raise BrokenArray(f"record {number}, after byte {base + place}, is malformed or cut short")
            text, base, place = text[place:] + more.decode("latin-1"), base + place, 0
        start, place = span
        if start == place:
            return
        yield base + start, base + place, number, text[start:place].encode("latin-1")


class BrokenArray(ValueError):
    """The bytes are no JSON array; the message says where."""


def _element(text: str, place: int, separator: re.Pattern[str]) -> tuple[int, int] | None:
    """Span of the element after a separator; an empty span at the array's end; None if the text does not reach."""
    mark = separator.match(text, place)
    if mark is None:
        return None
    if mark[1]:
        return mark.end(), mark.end()
    try:
        return mark.end(), _DECODE(text, mark.end())[1]
    except (ValueError, RecursionError):
        return None


def _no_picture(_reference: str) -> None:
    """Stands in for an image where only texts are wanted."""
