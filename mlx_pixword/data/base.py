"""What a source of documents is: the interfaces that the loader, the tests and new sources share."""

import hashlib
from collections.abc import Iterable, Iterator
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
        captioned: True if a document is one image with its caption, and worthless without the image.
        unusable: ``(name, reason)`` of files that lie in the source and are no documents.
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


def too_long(size: int) -> str:
    """Why a text of so many bytes is refused."""
    return f"{size:,} bytes are too many for one document, the limit is {MAX_TEXT_BYTES:,}; split it"


def digest_of(entries: Iterable[object]) -> str:
    """SHA-256 of values in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(repr(entry).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
