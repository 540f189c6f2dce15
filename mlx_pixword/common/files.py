"""Files that survive a crash, a full disk and a power cut: written beside their place, flushed, then renamed.

Every operation passes through `perform`, which names the path of one that fails; a test can stop it at any of them.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .errors import PixWordError

MAX_CONFIG = 2**20  # bytes of a configuration
NO_FILE = "a pipe or a device, and no file"

LFS = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_GONE = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE}


class DiskTrouble(PixWordError):
    """A file or folder could not be written, moved or removed; the message names it and what is needed."""


def perform(verb: str, path: Path, action: Callable[[], T]) -> T:
    """Run one operation on a file; an `OSError` becomes `DiskTrouble`, such as "cannot write a/b: ..."."""
    try:
        return action()
    except OSError as error:
        raise trouble(verb, path, error) from error


def trouble(verb: str, path: Path, error: OSError) -> DiskTrouble:
    """What failed, on which path, and what is needed."""
    advice = ""
    if error.errno in _FULL:
        advice = f" ({free_bytes(path):,} bytes free); make room"
    elif error.errno in _CLOSED:
        advice = "; make it writable or choose another folder"
    return DiskTrouble(f"cannot {verb} {path}: {error.strerror or error}{advice}")


def is_trouble(error: OSError) -> bool:
    """Whether an error is the state of a disk or of its permissions."""
    return error.errno in _FULL | _CLOSED | _GONE


def expand(path: Path) -> Path:
    """A path with the home folder in place of a leading ``~``, which shells leave alone after ``=``."""
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def missing(path: Path) -> str:
    """What may be meant by a path where nothing is, as the end of a message."""
    text = str(path)
    if re.match(r"[a-z][a-z0-9+]+:/", text):
        return "; addresses are not fetched, download it first"
    if set("*?[") & set(text):
        return "; a shell fills in names only outside of quotes"
    return ""


def check_lfs(start: bytes, name: object) -> None:
    """Refuse the first bytes of a file that only stand for it."""
    if start.startswith(LFS):
        raise PixWordError(f"{name} is a pointer of Git LFS in place of the file; run git lfs pull")


def check_writable(folder: Path, what: str) -> None:
    """Raise `DiskTrouble` before anything long begins, if no file can be made in a folder, or in the one above it."""
    place = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise DiskTrouble(f"{what}: {place} cannot be written to; choose another folder")


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds a path, or would; 0 if that cannot be found out."""
    for place in (path, *path.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return 0
    return 0


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; whoever opens a pipe waits until somebody writes to it, so nothing else is opened.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, NO_FILE, str(path))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file with ``write(file)``; when this returns, its bytes are on the disk."""
    file = perform("create", path, lambda: path.open("wb"))
    try:
        perform("write", path, lambda: write(file))
        perform("write", path, lambda: _flush(file))
    except BaseException:
        with suppress(OSError):  # closing would try to write what is left once more
            file.close()
        raise
    file.close()


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file that is there as a whole or as it was before."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        write_file(draft, lambda file: file.write(content))
    except DiskTrouble:
        with suppress(OSError):  # it would keep the disk full
            draft.unlink(missing_ok=True)
        raise
    move(draft, path)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless it is there."""
    perform("create", path, lambda: path.mkdir(parents=True, exist_ok=True))


def move(source: Path, target: Path) -> None:
    """Rename, on the disk when this returns."""
    perform("move", target, lambda: os.replace(source, target))
    sync_folder(target.parent)


def publish(draft: Path, target: Path) -> None:
    """Give a finished folder its name; a folder that has it is removed afterwards (`settle` mends a crash between)."""
    sync_folder(draft)
    aside = _aside(target)
    if target.exists():
        remove(aside)
        move(target, aside)
    move(draft, target)
    remove(aside)


def settle(target: Path) -> None:
    """Give a folder its place back if `publish` was stopped between two renames."""
    if _aside(target).exists() and not target.exists():
        move(_aside(target), target)


def retire(folder: Path) -> None:
    """Remove a folder; one that is removed in part never has its own name."""
    move(folder, _aside(folder))
    remove(_aside(folder))


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    if folder.exists():
        perform("remove", folder, lambda: shutil.rmtree(folder))


def append_text(path: Path, text: str) -> None:
    """Append to a file."""

    def append() -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)

    perform("write", path, append)


def sync_file(path: Path) -> None:
    """Put what was appended to a file on the disk, if the file is there."""

    def sync() -> None:
        with path.open("rb") as file:
            _flush(file)

    if path.exists():
        perform("write", path, sync)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk."""

    def sync() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NOT_FOR_FOLDERS:  # some network drives keep names by themselves
                raise
        finally:
            os.close(descriptor)

    perform("write", path, sync)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves bytes in the drive's own cache
        with suppress(OSError):  # network drives refuse it; what is wrong with the file itself, fsync says too
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def read_object(path: Path, trouble: str, most: int = MAX_CONFIG) -> dict[str, Any]:
    """The JSON object in a small file.

    Args:
        path: the file.
        trouble: what it means that the file cannot be read, such as ``FOLDER is no model directory``.
        most: bytes; no file of this kind needs more.

    Raises:
        PixWordError: the file cannot be read, is larger, or holds something else.
    """
    try:
        if path.stat().st_size > most:
            raise PixWordError(f"{path} has more than {most:,} bytes, which no configuration needs")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PixWordError(f"{trouble}: {path.name}: {error.strerror}") from error
    except PixWordError:
        raise
    except (ValueError, RecursionError) as error:
        raise PixWordError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise PixWordError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values
