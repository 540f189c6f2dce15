"""Zip and tar archives, read member by member without unpacking, from several threads at once."""

import lzma
import re
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from ..common.errors import BadImage, PixWordError
from ..common.files import check_lfs
from .index import Index, load_index, save_index
from .names import normal
from .tar_scan import JOINED, TarScan

MAX_MEMBER_BYTES = 2**29  # no image within the pixel limit needs more; a zip bomb unpacks to more
MAX_RATIO = 200  # unpacked to packed bytes; images are packed already, and blank ones are small
FREE_BYTES = 2**24  # unpacked bytes of a member that no ratio is asked of

_SUFFIXES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"}
_HIDDEN = re.compile(r"(^|[/\\])\.(?!\.?[/\\])|^__MACOSX/")
_UTF8 = 1 << 11  # flag of a zip's member whose name is marked as UTF-8; names of others are code page 437
_UNMARKED = 1 << 16  # flag of ours, which no file has: the name is UTF-8 without the mark
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Archive(Protocol):
    """An archive of files.

    Attributes:
        path: the archive's file.
        members: names of its regular files, sorted; hidden ones are left out.
        unusable: ``(name, reason)`` of members that are no regular files.
        unreadable: the same of what is damaged, so that members may be missing.
    """

    path: Path
    members: list[str]
    unusable: list[tuple[str, str]]
    unreadable: list[tuple[str, str]]

    def __contains__(self, member: str) -> bool: ...

    def find(self, name: str) -> str | None:
        """The member of that name, in whichever spelling the archive has it; None if there is none."""
        ...

    def size(self, member: str) -> int:
        """Bytes of a member that is there."""
        ...

    def read(self, member: str) -> bytes:
        """A member's bytes; raises ``BadImage`` if it is missing, encrypted, damaged or enormous."""
        ...


def is_archive(path: Path) -> bool:
    """True if a file's name is that of an archive; compressed tars count, so that they are refused by their name."""
    return path.suffix.lower() in _SUFFIXES or path.stem.lower().endswith(".tar")


def open_archive(path: Path) -> Archive:
    """Open a ``.zip`` or ``.tar``; raises ``PixWordError`` for a damaged archive or a compressed tar."""
    try:
        with path.open("rb") as file:
            check_lfs(file.read(64), path)
        return ZipArchive(path) if path.suffix.lower() == ".zip" else TarArchive(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, UnicodeDecodeError, NotImplementedError) as error:
        raise PixWordError(f"{path} cannot be read as an archive: {error}; it may be damaged, pack it again") from None
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None


def is_hidden(name: str) -> bool:
    """True if a part of a relative path starts with a dot, or if it is the folder macOS adds to zip archives."""
    return _HIDDEN.search(name) is not None


class _Listed(ABC):
    """Members in order with a row of numbers each, found by bisection: a million of them take little memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = load_index(path)
        if index is None:
            index = self._list()
            save_index(path, index)
        self.members, self._columns = index.members, index.columns
        self.unusable, self.unreadable = index.unusable, index.unreadable
        self._by_spelling: dict[str, str] | None = None

    @abstractmethod
    def _list(self) -> Index:
        """Read what the archive lists."""

    def __contains__(self, member: str) -> bool:
        place = bisect_left(self.members, member)
        return place < len(self.members) and self.members[place] == member

    def numbers(self, member: str) -> list[int]:
        """The numbers of a member; raises ``BadImage`` if there is none of that name."""
        if member not in self:
            raise BadImage("not in the archive")
        numbers: list[int] = self._columns[bisect_left(self.members, member)].tolist()
        return numbers

    def find(self, name: str) -> str | None:
        """See ``Archive.find``."""
        if name in self:
            return name
        if self._by_spelling is None:  # made when it is first needed
            self._by_spelling = {normal(member): member for member in reversed(self.members)}
        return self._by_spelling.get(normal(name))


class ZipArchive(_Listed):
    """A zip archive. One open file, and one thread at a time reads from it; decoding happens outside the lock."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        super().__init__(path)
        self._zip = _Bare(path)  # closes its file when it is collected

    def _list(self) -> Index:
        with zipfile.ZipFile(self.path) as archive:
            _check_total(self.path, sum(info.file_size for info in archive.infolist()))
            named = map(_named, archive.NameToInfo.values())  # the last one of each name
            found = {name: (info, flags) for name, flags, info in named}  # a damaged one may have none
            files = sorted(name for name, (info, _) in found.items() if name and not (info.is_dir() or is_hidden(name)))
            columns = [
                (i.header_offset, i.compress_size, i.file_size, i.compress_type, flags, i.CRC)
                for i, flags in map(found.__getitem__, files)
            ]
        return Index(files, np.array(columns, np.int64).reshape(-1, 6))

    def size(self, member: str) -> int:
        """See ``Archive.size``."""
        return self.numbers(member)[2]

    def read(self, member: str) -> bytes:
        """See ``Archive.read``."""
        info = zipfile.ZipInfo(member)
        (
            info.header_offset, info.compress_size, info.file_size, info.compress_type, info.flag_bits, info.CRC
        ) = self.numbers(member)  # fmt: skip
        if info.flag_bits & _UNMARKED:
            info.orig_filename = member.encode().decode("cp437")  # what the member's own header is compared with
        if info.flag_bits & 1:
            raise BadImage("encrypted")
        _check_size(info.file_size)
        if info.file_size > max(FREE_BYTES, MAX_RATIO * info.compress_size):
            raise BadImage(f"{info.compress_size:,} bytes that unpack to {info.file_size:,}, as no image does")
        try:
            with self._lock:
                return self._zip.read(info)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError) as error:
            raise BadImage(f"damaged archive member: {error}") from None


