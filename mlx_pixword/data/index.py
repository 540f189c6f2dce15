"""What large archives list, kept between runs: reading a million headers takes longer than everything else at a start.

A list belongs to one archive: its path, size and time of change. It lies in the user's cache folder, holds no pickle,
and is written and read if that is possible, and else done without.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .names import cache_key

VERSION = 2  # of the lists' contents; a new number leaves old lists unread
LEAST = 10_000  # members of an archive that is worth it
FOLDER = "PIXWORD_INDEX"  # environment variable with another folder; empty for none


@dataclass
class Index:
    """What an archive lists.

    Attributes:
        members: names of the members, sorted.
        columns: int64 ``[members, k]``, numbers of each member whose meaning the kind of archive decides.
        unusable, unreadable: see ``Archive``.
    """

    members: list[str]
    columns: np.ndarray
    unusable: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def load_index(archive: Path) -> Index | None:
    """The list of an archive as it is now; None if none was kept, or none that is whole."""
    place = _place(archive)
    if place is None or not place.is_file():
        return None
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            names = bytes(stored["names"]).decode("utf-8", "surrogateescape")
            said = json.loads(bytes(stored["said"]))
            index = Index(names.split("\0"), stored["columns"], *([tuple(pair) for pair in part] for part in said))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None
    return index if len(index.members) == len(index.columns) else None


def save_index(archive: Path, index: Index) -> None:
    """Keep the list of a large archive; a folder that cannot be written to is no reason to stop."""
    place = _place(archive)
    if place is None or len(index.members) < LEAST or any("\0" in name for name in index.members):
        return
    draft = place.with_suffix(f".{os.getpid()}.tmp")
    arrays: dict[str, Any] = {
        "names": _bytes("\0".join(index.members).encode("utf-8", "surrogateescape")),
        "said": _bytes(json.dumps([index.unusable, index.unreadable]).encode()),
        "columns": index.columns,
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(draft, place)
    except (OSError, ValueError):
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _place(archive: Path) -> Path | None:
    folder, key = _folder(), cache_key(archive)
    if folder is None or key is None:
        return None
    return folder / f"{hashlib.sha256(f'{VERSION}|{key}'.encode('utf-8', 'surrogateescape')).hexdigest()}.npz"


def _folder() -> Path | None:
    """The user's cache folder, unless another one or none is asked for."""
    if (given := os.environ.get(FOLDER)) is not None:
        return Path(given) if given else None
    parts: Sequence[str] = ("Library", "Caches") if sys.platform == "darwin" else (".cache",)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home().joinpath(*parts)
    except RuntimeError:  # no home
        return None
    return Path(base) / "mlx-pixword" / "index"
