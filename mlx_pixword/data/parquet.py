"""Parquet files with images inside, as Hugging Face's data sets have them, or with their paths; by pyarrow."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..common.errors import BadImage, PixWordError
from .archives import MAX_MEMBER_BYTES
from .base import Picture, digest_of
from .member_file import MemberFile
from .names import cache_key
from .parquet_columns import NOT_READ, find_columns
from .pictures import decode_encoded
from .record_parts import DamagedRecords, captions_in, place_images, turns_of
from .references import parse_references

MAX_GROUP = 2**31  # bytes that a group of rows may unpack to
MAX_ROWS = 10**8  # of a group
HELD = 2**29  # bytes of groups that are kept unpacked
_GROUPS = 64  # groups that are kept at the most


class ParquetFile:
    """A source with one record a document: its images, and its text; of a list of captions, one caption a document.

    A record can be had only by unpacking its group, so the last groups are kept. Groups of some hundred, as Hugging
    Face writes them, are quick; a file of one large group is as quick only if all of it fits `HELD`.

    Args:
        path: the file; one in an archive is held in memory.
        resolve: makes pictures of paths, where the column of images holds no bytes.

    Raises:
        PixWordError: pyarrow is missing, the file is damaged, or its columns cannot be told; see `find_columns`.
    """

    endless = False

    def __init__(self, path: Path | MemberFile, resolve: Callable[[str], Picture]) -> None:
        self.name, self._path, self._resolve = str(path), path, resolve
        self._lock, self._held, self._bytes = Lock(), OrderedDict[int, tuple[list[Any], int]](), 0
        self._captions: np.ndarray | None = None  # of lists of them: row and place of each document's
        self._file = _open(path)
        self._ends = np.cumsum([_rows(self._file, n, path) for n in range(self._file.num_row_groups)])
        if not len(self):
            raise PixWordError(f"{path} holds no documents; give a file with at least one record")
        self._columns = columns = find_columns(self._file, path)
        self._images, self._text = columns.images, columns.text
        self.captioned = bool(self._images) and self._text is not None
        self.holds_images = columns.inside  # and need not name any
        self.unusable = [(f"{path}:{name}", NOT_READ) for name in columns.unread]
        if columns.captions and columns.text:
            self._captions = self._list_captions(columns.text)

    def __len__(self) -> int:
        if self._captions is not None:
            return len(self._captions)
        return int(self._ends[-1]) if len(self._ends) else 0

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        row, record = self._record(index)
        pictures = [self._picture(value, row, n) for n, value in self._values(record)]
        return self._document(record, pictures)

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without decoding an image."""
        _, record = self._record(index)
        parts = self._document(record, [None] * len(self._values(record)))
        return [part for part in parts if isinstance(part, str)]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for index in range(len(self)):
            yield from self.document_texts(index)

    def references(self) -> Iterator[str]:
        """All references to images that lie outside the file."""
        for index in range(len(self)):
            values = (value for _, value in self._values(self._record(index)[1]))
            paths = (
                value.get("path") if isinstance(value, dict) and not value.get("bytes") else value for value in values
            )
            yield from (path for path in paths if isinstance(path, str))

    def digest(self) -> str:
        """See ``Source.digest``: the columns, and the rows and bytes of each group."""
        groups = (self._file.metadata.row_group(n) for n in range(self._file.num_row_groups))
        sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        return digest_of([*self._images, self._text, *sizes])

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: a row of this very file, because rows are not looked into."""
        digest = self.digest()
        return ((f"{digest} {index}", -1) for index in range(len(self)))

    def label(self, index: int) -> str:
        """What a message calls a record."""
        return f"record {self._place(index)[0]} of {self._path.name}"

    def _values(self, record: dict[str, Any]) -> list[tuple[int, Any]]:
        """The images of a record as the file has them, each with its number."""
        found = [record[column] if isinstance(record[column], list) else [record[column]] for column in self._images]
        return [(n, value) for values in found for n, value in enumerate(values) if value is not None]

    def _document(self, record: dict[str, Any], pictures: list[Any]) -> list[Any]:
        text, labels = record[self._text] if self._text is not None else None, self._columns.labels
        if self._columns.turns:
            return place_images("\n".join(turns_of(record)[0]), pictures)
        if labels and isinstance(text, int) and 0 <= text < len(labels):
            text = labels[text]
        text = "" if text is None else str(text)
        if not pictures:
            return parse_references(text, self._resolve)
        return place_images(text, pictures)

    def _picture(self, value: Any, index: int, number: int) -> Picture:
        value = {"bytes": value} if isinstance(value, bytes) else value
        if isinstance(value, dict):
            content, value = value.get("bytes"), value.get("path")
            if content is not None:
                return _Cell(self._path, index, number, content)
        if isinstance(value, str):
            return self._resolve(value)
        raise PixWordError(f"{self._path}, record {index}: an image is neither bytes nor a path")

    def _place(self, index: int) -> tuple[int, int]:
        """The row of a document, and the place of its caption in the row's list."""
        index = range(len(self))[index]
        if self._captions is None:
            return index, 0
        row, place = self._captions[index].tolist()
        return row, place

    def _record(self, index: int) -> tuple[int, dict[str, Any]]:
        """The row of a document, and what it holds."""
        row, place = self._place(index)
        group = int(np.searchsorted(self._ends, row, side="right"))
        rows = self._group(group)
        record: dict[str, Any] = rows[row - (int(self._ends[group - 1]) if group else 0)]
        if self._captions is not None and self._text is not None:
            captions = captions_in(record[self._text])
            record = {**record, self._text: captions[place] if captions else None}
        return row, record

    def _list_captions(self, column: str) -> np.ndarray:
        """Row and place of every caption, int64 ``[documents, 2]``; a row without captions is a document too."""
        found, row = list[tuple[int, int]](), 0
        for group in range(len(self._ends)):
            for record in self._read(group, [column])[0]:
                found += [(row, place) for place in range(len(captions_in(record[column]) or [""]))]
                row += 1
        return np.array(found, np.int64).reshape(-1, 2)

    def _read(self, group: int, columns: list[Any]) -> tuple[list[Any], int]:
        """Columns of a group as rows, and the bytes that they take."""
        try:
            table = self._file.read_row_group(group, columns=columns)
            rows = table.to_pylist()
        except Exception as error:  # pyarrow raises many kinds, all of them for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise PixWordError(f"{self._path}, group of rows {group}: damaged: {reason}") from error
        if len(rows) != self._file.metadata.row_group(group).num_rows:
            raise PixWordError(f"{self._path}, group of rows {group}: damaged: it has {len(rows):,} rows")
        return rows, table.nbytes

    def _group(self, number: int) -> list[Any]:
        with self._lock:  # a file of pyarrow is read by one thread at a time
            if number not in self._held:
                self._held[number] = self._read(number, [*self._images, *([self._text] if self._text else [])])
                self._bytes += self._held[number][1]
                while len(self._held) > 1 and (self._bytes > HELD or len(self._held) > _GROUPS):
                    self._bytes -= self._held.popitem(last=False)[1][1]
            self._held.move_to_end(number)
            return self._held[number][0]


