"""Image references in UPW text: ``<|image|>path<|/image|>``."""

import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..common.errors import PixWordError
from ..common.settings import shown
from .archives import Archive, is_archive, open_archive
from .base import Picture
from .names import checked, find_file, spellings
from .pictures import ArchivePicture, FilePicture

IMAGE_START = "<|image|>"
IMAGE_END = "<|/image|>"
_MARK = re.compile(r"<\|/?image\|>")

T = TypeVar("T")


def parse_references(text: str, resolve: Callable[[str], T]) -> list[str | T]:
    """Split UPW text into texts and images, in reading order.

    Args:
        text: text with references; what lies outside them is kept as it is, and empty texts are left out.
        resolve: makes an image of a reference (without the spaces around it); raises ``PixWordError`` to refuse it.

    Raises:
        PixWordError: marks that are nested or have no partner, an empty or a refused reference; the line is named.
    """
    parts: list[str | T] = []
    start: int | None = None  # where the reference being read begins
    end = 0  # where the last mark ended
    for mark in _MARK.finditer(text):
        if mark[0] == IMAGE_START:
            if start is not None:
                raise _error(text, mark.start(), f"{IMAGE_START} inside another one, close each with {IMAGE_END}")
            parts.append(text[end : mark.start()])
            start = mark.end()
        else:
            if start is None:
                raise _error(text, mark.start(), f"{IMAGE_END} without {IMAGE_START} before it")
            parts.append(_resolve(text, start, mark.start(), resolve))
            start = None
        end = mark.end()
    if start is not None:
        raise _error(text, start, f"{IMAGE_START} without {IMAGE_END} after it")
    parts.append(text[end:])
    return [part for part in parts if part != ""]


def resolve_reference(reference: str, root: Path, allow_outside: bool) -> FilePicture:
    """The file that a reference names; see `find_file`."""
    return FilePicture(find_file(reference, root, allow_outside))


def image_opener(root: Path, allow_outside: bool) -> Callable[[str], Picture]:
    """What makes pictures of references into a folder of images, or into an archive of them.

    Raises:
        PixWordError: there is no such folder or archive, or the archive cannot be read.
    """
    check_images(root)
    if root.is_dir():
        return partial(resolve_reference, root=root, allow_outside=allow_outside)
    return partial(_resolve_member, archive=open_archive(root))


def check_images(root: Path) -> None:
    """Raise `PixWordError` if there is no folder or archive of images there."""
    if not root.is_dir() and not (root.is_file() and is_archive(root)):
        raise PixWordError(f"images must be a folder, a .zip or a .tar, got {root}; check the path")


def member_opener(archive: Archive, folder: str) -> Callable[[str], ArchivePicture]:
    """What makes pictures of references into an archive, in records that lie in one of its folders."""

    def resolve(reference: str) -> ArchivePicture:
        name = checked(reference).replace("\\", "/")
        names = (posixpath.join(folder, spelling) for spelling in spellings(name, posixpath.basename(folder)))
        found = next(filter(None, (archive.find(posixpath.normpath(name)) for name in names)), None)
        return _resolve_member(reference, archive) if found is None else ArchivePicture(archive, found)

    return resolve


def _resolve_member(reference: str, archive: Archive) -> ArchivePicture:
    member, stem = posixpath.normpath(checked(reference)), archive.path.stem
    leaves = member.startswith("/") or member.split("/")[0] == ".."
    meant = [name for name in spellings(reference, stem) if not leaves or name != reference]
    for name in (*meant, *([] if leaves else [f"{stem}/{member}"])):  # images.zip is often the packed folder images/
        if (found := archive.find(posixpath.normpath(name))) is not None:
            return ArchivePicture(archive, found)
    if leaves:
        raise PixWordError(f"image reference {shown(reference)} leaves {archive.path}; name a member of the archive")
    return ArchivePicture(archive, member)


def _resolve(text: str, start: int, end: int, resolve: Callable[[str], T]) -> T:
    reference = text[start:end].strip()
    if not reference:
        raise _error(text, start, f"nothing between {IMAGE_START} and {IMAGE_END}, a path is needed")
    try:
        return resolve(reference)
    except PixWordError as error:
        raise _error(text, start, str(error)) from None


def _error(text: str, place: int, problem: str) -> PixWordError:
    return PixWordError(f"text line {text.count(chr(10), 0, place) + 1}: {problem}")