def _named(info: zipfile.ZipInfo) -> tuple[str, int, zipfile.ZipInfo]:
    """A member's name and flags: macOS and the program zip write UTF-8, and often without the mark."""
    if not info.flag_bits & _UTF8 and not info.filename.isascii():
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode(), info.flag_bits | _UNMARKED, info
    return info.filename, info.flag_bits, info


class _Bare(zipfile.ZipFile):
    """A zip file whose directory is known: reading it takes a second and 70 MB for every 100,000 members."""

    def _RealGetContents(self) -> None:
        """Read no directory. Where a Python reads it elsewhere, it is read, and members are found all the same."""


class TarArchive(_Listed):
    """An uncompressed tar archive: where its members lie is noted once, and each read opens the file anew.

    Reading goes on behind damage and behind the end of a first archive that others were joined to; both are named.
    """

    def _list(self) -> Index:
        _refuse_compression(self.path)
        scan, unusable = TarScan(self.path), list[tuple[str, str]]()
        archives: list[dict[str, tuple[int, int]]] = [{}]  # of each joined archive; by name, first byte and bytes
        for info in scan.infos:
            archives += [{} for _ in range(len(scan.joints) + 1 - len(archives))]
            self._note(info, archives[-1], unusable)
        places = _joined(archives)
        unreadable = [(f"{self.path} at byte {place:,}", reason) for place, reason in scan.damage]
        unusable += [(f"{self.path} at byte {place:,}", JOINED) for place in scan.joints]
        members = sorted(places)
        columns = np.array([places[member] for member in members], np.int64).reshape(-1, 2)
        return Index(members, columns, unusable, unreadable)

    def _note(self, info: tarfile.TarInfo, places: dict[str, tuple[int, int]], unusable: list[tuple[str, str]]) -> None:
        name = info.name.removeprefix("./")
        if info.isdir() or is_hidden(name):
            return
        linked = places.get(info.linkname.removeprefix("./")) if info.islnk() else None  # the same file, packed before
        if linked or (info.isreg() and not info.issparse()):
            if name in places:
                unusable.append((f"{self.path}:{name}", "replaced by a later member of that name"))
            places[name] = linked or (info.offset_data, info.size)
        else:
            unusable.append((f"{self.path}:{name}", "not a regular file"))

    def size(self, member: str) -> int:
        """See ``Archive.size``."""
        return self.numbers(member)[1]

    def read(self, member: str) -> bytes:
        """See ``Archive.read``."""
        start, size = self.numbers(member)
        _check_size(size)
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise BadImage(f"the archive cannot be read: {error.strerror or error}") from None
        if len(data) < size:
            raise BadImage("the archive is truncated")
        return data


def _joined(archives: list[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """The places of all members; an archive that repeats names of an earlier one is put into a folder of its own."""
    places = archives[0]
    for number, more in enumerate(archives[1:], 2):
        prefix = "" if places.keys().isdisjoint(more) else f"joined-{number}/"
        places |= {prefix + name: place for name, place in more.items()}
    return places


def _check_size(size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise BadImage(f"{size:,} bytes are too many, the limit is {MAX_MEMBER_BYTES:,}")


def _check_total(path: Path, size: int) -> None:
    """Refuse an archive whose members, taken together, unpack to far more than it has: they share their bytes."""
    packed = path.stat().st_size
    if size > max(64 * FREE_BYTES, MAX_RATIO * packed):
        raise PixWordError(f"{path} has {packed:,} bytes that unpack to {size:,}, as no collection of images does")


def _refuse_compression(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(_COMPRESSED_MAGIC):
        raise PixWordError(f"{path} is a compressed tar, whose members cannot be read singly; unpack it, or use a .zip")
