"""Folded images on disk: decoded once, memory-mapped in every later epoch.

A file holds ``[height, width, tokens in window order ...]`` and is named by what it was made from.
"""

import hashlib
import os
from pathlib import Path
from threading import get_ident

import numpy as np

from ..batch import ImageTokens
from ..errors import PixWordError
from ..model import ModelArgs
from ..windows import num_windows, valid_pixels, window_order

VERSION = 1  # of the files' contents; a new number leaves old files unread


class TokenCache:
    """Images by key (path, size, time) and by f, S, w; several processes may share one folder."""

    def __init__(self, directory: Path, args: ModelArgs) -> None:
        self._directory, self._args = directory, args
        self._salt = f"{VERSION}|{args.fold_factor}|{args.image_size}|{args.window_size}"
        self._dtype = np.uint16 if args.num_pix <= 2**16 else np.int32
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PixWordError(f"--cache {directory}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self._salt}|{key}".encode()).hexdigest()
        return self._directory / digest[:2] / f"{digest}.npy"

    def get(self, key: str) -> ImageTokens | None:
        """The image, or None if it is not there."""
        try:
            stored = np.load(self._path(key), mmap_mode="r")
        except (FileNotFoundError, ValueError, EOFError):  # absent, or cut short by a full disk: decode again
            return None
        height, width = int(stored[0]), int(stored[1])
        window_size, lengths = self._args.window_size, window_order(height, width, self._args.window_size)[1]
        windows = np.full((num_windows(height, width, window_size), window_size**2), self._args.num_pix, np.int32)
        windows[valid_pixels(lengths, window_size)] = stored[2:]
        return ImageTokens(windows, lengths, height, width)

    def put(self, key: str, image: ImageTokens) -> None:
        """Keep an image; readers see the whole file or none."""
        path = self._path(key)
        tokens = image.windows[valid_pixels(image.lengths, self._args.window_size)]
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.{get_ident()}.tmp")  # threads may keep the same image at once
        with draft.open("wb") as file:
            np.save(file, np.concatenate([[image.height, image.width], tokens]).astype(self._dtype))
        os.replace(draft, path)
