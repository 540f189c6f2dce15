"""Names of files as people have them: separators of Windows, two spellings of accents, folders named twice, ``~``."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from ..common.errors import PixWordError
from ..common.files import expand
from ..common.settings import shown

MAX_REFERENCE = 4096  # characters, the longest path on Linux; macOS takes fewer
_CACHED = re.compile(r"(datasets|models|spaces)--.+")  # a repository's folder in the cache of Hugging Face


def normal(name: str) -> str:
    """A relative name that is equal for all spellings of it: ``/`` between folders, composed accents, no ``./``."""
    name = name if name.isascii() else normalize("NFC", name)
    name = name.replace("\\", "/") if "\\" in name else name
    return os.path.normpath(name) if "./" in name or "//" in name else name


def spellings(name: str, root: str) -> Iterator[str]:
    """What a reference may mean below a folder or archive of the name ``root``, the likeliest first.

    The name as it is; with Windows' separators replaced; what follows the root's own name in it, as where a list was
    written one folder higher or on another machine; inside a folder ``images``; and each of these without the spaces
    around it and the escapes of an address (``%20``).
    """
    yield from _spellings(name, root)
    if (plain := unquote(name).strip()) != name:
        yield from _spellings(plain, root)


def _spellings(name: str, root: str) -> Iterator[str]:
    slashed = name.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    yield name
    if slashed != name:
        yield slashed
    for n, part in enumerate(parts[:-1]):
        if normal(part) == normal(root):
            yield "/".join(parts[n + 1 :])
    if parts and not slashed.startswith("/") and ":" not in parts[0] and ".." not in parts:
        yield f"images/{slashed}"


def find_file(reference: str, root: Path, allow_outside: bool) -> Path:
    """The file that a reference names, or would name if it were there.

    Args:
        reference: a path, absolute or relative to ``root``, in any of its `spellings`.
        root: the folder that references may not leave: by ``..``, by an absolute path, or through a symbolic link.
        allow_outside: lets them leave it.

    Raises:
        PixWordError: the reference leaves the root, or is no path.
    """
    reference = on_disk(checked(reference))
    first = root / expand(Path(reference))
    if not _exists(first):
        for spelling in spellings(reference, root.name):
            found = _as_stored(root, spelling)
            if found is not None and (allow_outside or stays_inside(found, root)):
                return found
    try:
        inside = allow_outside or stays_inside(first, root)
    except (OSError, RuntimeError, ValueError) as error:  # such as a loop of links
        raise PixWordError(f"image reference {shown(reference)} is no usable path: {error}") from None
    if not inside:
        raise PixWordError(f"image reference {shown(reference)} leaves {root}; pass --allow-outside if you trust it")
    return first


def stays_inside(path: Path, root: Path) -> bool:
    """Whether a path, links followed, lies in a folder, or is a link of Hugging Face's cache to its own repository."""
    real = path.resolve()
    if real.is_relative_to(root.resolve()):
        return True
    above = Path(os.path.normpath(Path.cwd() / root))  # links must not be followed here
    blobs = _blobs(above)
    if blobs is None or not real.is_relative_to(blobs):
        return False
    return Path(os.path.normpath(Path.cwd() / path)).is_relative_to(above)


def checked(reference: str) -> str:
    """The reference, if any file can have that name."""
    if len(reference) > MAX_REFERENCE:
        raise PixWordError(f"image reference {shown(reference)} of {len(reference):,} characters is no usable path")
    try:
        if b"\0" not in reference.encode("utf-8", "surrogateescape"):
            return reference
    except UnicodeEncodeError:  # a lone surrogate
        pass
    raise PixWordError(
        f"image reference {shown(reference)} is no usable path: it holds characters that no name can have"
    )


def on_disk(reference: str) -> str:
    """A reference as names of files are spelled here: on the disk they are UTF-8, whatever the locale says."""
    return os.fsdecode(reference.encode("utf-8", "surrogateescape"))


def _blobs(root: Path) -> Path | None:
    """Where the files of a snapshot lie, if a folder is one of Hugging Face's cache or lies in one."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and _CACHED.fullmatch(folder.parent.parent.name):
            blobs = folder.parent.parent / "blobs"
            return blobs.resolve() if blobs.resolve() == folder.parent.parent.resolve() / "blobs" else None
    return None


def _as_stored(root: Path, name: str) -> Path | None:
    """The path of a name whose accents are written either way, folder by folder; None if there is none."""
    if _exists(root / name):
        return root / name
    if name.isascii():
        return None
    here = Path("/") if name.startswith("/") else root
    for part in filter(None, name.split("/")):
        forms = dict.fromkeys((part, normalize("NFC", part), normalize("NFD", part)))
        found = next((here / form for form in forms if _exists(here / form)), None)
        if found is None:
            return None
        here = found
    return here


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def cache_key(path: Path, *member: str) -> str | None:
    """What tells a file from all others: path, member, size and time of change; None if it is not there."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    # repr, because a path may hold any separator, and bytes that are not UTF-8
    return repr((str(path.absolute()), *member, stat.st_size, stat.st_mtime_ns))
