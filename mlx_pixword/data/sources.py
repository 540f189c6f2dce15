"""Sources of documents on disk: what lies at a path is recognised, listed once and read by index."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..common.errors import PixWordError
from ..common.settings import named
from ..pixels.formats import IMAGE_SUFFIXES
from .archives import is_archive, is_hidden, open_archive
from .base import MAX_TEXT_BYTES, Picture, Source, digest_of, too_long
from .pictures import ArchivePicture, FilePicture
from .records import RecordFile, caption_parts, llava_parts, scan_array, scan_lines
from .references import IMAGE_START, image_opener, parse_references, resolve_reference
from .text_file import SUFFIX as TEXT_SUFFIX
from .text_file import TextFile

_USABLE = (
    "a folder of images or of .txt files, a .jsonl, a .zip or .tar of images, LLaVA's chat.json, .pwtext, or an image"
)
_LLAVA_FILE = "chat.json"
_UNUSABLE = "not an image"

T = TypeVar("T")
Listing = tuple[list[str], list[tuple[str, str]]]  # paths relative to the folder, sorted; what is unusable, and why


def open_source(path: Path, images: Path | None = None, allow_outside: bool = False) -> Source:
    """Recognise what lies at a path, and open it.

    Args:
        path: a folder of images or of UPW text files (``.txt``), a ``.jsonl`` of ``{"text"}`` or ``{"image",
            "caption"}``, a ``.zip`` or ``.tar`` of images, LLaVA's ``chat.json`` or its folder, a
            ``.pwtext``, a text, or an image.
        images: the folder or archive that image references are relative to; by default where the texts lie.
        allow_outside: lets references leave that folder.

    Raises:
        PixWordError: nothing there, nothing usable in it, or a malformed file.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_folder(path, images, allow_outside)
    if not path.is_file():
        raise PixWordError(f"no file or folder {path}; give {_USABLE}")
    if suffix == ".jsonl":
        return RecordFile(path, image_opener(images or path.parent, allow_outside), scan_lines, caption_parts)
    if suffix == ".json":
        opener = image_opener(images or _llava_images(path.parent), allow_outside)
        return RecordFile(path, opener, scan_array, llava_parts)
    if is_archive(path):
        return _open_archive(path)
    if suffix == TEXT_SUFFIX:
        return TextFile(path)
    if suffix == ".txt":
        return TextFiles(str(path), [path], _text_opener(images, allow_outside), [])
    if suffix in IMAGE_SUFFIXES:
        return Images(str(path), [path.name], lambda _: FilePicture(path), [])
    raise PixWordError(f"{path} is of an unknown kind ({suffix or 'no suffix'}); give {_USABLE}")


class Images:
    """A source of images without text: one picture a document.

    Args:
        name: what messages call the source.
        members: what ``to_picture`` makes pictures of, one a document.
        unusable: see ``Source``.
    """

    endless = False
    captioned = False

    def __init__(
        self,
        name: str,
        members: list[str],
        to_picture: Callable[[str], Picture],
        unusable: list[tuple[str, str]],
    ) -> None:
        if not members:
            raise PixWordError(f"{name} holds no images{_examples(unusable)}; give {_USABLE}")
        self.name, self.unusable = name, unusable
        self._members, self._to_picture = members, to_picture

    def __len__(self) -> int:
        return len(self._members)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        return [self._to_picture(self._members[index])]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``: there are none."""
        return iter(())

    def digest(self) -> str:
        """See ``Source.digest``: the members' names."""
        return digest_of(self._members)


