"""The folder of a run: who may use it, and how to go on with it."""

import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..common import files
from ..common.errors import PixWordError
from ..data.known import Inventory

LOCK, LISTING = ".lock", "listing.json"
_VERSION = 1  # of the listing
_LITTER = {"Thumbs.db", "desktop.ini", "lost+found"}  # what systems leave in folders; .DS_Store is hidden anyway


def check_folder(folder: Path, resume: bool) -> None:
    """Raise `PixWordError` if a run cannot begin, or go on, here; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise PixWordError(f"--out {folder} is a file; choose a folder")
    if resume and not holds_run(folder):
        raise PixWordError(f"--resume: {folder} holds no run; leave --resume out to start one there")
    if not resume and folder.exists() and any(not _is_litter(path.name) for path in folder.iterdir()):
        if holds_run(folder):
            raise PixWordError(f"--out {folder} holds a run already; go on with --resume or choose another folder")
        raise PixWordError(f"--out {folder} holds something else already; choose another folder")


def holds_run(folder: Path) -> bool:
    """Whether a run was started in a folder, however far it came."""
    return any((folder / name).exists() for name in ("config.yaml", "checkpoints", LOCK))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make the folder and be its only owner; the kernel releases the lock of a process that ends in any way.

    A folder that was made here and got nothing is removed again.

    Raises:
        PixWordError: another process owns it, or it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    descriptor = _own(folder)
    try:
        os.ftruncate(descriptor, 0)
        files.perform("write", folder / LOCK, lambda: os.write(descriptor, f"{os.getpid()}\n".encode()))
        yield
    finally:
        if made and [path.name for path in folder.iterdir()] == [LOCK]:
            with suppress(OSError):  # somebody else has put something there
                (folder / LOCK).unlink()
                for path in made:
                    path.rmdir()
        os.close(descriptor)


def _own(folder: Path) -> int:
    """The descriptor of the folder's lock. One whose file was removed by its last owner is no lock any more."""
    path = folder / LOCK
    while True:
        files.make_folder(folder)
        try:
            descriptor = files.perform("write", path, lambda: os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
        except files.DiskTrouble as error:
            if isinstance(error.__cause__, FileNotFoundError):  # the folder went between two lines
                continue
            raise
        try:
            _lock(descriptor, folder)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
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


def write_listing(folder: Path, inventories: Sequence[Inventory]) -> None:
    """Keep what the data held when the run began; nothing for built-in data."""
    if inventories:
        sources = [inventory.to_json() for inventory in inventories]
        files.replace_file(folder / LISTING, json.dumps({"version": _VERSION, "sources": sources}).encode())


def read_listing(content: bytes, digests: Sequence[str]) -> list[Inventory] | None:
    """What the data held when the run began, of a listing's bytes; None where it is not of these digests."""
    try:
        values = json.loads(content or b"{}")
        known = [Inventory.from_json(source) for source in values["sources"]] if values["version"] == _VERSION else []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return known if [one.digest for one in known] == list(digests) else None


def resume_command(folder: Path) -> str:
    """What to type to go on with a run."""
    return f"python -m mlx_pixword.pretrain --config {shlex.quote(str(folder / 'config.yaml'))} --resume"
