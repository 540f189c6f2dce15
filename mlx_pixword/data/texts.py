"""Documents that are files of their own: images, with captions beside them or without, and UPW's texts."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..common.errors import PixWordError
from .base import MAX_TEXT_BYTES, Picture, decode_text, digest_of, too_long
from .captions import Samples, caption_text
from .record_parts import place_images
from .references import IMAGE_START, image_opener, parse_references, resolve_reference

T = TypeVar("T")


class Images:
    """A source of images: one picture a document, or several of a key, then the caption if there is one.

    Args:
        name: what messages call the source.
        samples: the files of each document; its ``unusable`` is the source's.
        to_picture: makes a picture of a file's name.
        read: gives the bytes of a file with a caption.
        size: gives the bytes' number.
        unreadable: see ``Source``.
    """

    endless = False

    def __init__(
        self,
        name: str,
        samples: Samples,
        to_picture: Callable[[str], Picture],
        read: Callable[[str], bytes] = lambda _: b"",
        size: Callable[[str], int] = lambda _: 0,
        unreadable: list[tuple[str, str]] | None = None,
    ) -> None:
        self.name, self.unusable, self.unreadable = name, samples.unusable, unreadable or []
        self.captioned = bool(samples.captions)
        self._samples, self._to_picture, self._read, self._size = samples, to_picture, read, size

    def __len__(self) -> int:
        return len(self._samples.images)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; a caption that cannot be read raises ``PixWordError``, its file named."""
        first = self._samples.images[index]
        pictures = [self._to_picture(name) for name in (first, *self._samples.more.get(first, ()))]
        return self._captioned(first, pictures)

    def document_texts(self, index: int) -> list[str]:
        """The caption of one document, if it has any."""
        first = self._samples.images[index]
        pictures = [None] * (1 + len(self._samples.more.get(first, ())))
        return [part for part in self._captioned(first, pictures) if part is not None]

    def _captioned(self, first: str, pictures: list[T]) -> list[str | T]:
        """The document of an image: its pictures and its caption; in ``.json``, pictures stand at the marks."""
        name = self._samples.captions.get(first)
        if name is None:
            return [*pictures]
        try:
            text = caption_text(name, self._read(name))
            if name.lower().endswith(".json"):
                return place_images(text, pictures)
        except PixWordError as error:
            raise PixWordError(f"caption {name}: {error}") from None
        except OSError as error:
            raise PixWordError(f"caption {name} cannot be read: {error.strerror or error}") from None
        return [*pictures, *([text] if text else [])]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        if self._samples.captions:
            for index in range(len(self)):
                yield from self.document_texts(index)

    def digest(self) -> str:
        """See ``Source.digest``: the images' names, and the names and sizes of their captions."""
        images, captions, more = self._samples.images, self._samples.captions, self._samples.more
        if not captions and not more:
            return digest_of(images)
        return digest_of((image, *self._caption(captions.get(image)), *more.get(image, ())) for image in images)

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: names of its files; and bytes of the caption's, -1 for none."""
        captions, more = self._samples.captions, self._samples.more
        for image in self._samples.images:
            caption, size = self._caption(captions.get(image))
            yield "\0".join((image, *([caption] if caption else []), *more.get(image, ()))), size

    def label(self, index: int) -> str:
        """What a message calls a document."""
        return self._samples.images[index]

    def _caption(self, name: str | None) -> tuple[str | None, int]:
        try:
            return name, -1 if name is None else self._size(name)
        except OSError:
            return name, -1  # it is reported when its turn comes


class TextFiles:
    """A source of UPW text files: one file a document.

    Args:
        name: what messages call the source.
        paths: the files.
        opener: gives, for a text file, what makes pictures of its references.
        unusable, unreadable: see ``Source``.
    """

    endless = False
    captioned = False

    def __init__(
        self,
        name: str,
        paths: list[Path],
        opener: Callable[[Path], Callable[[str], Picture]],
        unusable: list[tuple[str, str]],
        unreadable: list[tuple[str, str]] | None = None,
    ) -> None:
        self.name, self.unusable, self.unreadable = name, unusable, unreadable or []
        self._paths, self._opener = paths, opener

    def __len__(self) -> int:
        return len(self._paths)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; malformed text or references raise ``PixWordError``, the file and line named."""
        path = self._paths[index]
        return _parse_file(path, self._opener(path))

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without opening an image."""
        return [part for part in _parse_file(self._paths[index], lambda _: None) if part is not None]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for index in range(len(self)):
            yield from self.document_texts(index)

    def digest(self) -> str:
        """See ``Source.digest``: the files' names and sizes."""
        return digest_of(self.entries())

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: its file's name; and the file's bytes."""
        return ((os.path.relpath(path, self.name), _size(path)) for path in self._paths)

    def label(self, index: int) -> str:
        """What a message calls a document."""
        return self._paths[index].name


def text_opener(images: Path | None, allow_outside: bool) -> Callable[[Path], Callable[[str], Picture]]:
    """What gives, for a text file, what makes pictures of its references."""
    if images is None:
        return lambda text: partial(resolve_reference, root=text.parent, allow_outside=allow_outside)
    opener = image_opener(images, allow_outside)
    return lambda _: opener


def has_marks(path: Path) -> bool:
    """Whether a text refers to images."""
    try:
        with path.open("rb") as file:
            return IMAGE_START.encode() in file.read(MAX_TEXT_BYTES)
    except OSError:
        return False  # a text that cannot be read is reported when its turn comes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # a text that cannot be read is reported when its turn comes


def _parse_file(path: Path, resolve: Callable[[str], T]) -> list[str | T]:
    try:
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise PixWordError(too_long(size))
        text = decode_text(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
        return parse_references(text, resolve)
    except UnicodeDecodeError as error:
        raise PixWordError(f"{path} is not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}; check the file") from None
    except PixWordError as error:
        raise PixWordError(f"{path}, {error}") from None
