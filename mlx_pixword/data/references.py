"""Image references in UPW text: ``<|image|>path<|/image|>``."""

import os
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
from .pictures import ArchivePicture, FilePicture

IMAGE_START = "<|image|>"
IMAGE_END = "<|/image|>"
MAX_REFERENCE = 4096  # characters, the longest path on Linux; macOS takes fewer
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
    """The file that a reference names.

    Args:
        reference: a path, absolute or relative to ``root``.
        root: the folder that references may not leave: by ``..``, by an absolute path, or through a symbolic link.
        allow_outside: lets them leave it.

    Raises:
        PixWordError: the reference leaves the root, or is no path.
    """
    path = root / _checked(reference)
    try:
        inside = allow_outside or path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # such as a loop of links
        raise PixWordError(f"image reference {shown(reference)} is no usable path: {error}") from None
    if not inside:
        raise PixWordError(f"image reference {shown(reference)} leaves {root}; pass --allow-outside if you trust it")
    return FilePicture(path)


def image_opener(root: Path, allow_outside: bool) -> Callable[[str], Picture]:
    """What makes pictures of references into a folder of images, or into an archive of them.

    Raises:
        PixWordError: there is no such folder or archive, or the archive cannot be read.
    """
    if root.is_dir():
        return partial(resolve_reference, root=root, allow_outside=allow_outside)
    if root.is_file() and is_archive(root):
        return partial(_resolve_member, archive=open_archive(root))
    raise PixWordError(f"images must be a folder, a .zip or a .tar, got {root}; check the path")


def _resolve_member(reference: str, archive: Archive) -> ArchivePicture:
    member = posixpath.normpath(_checked(reference))
    if member.startswith("/") or member.split("/")[0] == "..":
        raise PixWordError(f"image reference {shown(reference)} leaves {archive.path}; name a member of the archive")
    in_folder = f"{archive.path.stem}/{member}"  # images.zip is often the packed folder images/
    return ArchivePicture(archive, in_folder if member not in archive and in_folder in archive else member)


def _checked(reference: str) -> str:
    """The reference, if any file can have that name."""
    if len(reference) > MAX_REFERENCE:
        raise PixWordError(f"image reference {shown(reference)} of {len(reference):,} characters is no usable path")
    try:
        if b"\0" not in os.fsencode(reference):
            return reference
    except UnicodeEncodeError:  # a lone surrogate
        pass
    raise PixWordError(
        f"image reference {shown(reference)} is no usable path: it holds characters that no name can have"
    )


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