class TextFiles:
    """A source of UPW text files: one file a document.

    Args:
        name: what messages call the source.
        paths: the files.
        opener: gives, for a text file, what makes pictures of its references.
        unusable: see ``Source``.
    """

    endless = False
    captioned = False

    def __init__(
        self,
        name: str,
        paths: list[Path],
        opener: Callable[[Path], Callable[[str], Picture]],
        unusable: list[tuple[str, str]],
    ) -> None:
        self.name, self.unusable = name, unusable
        self._paths, self._opener = paths, opener

    def __len__(self) -> int:
        return len(self._paths)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; malformed text or references raise ``PixWordError``, the file and line named."""
        path = self._paths[index]
        return _parse_file(path, self._opener(path))

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for path in self._paths:
            yield from (part for part in _parse_file(path, lambda _: None) if part is not None)

    def digest(self) -> str:
        """See ``Source.digest``: the files' names and sizes."""
        return digest_of((os.path.relpath(path, self.name), _size(path)) for path in self._paths)


def _open_folder(path: Path, images: Path | None, allow_outside: bool) -> Source:
    if (path / _LLAVA_FILE).is_file():
        return open_source(path / _LLAVA_FILE, images, allow_outside)
    files, unusable = _list_folder(path)
    texts = [path / file for file in files if file.lower().endswith(".txt")]
    unusable += [(str(text), "not a regular file") for text in texts if not text.is_file()]  # a pipe never ends
    texts = [text for text in texts if text.is_file()]
    pictures = [file for file in files if _is_image(file)]
    foreign = [file for file in files if not _is_image(file)]
    if texts and (images or not pictures or any(map(_has_marks, texts))):  # then pictures are what texts refer to
        unusable += [(str(path / f), "neither text nor image") for f in foreign if not f.lower().endswith(".txt")]
        return TextFiles(str(path), texts, _text_opener(images, allow_outside), unusable)
    unusable += [(str(path / file), _UNUSABLE) for file in foreign]
    return Images(str(path), pictures, lambda file: FilePicture(path / file), unusable)


def _open_archive(path: Path) -> Images:
    archive = open_archive(path)
    pictures = [member for member in archive.members if _is_image(member)]
    foreign = [(f"{path}:{member}", _UNUSABLE) for member in archive.members if not _is_image(member)]
    unusable = archive.unusable + foreign
    return Images(str(path), pictures, partial(ArchivePicture, archive), unusable)


def _list_folder(root: Path) -> Listing:
    """All files below a folder but hidden ones. Linked folders are not entered: they could lead in circles."""
    files: list[str] = []
    unusable: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        unusable.append((str(error.filename), error.strerror or "cannot be read"))

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        prefix = "" if here == root else here.relative_to(root).as_posix() + "/"
        links = [name for name in subfolders if (here / name).is_symlink() and not is_hidden(name)]
        unusable += [(str(here / name), "a link to a folder, give that folder itself") for name in links]
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        files += [prefix + name for name in names if not is_hidden(name)]
    return sorted(files), sorted(unusable)


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def _llava_images(folder: Path) -> Path:
    """Where the images of a ``chat.json`` lie: images.zip, images/, or beside it."""
    return next((place for place in (folder / "images.zip", folder / "images") if place.exists()), folder)


def _text_opener(images: Path | None, allow_outside: bool) -> Callable[[Path], Callable[[str], Picture]]:
    if images is None:
        return lambda text: partial(resolve_reference, root=text.parent, allow_outside=allow_outside)
    opener = image_opener(images, allow_outside)
    return lambda _: opener


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a text that cannot be read is reported when its turn comes


def _has_marks(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return IMAGE_START.encode() in file.read(MAX_TEXT_BYTES)
    except OSError:
        return False  # a text that cannot be read is reported when its turn comes


def _parse_file(path: Path, resolve: Callable[[str], T]) -> list[str | T]:
    try:
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise PixWordError(too_long(size))
        return parse_references(path.read_text(encoding="utf-8-sig"), resolve)
    except UnicodeDecodeError as error:
        raise PixWordError(f"{path} is not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}; check the file") from None
    except PixWordError as error:
        raise PixWordError(f"{path}, {error}") from None


def _examples(unusable: list[tuple[str, str]]) -> str:
    if not unusable:
        return ", it is empty"
    name, reason = unusable[0]
    return f" but {len(unusable)} other files, such as {named(name)} ({reason})"
