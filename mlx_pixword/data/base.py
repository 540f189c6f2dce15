"""What a source of documents is: the interfaces that the loader, the tests and new sources share."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

import numpy as np

MAX_TEXT_BYTES = 2**24  # of one document; a longer one is a file of another kind, and stalls the tokenizer


@runtime_checkable
class Picture(Protocol):
    """An image that has not been decoded yet. Cheap to hold, safe to use from any thread.

    Attributes:
        name: what a message calls it: a path, or ``archive.zip:member.png``.
        cache_key: identifies the bytes (path, member, size, modification time), or None if never worth caching.
    """

    @property
    def name(self) -> str: ...

    @property
    def cache_key(self) -> str | None: ...

    def rgb(self, image_size: int) -> np.ndarray:
        """Decode: uint8 ``[h, w, 3]``, longer side at most ``image_size`` pixels; raises ``BadImage``."""
        ...


class Source(Protocol):
    """A collection of documents, read by index.

    Attributes:
        name: what a message calls it, usually the path given.
        endless: True if every index >= 0 is a fresh document (then ``len`` is not asked for).
        captioned: True if documents of one image and one text are images with their captions, worthless without
            the image.
        unusable: ``(name, reason)`` of files that lie in the source and are no documents. A source may have
            ``unreadable`` too, the same of what could not be read, which counts as bad.
    """

    name: str
    endless: bool
    captioned: bool
    unusable: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def parts(self, index: int) -> list[str | Picture]:
        """The document in reading order: texts and images; image marks are not part of the texts."""
        ...

    def texts(self) -> Iterator[str]:
        """The texts of all documents in order, without opening an image."""
        ...

    def digest(self) -> str:
        """SHA-256 of what the source lists, without opening an image: it changes with the documents or their order.

        Where the source lies is no part of it, so that data may be moved. What lies inside an image is not read.
        """
        ...


def is_captioned(source: Source, parts: Sequence[object]) -> bool:
    """Whether a document is one image with its caption: worthless without the image, and the caption may come first."""
    return source.captioned and len(parts) == 2 and not isinstance(parts[0], str) and isinstance(parts[1], str)


def texts_of(source: Source, index: int) -> list[str]:
    """The texts of one document, without opening an image."""
    document_texts = getattr(source, "document_texts", None)  # sources need not have it
    if document_texts is not None:
        return list(document_texts(index))
    return [part for part in source.parts(index) if isinstance(part, str)]


def decode_text(content: bytes) -> str:
    """Text in UTF-8, with its mark or without, or in UTF-16 with its mark; raises ``UnicodeDecodeError``."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with suppress(UnicodeDecodeError):
            return content.decode("utf-16")
    return content.decode("utf-8-sig")


def too_long(size: int) -> str:
    """Why a text of so many bytes is refused."""
    return f"{size:,} bytes are too many for one document, the limit is {MAX_TEXT_BYTES:,}; split it"


def digest_of(entries: Iterable[object]) -> str:
    """SHA-256 of values in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr(entry).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
