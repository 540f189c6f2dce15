"""Folded images on disk: decoded once, memory-mapped in every later epoch.

A file holds ``height, width`` and the windows ``[N, P]``, padding included, as uint16 or int32; its name is a hash of
what it was made from.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident

import numpy as np

from ..common.errors import PixWordError
from ..common.files import trouble
from ..model.args import ModelArgs
from ..model.document import ImageTokens
from ..pixels.windows import num_windows, window_order

VERSION = 1  # of the files' contents; a new number leaves old files unread


class TokenCache:
    """Images by key (path, size, time) and by f, S, w; several processes may share one folder."""

    def __init__(self, directory: Path, args: ModelArgs) -> None:
        self._directory, self._args = directory, args
        self._salt = f"{VERSION}|{args.fold_factor}|{args.image_size}|{args.window_size}"
        self._dtype = np.uint16 if args.num_pix < 2**16 else np.int32
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PixWordError(f"--cache {directory}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self._salt}|{key}".encode()).hexdigest()
        return self._directory / digest[:2] / f"{digest}.windows"

    def get(self, key: str) -> ImageTokens | None:
        """The image, or None if it is not there."""
        try:
            stored = np.memmap(self._path(key), self._dtype, "r")
        except (FileNotFoundError, ValueError):  # absent, or cut short by a full disk: decode again
            return None
        window_size = self._args.window_size
        height, width = (int(size) for size in stored[:2]) if len(stored) > 2 else (0, 0)
        shape = (num_windows(height, width, window_size), window_size**2)
        if len(stored) != 2 + shape[0] * shape[1] or not height:
            return None
        windows = stored[2:].reshape(shape).astype(np.int32)
        return ImageTokens(windows, window_order(height, width, window_size)[1], height, width)

    def put(self, key: str, image: ImageTokens) -> None:
        """Keep an image; readers see the whole file or none. A full or closed disk raises `PixWordError`."""
        path = self._path(key)
        draft = path.with_suffix(f".{os.getpid()}.{get_ident()}.tmp")  # threads may keep the same image at once
        values = np.concatenate([[image.height, image.width], image.windows.ravel()]).astype(self._dtype)
        try:
            path.parent.mkdir(exist_ok=True)
            draft.write_bytes(values.tobytes())
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise trouble("write", path, error) from error
