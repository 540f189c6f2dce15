"""Zip and tar archives, read member by member without unpacking, from several threads at once."""

import lzma
import re
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

from ..common.errors import BadImage, PixWordError

MAX_MEMBER_BYTES = 2**29  # no image within the pixel limit needs more; a zip bomb unpacks to more
MAX_RATIO = 200  # unpacked to packed bytes; images are packed already, and blank ones are small
FREE_BYTES = 2**24  # unpacked bytes of a member that no ratio is asked of

_SUFFIXES = {".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"}
_HIDDEN = re.compile(r"(^|/)\.(?!\.?/)|^__MACOSX/")
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Archive(Protocol):
    """An archive of files.

    Attributes:
        path: the archive's file.
        members: names of its regular files, sorted; hidden ones are left out.
        unusable: ``(name, reason)`` of members that are no regular files.
    """

    path: Path
    members: list[str]
    unusable: list[tuple[str, str]]

    def __contains__(self, member: str) -> bool: ...

    def read(self, member: str) -> bytes:
        """A member's bytes; raises ``BadImage`` if it is missing, encrypted, damaged or enormous."""
        ...


def is_archive(path: Path) -> bool:
    """True if a file's name is that of an archive; compressed tars count, so that they are refused by their name."""
    return path.suffix.lower() in _SUFFIXES or path.stem.lower().endswith(".tar")


def open_archive(path: Path) -> Archive:
    """Open a ``.zip`` or ``.tar``; raises ``PixWordError`` for a damaged archive or a compressed tar."""
    try:
        return ZipArchive(path) if path.suffix.lower() == ".zip" else TarArchive(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, UnicodeDecodeError, NotImplementedError) as error:
        raise PixWordError(f"{path} cannot be read as an archive: {error}; it may be damaged, pack it again") from None
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None


def is_hidden(name: str) -> bool:
    """True if a part of a relative path starts with a dot, or if it is the folder macOS adds to zip archives."""
    return _HIDDEN.search(name) is not None


class ZipArchive:
    """A zip archive. One open file, and one thread at a time reads from it; decoding happens outside the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)  # closes its file when it is collected
        self._lock = threading.Lock()
        _check_total(path, sum(info.file_size for info in self._zip.infolist()))
        named = (info for info in self._zip.infolist() if info.filename)  # a damaged one may have no name
        files = (info.filename for info in named if not info.is_dir())
        self.members = sorted({name for name in files if not is_hidden(name)})
        self.unusable: list[tuple[str, str]] = []

    def __contains__(self, member: str) -> bool:
        return member in self._zip.NameToInfo

    def read(self, member: str) -> bytes:
        """See ``Archive.read``."""
        try:
            info = self._zip.getinfo(member)
        except KeyError:
            raise BadImage("not in the archive") from None
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


class TarArchive:
    """An uncompressed tar archive: where its members lie is noted once, and each read opens the file anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unusable: list[tuple[str, str]] = []
        self._places: dict[str, tuple[int, int]] = {}  # first byte, bytes
        _refuse_compression(path)
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                self._note(info)
                tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
        self.members = sorted(self._places)

    def _note(self, info: tarfile.TarInfo) -> None:
        name = info.name.removeprefix("./")
        if info.isdir() or is_hidden(name):
            return
        if info.isreg() and not info.issparse():
            self._places[name] = info.offset_data, info.size
        else:
            self.unusable.append((f"{self.path}:{name}", "not a regular file"))

    def __contains__(self, member: str) -> bool:
        return member in self._places

    def read(self, member: str) -> bytes:
        """See ``Archive.read``."""
        if member not in self._places:
            raise BadImage("not in the archive")
        start, size = self._places[member]
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
