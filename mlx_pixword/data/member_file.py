"""A file inside an archive that is read like one on the disk."""

import posixpath
from io import BytesIO
from typing import BinaryIO

from ..common.errors import PixWordError
from .archives import Archive


class MemberFile:
    """A file in an archive, with what is asked of a path to read its records; held in memory from its first use."""

    def __init__(self, archive: Archive, member: str) -> None:
        self._archive, self._member, self._content = archive, member, b""
        self.name = posixpath.basename(member)
        self.suffix = posixpath.splitext(member)[1]

    def __str__(self) -> str:
        return f"{self._archive.path}:{self._member}"

    def open(self, _mode: str = "rb") -> BinaryIO:
        """The file's bytes; raises `PixWordError` if the member is damaged."""
        try:
            self._content = self._content or self._archive.read(self._member)
        except PixWordError as error:
            raise PixWordError(f"{self}: {error}") from None
        return BytesIO(self._content)
