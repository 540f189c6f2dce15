"""Folded images on disk: decoded once, read in every later epoch.

A file holds a checksum, then ``height, width`` and the windows ``[N, P]``, padding included, as uint16 or int32; its
name is a hash of what it was made from.
"""

import hashlib
import os
import re
import time
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock, get_ident

import numpy as np

from ..common.cli import notice
from ..common.errors import PixWordError
from ..common.files import trouble
from ..model.args import ModelArgs
from ..model.document import ImageTokens
from ..pixels.windows import num_windows, window_order

VERSION = 2  # of the files' contents; a new number leaves old files unread
SUFFIX, DRAFT = ".windows", ".tmp"
_NAME = re.compile("[0-9a-f]{64}")
_CHECKSUM = 4  # bytes of CRC-32, little-endian
_SPARE = 0.02  # fraction of the limit that is freed at a time
_STALE = 86400.0  # seconds after which a draft belongs to a process that is gone


class TokenCache:
    """Images by key (path, size, time) and by f, S, w; several processes may share one folder.

    What is read is checked, and a damaged file is as good as none. When the folder has reached its limit, the oldest
    files that this process has neither read nor written make room; when there are none, no more are kept: images come
    in an order of their own in every epoch, so whatever made room for a new one would be missed as soon. A disk that
    is full or closed turns the keeping off, once with a line; what is there is still read.

    Args:
        directory: the folder; it is made if it is not there.
        args: shape of the model.
        gigabytes: the limit, 10^9 bytes each.
    """

    def __init__(self, directory: Path, args: ModelArgs, gigabytes: float = float("inf")) -> None:
        self._directory, self._args, self._limit = directory, args, gigabytes * 1e9
        self._salt = f"{VERSION}|{args.fold_factor}|{args.image_size}|{args.window_size}"
        self._dtype = np.uint16 if args.num_pix < 2**16 else np.int32
        self._lock, self._keeps, self._start = Lock(), True, time.time()
        self._size: int | None = None  # bytes of the folder, measured when the first image is kept
        self._old: Iterator[tuple[bytes, int]] | None = None
        self._mine: set[bytes] = set()  # digests of files that this process has used, shortened
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PixWordError(f"--cache {directory}: {error.strerror}") from error

    def _digest(self, key: str) -> bytes:
        return hashlib.sha256(f"{self._salt}|{key}".encode("utf-8", "surrogatepass")).digest()

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._directory / name[:2] / f"{name}{SUFFIX}"

    def get(self, key: str) -> ImageTokens | None:
        """The image, or None if it is not there or damaged."""
        digest = self._digest(key)
        try:
            stored = self._path(digest).read_bytes()
        except OSError:
            return None
        values, window_size = stored[_CHECKSUM:], self._args.window_size
        if len(values) % np.dtype(self._dtype).itemsize or stored[:_CHECKSUM] != _checksum(values):
            return None
        numbers = np.frombuffer(values, self._dtype)
        height, width = (int(size) for size in numbers[:2]) if len(numbers) > 2 else (0, 0)
        shape = (num_windows(height, width, window_size), window_size**2)
        if len(numbers) != 2 + shape[0] * shape[1] or not height:
            return None
        with self._lock:
            self._mine.add(digest[:8])
        windows = numbers[2:].reshape(shape).astype(np.int32)
        return ImageTokens(windows, window_order(height, width, window_size)[1], height, width)

    def put(self, key: str, image: ImageTokens) -> None:
        """Keep an image, if there is room; readers see the whole file or none."""
        values = np.concatenate([[image.height, image.width], image.windows.ravel()]).astype(self._dtype).tobytes()
        digest = self._digest(key)
        with self._lock:
            if not self._keeps or not self._has_room(_CHECKSUM + len(values)):
                return
            self._mine.add(digest[:8])
        path = self._path(digest)
        draft = path.with_suffix(f".{os.getpid()}.{get_ident()}{DRAFT}")  # threads may keep the same image at once
        try:
            path.parent.mkdir(exist_ok=True)
            draft.write_bytes(_checksum(values) + values)
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            with self._lock:
                self._stop(str(trouble("write", path, error)))

    def _has_room(self, size: int) -> bool:
        if self._limit == float("inf"):
            return True
        if self._size is None:
            self._size = sum(size for _, _, size in self._files())
        if self._size + size > self._limit:
            self._remove_old(size)
        if self._size + size > self._limit:
            self._stop(f"--cache-gb {self._limit / 1e9:g} is reached")
            return False
        self._size += size
        return True

    def _stop(self, reason: str) -> None:
        if self._keeps:
            self._keeps = False
            notice(f"cache    no more images are kept in {self._directory}: {reason}")

    def _remove_old(self, size: int) -> None:
        """Remove files that this process has not used, the oldest first, until there is some room again."""
        if self._old is None:
            self._old = self._oldest_first()
        while (self._size or 0) + size > self._limit * (1 - _SPARE):
            found = next(self._old, None)
            if found is None:
                return
            if found[0][:8] not in self._mine:
                with suppress(OSError):
                    self._path(found[0]).unlink()
                    self._size = (self._size or 0) - found[1]

    def _oldest_first(self) -> Iterator[tuple[bytes, int]]:
        digests, times, sizes = bytearray(), array("d"), array("q")  # 48 bytes a file
        for digest, changed, size in self._files():
            if changed < self._start:
                digests += digest
                times.append(changed)
                sizes.append(size)
        for n in np.argsort(np.array(times), kind="stable").tolist():
            yield bytes(digests[32 * n : 32 * n + 32]), sizes[n]

    def _files(self) -> Iterator[tuple[bytes, float, int]]:
        """Digest, time of change and bytes of each file; drafts of processes that are gone are removed."""
        with suppress(OSError):
            for folder in sorted(entry.path for entry in os.scandir(self._directory) if len(entry.name) == 2):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        name, _, suffix = entry.name.rpartition(".")
                        stat = entry.stat(follow_symlinks=False)
                        if suffix == SUFFIX[1:] and _NAME.fullmatch(name):
                            yield bytes.fromhex(name), stat.st_mtime, stat.st_size
                        elif suffix == DRAFT[1:] and stat.st_mtime < self._start - _STALE:
                            Path(entry.path).unlink(missing_ok=True)


def _checksum(values: bytes) -> bytes:
    return zlib.crc32(values).to_bytes(_CHECKSUM, "little")
