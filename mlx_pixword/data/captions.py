"""Captions beside images: ``00.txt`` beside ``00.png``, in folders and archives; WebDataset's keys.

A file's key is its name up to the first dot: ``000.jpg``, ``000.seg.png`` and ``000.txt`` belong together.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..pixels.formats import is_image_name
from .base import MAX_TEXT_BYTES, decode_text, too_long
from .names import normal
from .record_parts import LIST_KEYS, TEXT_KEYS, TURN_KEYS, captions_in, turns_of

SUFFIXES = (".txt", ".caption", ".json", ".cls")  # of captions, the first that is there
NOT_AN_IMAGE = "not an image"
SEVERAL = "several captions, and a file beside an image has one; list them in metadata.jsonl"
FURTHER = "a further image of a key"
ELSEWHERE = "has an image's name and lies in another folder, so it is no caption; put it beside the image"
_TRUTH = ".gt"  # before .txt, in the ground truth of Tesseract, OCRopus and kraken: 00.gt.txt


@dataclass
class Samples:
    """Documents made of files.

    Attributes:
        images: the first image of each document, sorted.
        captions: by first image, the file with the caption, where there is one.
        more: by first image, further images of the document, where there are any.
        unusable: ``(name, reason)`` of files that belong to no document.
    """

    images: list[str]
    captions: dict[str, str] = field(default_factory=dict)
    more: dict[str, list[str]] = field(default_factory=dict)
    unusable: list[tuple[str, str]] = field(default_factory=list)


def pair(names: Sequence[str], read: Callable[[str], bytes], by_key: bool = False) -> Samples:
    """Find each image's caption.

    A caption has its image's name with another suffix, or its whole name and one more. A second image of a key, such
    as ``000.seg.png`` beside ``000.jpg``, is no document of its own where there are captions, and neither is it with
    ``by_key``; where no image has the key alone, all of it are one document.

    Args:
        names: files, sorted; hidden ones are left out before.
        read: gives a file's bytes, to look into the first ``.json``.
        by_key: names are WebDataset's.
    """
    images = [name for name in names if is_image_name(name)]
    others = [name for name in names if not is_image_name(name)]
    captions = _captions(others, images, read, by_key)
    if not captions and not by_key:
        return Samples(images, unusable=_reasons(others, images))
    samples = _pair(images, captions)
    used = set(samples.captions.values())
    samples.unusable += _reasons([name for name in others if name not in used], images)
    return samples


def caption_text(name: str, content: bytes) -> str:
    """The caption that a file holds; raises `PixWordError` without the file's name."""
    if len(content) > MAX_TEXT_BYTES:
        raise PixWordError(too_long(len(content)))
    try:
        text = decode_text(content)
    except UnicodeDecodeError as error:
        raise PixWordError(f"not valid UTF-8 at byte {error.start}; save it as UTF-8") from None
    if "\0" in text:
        raise PixWordError(f"not valid UTF-8 at byte {content.find(0)}, a zero; save it as UTF-8")
    if _suffix(name) != ".json":
        return text.strip()
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PixWordError(f"not valid JSON: {' '.join(str(error).split())[:200]}") from None
    caption = caption_of(record)
    if caption is None:
        raise PixWordError(f"holds no {' or '.join(TEXT_KEYS)}")
    return caption.strip()


def read_caption(path: Path) -> bytes:
    """The bytes of a file with a caption; a pipe, which never ends, and a huge file are refused."""
    if not path.is_file():
        raise PixWordError("not a regular file")
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise PixWordError(too_long(size))
    return path.read_bytes()


def caption_of(record: Any) -> str | None:
    """The caption in what a ``.json`` beside an image holds."""
    if not isinstance(record, dict):
        return None
    if any(record.get(key) for key in TURN_KEYS) and not any(record.get(key) for key in TEXT_KEYS):
        return "\n".join(turns_of(record)[0])
    told = next((record[key] for key in (*TEXT_KEYS, *LIST_KEYS) if record.get(key)), "")
    captions = captions_in(told if isinstance(told, list) else [told]) or []
    if len(captions) > 1:
        raise PixWordError(f"holds {SEVERAL}")
    if captions:
        return captions[0]
    return next((record[key] for key in TEXT_KEYS if isinstance(record.get(key), str)), None)


