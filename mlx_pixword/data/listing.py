"""What lies in a folder: its files by name, and what cannot be read or must not be followed."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from .archives import is_hidden
from .names import stays_inside

LINKED_FOLDER = "a link to a folder, give that folder itself"
RUN_FOLDER = "the folder of a run, whose samples are no data"
_OF_A_RUN = ("config.yaml", ".lock")
APPEARED = "appeared since the run began"
UNPACKED = "an archive whose images lie beside it, unpacked"
UNREAD = "is not read"
LEADS_OUT = "a link that leads out of the folder; pass --allow-outside if you trust it"


@dataclass
class Listing:
    """The files of a folder.

    Attributes:
        files: paths relative to the folder, sorted, with ``/`` between them.
        unusable: ``(path, reason)`` of what was left out on purpose.
        unreadable: the same of folders that could not be read.
    """

    files: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def list_folder(root: Path, allow_outside: bool = False) -> Listing:
    """All files below a folder but hidden ones. Linked folders are not entered: they could lead in circles.

    Folders of runs, such as one whose ``--out`` lies in its data, are not entered either.
    """
    listing, folders = Listing(), [""]
    while folders:
        prefix = folders.pop()
        if prefix and all((root / prefix / name).exists() for name in _OF_A_RUN):
            listing.unusable.append((str(root / prefix), RUN_FOLDER))
            continue
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if not is_hidden(entry.name):
                        _note(entry, prefix, root, allow_outside, listing, folders)
        except OSError as error:
            listing.unreadable.append((str(root / prefix), error.strerror or "cannot be read"))
    for names in (listing.files, listing.unusable, listing.unreadable):
        names.sort()
    return listing


def _note(
    entry: os.DirEntry[str], prefix: str, root: Path, allow_outside: bool, listing: Listing, folders: list[str]
) -> None:
    name = prefix + entry.name
    if entry.is_dir(follow_symlinks=False):
        folders.append(name + "/")
    elif not entry.is_symlink():
        listing.files.append(name)
    elif _is_folder(entry):
        listing.unusable.append((str(root / name), LINKED_FOLDER))
    elif allow_outside or _is_inside(root / name, root):
        listing.files.append(name)
    else:
        listing.unusable.append((str(root / name), LEADS_OUT))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return stays_inside(path, root)
    except (OSError, RuntimeError):
        return False