class _Cell:
    """An image inside a Parquet file."""

    def __init__(self, path: Path | MemberFile, record: int, number: int, content: bytes) -> None:
        self.name = f"{path}:record {record}" + (f", image {number}" if number else "")
        file, *member = (path.archive.path, path.member) if isinstance(path, MemberFile) else (path,)
        self.cache_key = cache_key(Path(file), *map(str, member), str(record), str(number))
        self._content = content

    def encoded(self) -> bytes:
        """See ``EncodedPicture.encoded``."""
        if len(self._content) > MAX_MEMBER_BYTES:
            raise BadImage(f"{len(self._content):,} bytes are too many, the limit is {MAX_MEMBER_BYTES:,}")
        return self._content

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``."""
        return decode_encoded(self.encoded(), image_size).rgb


def _open(path: Path | MemberFile) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise PixWordError(
            f"{path} needs pyarrow: python -m pip install pyarrow, or this package with its extra, parquet"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path.open() if isinstance(path, MemberFile) else path)
    except PixWordError:
        raise
    except Exception as error:  # pyarrow raises many kinds, all of them for a damaged file
        raise DamagedRecords(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error


def _rows(file: Any, number: int, path: Path | MemberFile) -> int:
    group = file.metadata.row_group(number)
    if not 0 <= group.num_rows <= MAX_ROWS:
        raise PixWordError(f"{path}: a group of {group.num_rows:,} rows, the limit is {MAX_ROWS:,}; it may be damaged")
    if group.total_byte_size > MAX_GROUP:
        raise PixWordError(
            f"{path}: a group of rows unpacks to {group.total_byte_size:,} bytes, the limit is {MAX_GROUP:,}; write it "
            "with smaller groups"
        )
    return int(group.num_rows)
