"""The folder of a run: who may use it, and how to go on with it."""

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common import files
from ..common.errors import PixWordError

LOCK = ".lock"


def check_folder(folder: Path, resume: bool) -> None:
    """Raise `PixWordError` if a run cannot begin here; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise PixWordError(f"--out {folder} is a file; choose a folder")
    if not resume and folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise PixWordError(f"--out {folder} holds a run already; go on with --resume or choose another folder")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make the folder and be its only owner; the kernel releases the lock of a process that ends in any way.

    Raises:
        PixWordError: another process owns it, or it cannot be written to.
    """
    files.make_folder(folder)
    path = folder / LOCK
    descriptor = files.perform("write", path, lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        files.perform("write", path, lambda: os.write(descriptor, f"{os.getpid()}\n".encode()))
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip()
        raise PixWordError(
            f"--out {folder} is in use by process {owner or 'unknown'}; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise files.trouble("lock", folder / LOCK, error) from error


def resume_command(folder: Path) -> str:
    """What to type to go on with a run."""
    return f"python -m mlx_pixword.pretrain --config {shlex.quote(str(folder / 'config.yaml'))} --resume"
