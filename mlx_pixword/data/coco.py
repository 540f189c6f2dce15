"""Captions kept as one JSON object: COCO's ``images`` and ``annotations``, or images' names with their captions."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..common.settings import shown
from ..pixels.formats import is_image_name
from .base import Picture
from .member_file import MemberFile
from .record_parts import caption_parts, captions_in, each_caption, place_images, shape

MAX_BYTES = 2**30  # COCO's own files have 30 to 100 MB


class CaptionObject:
    """A source with one document a caption, and one an image that has none; held in memory.

    COCO's own, Karpathy's splits of it (``images`` with ``sentences``), names of images with one caption or a
    list, and one list of records, such as ``{"data": [...]}``.

    Args:
        path: the file.
        content: its bytes, which begin an object.
        resolve: makes pictures of image references.

    Raises:
        PixWordError: neither COCO's keys nor names of images with texts; a caption of an unknown image.
    """

    endless, captioned = False, True

    def __init__(self, path: Path | MemberFile, content: bytes, resolve: Callable[[str], Picture]) -> None:
        self.name = str(path)
        self.unusable: list[tuple[str, str]] = []
        self._resolve, self._digest = resolve, hashlib.sha256(content).hexdigest()
        try:
            value = json.loads(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise PixWordError(f"{path} is not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise PixWordError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
        try:
            self._documents = _documents(value)
        except PixWordError as error:
            raise PixWordError(f"{path}: {error}") from None
        if not self._documents:
            raise PixWordError(f"{path} holds no documents; give a file with at least one caption")

    def __len__(self) -> int:
        return len(self._documents)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; a reference that leaves the folder of images raises ``PixWordError``."""
        image, caption = self._documents[index]
        return place_images(caption, [self._resolve(image)])

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without opening an image."""
        return [part for part in place_images(self._documents[index][1], [None]) if part is not None]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for index in range(len(self)):
            yield from self.document_texts(index)

    def references(self) -> Iterator[str]:
        """All references to images, as they are written."""
        return (image for image, _ in self._documents)

    def digest(self) -> str:
        """See ``Source.digest``: the file's bytes."""
        return self._digest

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: an image's name and a caption."""
        return (("\0".join(document), -1) for document in self._documents)

    def label(self, index: int) -> str:
        """What a message calls a document."""
        return f"a caption of {self._documents[index][0]}"


def _documents(value: dict[str, Any]) -> list[tuple[str, str]]:
    images = value.get("images")
    if "annotations" in value and images is not None:
        return _coco(value)
    if isinstance(images, list) and images and all(isinstance(i, dict) and "sentences" in i for i in images):
        return _karpathy(images)
    return _listed(value) or _names(value)


def _listed(value: dict[str, Any]) -> list[tuple[str, str]]:
    """The only list of records in an object, as in ``{"info": ..., "data": [...]}``: each of one image with a text."""
    lists = [told for told in value.values() if isinstance(told, list) and told]
    lists = [told for told in lists if all(isinstance(record, dict) for record in told)]
    documents = list[tuple[str, str]]()
    for record in (one for told in lists[:1] for item in told for one in each_caption(item) if len(lists) == 1):
        parts = caption_parts(record, lambda name: (name,))
        images = [part[0] for part in parts if isinstance(part, tuple)]
        texts = [part for part in parts if isinstance(part, str)]
        if len(images) != 1 or len(texts) > 1:
            raise PixWordError(f"expected records of one image with a text, got {shape(record)}")
        documents.append((images[0], "".join(texts)))
    return documents


def _karpathy(images: list[dict[str, Any]]) -> list[tuple[str, str]]:
    documents = list[tuple[str, str]]()
    for image in images:
        name, captions = image.get("filename"), captions_in(image["sentences"])
        if not isinstance(name, str) or captions is None:
            raise PixWordError(f'expected images of "filename" and "sentences" with "raw", got {shape(image)}')
        name = f"{folder}/{name}" if isinstance(folder := image.get("filepath"), str) and folder else name
        documents += [(name, caption) for caption in captions or [""]]
    return documents


def _coco(value: dict[str, Any]) -> list[tuple[str, str]]:
    try:
        names = {image["id"]: image["file_name"] for image in value["images"]}
        captions = [(note["image_id"], note["caption"]) for note in value["annotations"]]
        missing = [number for number, _ in captions if number not in names]
    except (KeyError, TypeError):
        raise PixWordError(
            'expected COCO\'s "images" of "id" and "file_name", and "annotations" of "image_id" and "caption"'
        ) from None
    if missing:
        raise PixWordError(f"a caption belongs to image {shown(missing[0])}, which is not among the images")
    if not all(isinstance(text, str) for text in (*names.values(), *(caption for _, caption in captions))):
        raise PixWordError("names and captions must be strings")
    told = {number for number, _ in captions}
    silent = [(name, "") for number, name in names.items() if number not in told]
    return [(names[number], caption.strip()) for number, caption in captions] + silent


def _names(value: dict[str, Any]) -> list[tuple[str, str]]:
    captions = {name: captions_in([told] if isinstance(told, (str, dict)) else told) for name, told in value.items()}
    if not all(is_image_name(name) and told is not None for name, told in captions.items()):
        raise PixWordError(
            'expected an array of records, COCO\'s "images" and "annotations", or names of images with captions, '
            f"got an object of {', '.join(map(shown, list(value)[:3]))}"
        )
    return [(name, caption) for name, told in captions.items() for caption in told or [""]]
