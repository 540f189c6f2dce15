"""Files of records that are held in memory: members of archives, and text that is UTF-16."""

import codecs
import posixpath
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..common.errors import PixWordError
from ..common.files import check_lfs
from .archives import Archive

MAX_UTF16 = 2**28  # bytes of a file in UTF-16
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class MemberFile:
    """A file in an archive, with what is asked of a path to read its records; held in memory from its first use."""

    def __init__(self, archive: Archive, member: str) -> None:
        self.archive, self.member, self._content = archive, member, b""
        self.name = posixpath.basename(member)
        self.suffix = posixpath.splitext(member)[1]

    def __str__(self) -> str:
        return f"{self.archive.path}:{self.member}"

    def open(self, _mode: str = "rb") -> BinaryIO:
        """The file's bytes; raises `PixWordError` if the member is damaged."""
        try:
            self._content = self._content or self.archive.read(self.member)
        except PixWordError as error:
            raise PixWordError(f"{self}: {error}") from None
        return BytesIO(self._content)


class Utf16File(MemberFile):
    """A text file on the disk in UTF-16, as Excel's "Unicode text" and Windows' PowerShell write it, read as UTF-8."""

    def __init__(self, path: Path | MemberFile, content: bytes) -> None:
        self._path, self.name, self.suffix, self._content = path, path.name, path.suffix, content

    def __str__(self) -> str:
        return str(self._path)

    def open(self, _mode: str = "rb") -> BinaryIO:
        """The file's bytes in UTF-8."""
        return BytesIO(self._content)


def as_utf8(path: Path | MemberFile) -> Path | MemberFile:
    """The file itself, or one with its text in UTF-8 if it begins with the mark of UTF-16."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
            check_lfs(start, path)
            if not start.startswith(_MARKS):
                return path
            content = start + file.read(MAX_UTF16)
    except OSError:
        return path  # it is reported by what reads it
    if len(content) > MAX_UTF16:
        raise PixWordError(f"{path} is UTF-16 of more than {MAX_UTF16:,} bytes; save it as UTF-8")
    try:
        return Utf16File(path, content.decode("utf-16").encode())
    except UnicodeError:
        raise PixWordError(f"{path} is not valid UTF-16; save it as UTF-8") from None