def _captions(
    others: Sequence[str], images: Sequence[str], read: Callable[[str], bytes], by_key: bool
) -> dict[str, str]:  # fmt: skip
    """Files of captions by the name that an image must have, without its suffix; the best suffix of each.

    With ``by_key`` the only text of a key is its caption, whatever stands between: ``000.caption.txt``.
    """
    if not any(_suffix(name) in SUFFIXES for name in others):
        return {}
    keys = {_stem(image) for image in images} | {_key(image) for image in images}
    found, further = dict[str, str](), dict[str, list[str]]()
    json_holds_text: bool | None = None
    problem = ""
    for name in others:
        suffix, stem = _suffix(name), _stem(name)
        if is_truth := suffix == ".txt" and stem.endswith(_TRUTH) and stem.removesuffix(_TRUTH) in keys:
            stem = stem.removesuffix(_TRUTH)
        is_further = by_key and stem not in keys and _key(name) in keys
        if suffix not in SUFFIXES or not (stem in keys or is_image_name(stem) or is_further):
            continue
        if suffix == ".json":
            if json_holds_text is None:
                json_holds_text, problem = _holds_text(name, read)
            if not json_holds_text:
                continue
        if is_further:
            further.setdefault(_key(name), []).append(name)
        elif stem not in found or is_truth or _rank(suffix) < _rank(_suffix(found[stem])):
            found[stem] = name
    if problem and not found and not further:
        raise PixWordError(problem)
    return {key: names[0] for key, names in further.items() if len(names) == 1} | found


def _reasons(others: Sequence[str], images: Sequence[str]) -> list[tuple[str, str]]:
    """Files that are neither images nor captions, each with the reason."""
    keys = {_key(image) for image in images} if any(_suffix(name) in SUFFIXES[:2] for name in others) else set()
    names = {key[key.rfind("/") + 1 :] for key in keys}

    def reason(name: str) -> str:
        key = _key(name)
        is_apart = _suffix(name) in SUFFIXES[:2] and key not in keys and key[key.rfind("/") + 1 :] in names
        return ELSEWHERE if is_apart else NOT_AN_IMAGE

    return [(name, reason(name)) for name in others]


def _holds_text(name: str, read: Callable[[str], bytes]) -> tuple[bool, str]:
    """Whether a ``.json`` holds a caption; if it has more than one, what is wrong."""
    try:
        caption_text(name, read(name))
    except (PixWordError, OSError) as error:
        return False, f"{name} {error}" if SEVERAL in str(error) else ""
    return True, ""


def _rank(suffix: str) -> int:
    return SUFFIXES.index(suffix)


def _pair(images: Sequence[str], captions: dict[str, str]) -> Samples:
    stems = {_stem(image) for image in images}
    samples, first_of = Samples([]), dict[str, str]()
    for image in images:
        stem, key = _stem(image), _key(image)
        caption = captions.get(stem) or captions.get(normal(image))
        if caption is None and key != stem:
            if key in stems:
                samples.unusable.append((image, FURTHER))
                continue
            caption = captions.get(key)
            if caption is not None and key in first_of:
                samples.more.setdefault(first_of[key], []).append(image)
                continue
            first_of[key] = image
        samples.images.append(image)
        if caption is not None:
            samples.captions[image] = caption
    return samples


def _suffix(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def _stem(name: str) -> str:
    """The name without its last suffix, in one spelling."""
    return normal(name[: name.rfind(".")] if "." in name else name)


def _key(name: str) -> str:
    """The name up to the first dot after its last folder, in one spelling."""
    name = normal(name)
    dot = name.find(".", name.rfind("/") + 2)  # a name may begin with a dot
    return name if dot < 0 else name[:dot]
