"""The members of a tar archive, to the end of the file: a damaged header, a cut and joined archives are noticed.

``tarfile`` takes each of the three for the end. Here it goes on to the next valid header, and what it met is noted.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = tarfile.BLOCKSIZE
DAMAGED = "a damaged header; what lies up to the next one is lost"
JOINED = "another archive was joined here; its members are read too"
CUT = "the archive is cut short"
NO_END = "the archive has no end mark; it may be cut short"
_MOST = 100  # places of damage that are named


class TarScan:
    """One pass over the headers of an archive.

    Attributes:
        damage: first byte and reason of every damage, when `infos` has come to its end.
        joints: first bytes of archives that were joined to the first one.
    """

    def __init__(self, path: Path) -> None:
        self.damage: list[tuple[int, str]] = []
        self.joints: list[int] = []
        self._path, self._size = path, path.stat().st_size
        self._ended = self._lost = False  # an end mark was met; in the middle of what is lost

    @property
    def infos(self) -> Iterator[tarfile.TarInfo]:
        """Headers of the members in order; raises ``tarfile.TarError`` where the file does not begin as a tar."""
        with tarfile.open(self._path, "r:", tarinfo=_noting(self), ignore_zeros=True) as tar:
            while (info := self._next(tar)) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
                if info.offset_data + (info.size if info.isreg() else 0) > self._size:
                    self._add(info.offset, f"{CUT}, member {info.name!r} is not whole"[:300])
                    return
                yield info
        if not self._ended and not self.damage:
            self._add(self._size, NO_END)

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            return tar.next()
        except tarfile.ReadError as error:
            if not tar.offset:
                raise
            self._add(tar.offset, f"{CUT}: {error}")
            return None

    def met(self, offset: int, error: Exception | None) -> None:
        """Note what a block was: a header (None), an end mark, or neither."""
        if error is None:
            if self._ended:
                self.joints.append(offset)
            self._ended = self._lost = False
        elif isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            self._ended = True
        elif isinstance(error, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            if offset and not self._ended:
                self._add(offset, CUT)
        elif isinstance(error, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
            if not offset:
                raise tarfile.ReadError(str(error))
            if not self._lost:
                self._add(offset, DAMAGED)
            self._lost = True

    def _add(self, place: int, reason: str) -> None:
        if len(self.damage) < _MOST:
            self.damage.append((place, reason))


def _noting(scan: TarScan) -> type[tarfile.TarInfo]:
    """A kind of header that tells the scan what every block was."""

    class Noting(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, tar: Any) -> Any:
            offset = tar.offset
            try:
                info = super().fromtarfile(tar)
            except tarfile.HeaderError as error:
                scan.met(offset, error)
                raise
            scan.met(offset, None)
            return info

    return Noting
