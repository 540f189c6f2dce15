"""Which columns of a Parquet file hold images, which its text, and which are not read."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from .member_file import MemberFile
from .record_parts import (
    HOLDERS,
    IMAGE_KEYS,
    LABEL_KEYS,
    LIST_KEYS,
    MORE_IMAGE_KEYS,
    TEXT_KEYS,
    TURN_KEYS,
    looks_like_image,
)

NOT_READ = "a column that is not read"
_LOOKED_AT = 16  # rows in which an image may show under a key that nobody would read
_NUMBERS = ("int", "uint", "bool")


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        images: the column of images, or none.
        inside: whether it has their bytes.
        text: the column of text, or None.
        turns: whether the text is a conversation.
        captions: whether it is a list of captions.
        unread: columns of text that nobody reads, where no other column holds text.
        labels: names of a column of class numbers, as Hugging Face's data sets note them; empty where there are none.
    """

    images: list[str]
    inside: bool
    text: str | None
    turns: bool
    captions: bool
    unread: list[str]
    labels: list[str]


def find_columns(file: Any, path: Path | MemberFile) -> Columns:
    """The columns of an open file.

    Raises:
        PixWordError: neither images nor text; images or texts that would be left out in silence; text in two columns.
    """
    kinds = {field.name: field.type for field in file.schema_arrow}
    images, (text, turns) = _images(kinds, path), _text(kinds, path)
    if not images and text is None:
        raise PixWordError(f"{path} has no column of images ({', '.join(IMAGE_KEYS)}) or text, got {list(kinds)}")
    others = [
        name
        for name, kind in kinds.items()
        if name not in images and name.lower() not in (*IMAGE_KEYS, *MORE_IMAGE_KEYS)
    ]
    if not images:
        _refuse_paths(file, [name for name in others if name != text and _is_text(kinds[name])], path)
    unread = [name for name in others if "string" in str(kinds[name])] if text is None else []
    captions = text is not None and not turns and _is_captions(text, kinds[text])
    if captions and not images:
        raise PixWordError(f"{path}: the column {text!r} holds lists, and there are no images; write one text a record")
    inside = bool(images) and _holds(kinds[images[0]], _is_bytes)
    return Columns(images, inside, text, turns, captions, unread, _labels(file.schema_arrow, text))


def _images(kinds: Mapping[str, Any], path: Path | MemberFile) -> list[str]:
    """The column of images: the one with their bytes, or else that with their paths."""
    inside = [name for name, kind in kinds.items() if _holds(kind, _is_bytes)]
    named = [name for name in kinds if name.lower() in IMAGE_KEYS]
    if not set(inside) & set(named):  # bytes are preferred, under whichever name
        more = [name for name in kinds if name.lower() in MORE_IMAGE_KEYS]
        named = more if set(inside) & set(more) or not named else named
    for name in inside:
        if name not in named:
            raise PixWordError(f"{path}: the column {name!r} looks like an image; images are read from {IMAGE_KEYS}")
    if len(inside) > 1:
        raise PixWordError(f"{path} has images in the columns {' and '.join(inside)}; keep one of them")
    return (inside or named)[:1]


def _text(kinds: Mapping[str, Any], path: Path | MemberFile) -> tuple[str | None, bool]:
    """The column of text, and whether it holds conversations."""
    texts = [name for name in kinds if name.lower() in TEXT_KEYS]
    labels = sorted((name for name in kinds if name.lower() in LABEL_KEYS), key=lambda n: LABEL_KEYS.index(n.lower()))
    turns = [name for name in kinds if name in TURN_KEYS and "struct<" in str(kinds[name])]
    if not texts and turns:
        return turns[0], True
    plain = [name for name in texts or labels if _is_plain(kinds[name]) or _is_captions(name, kinds[name])]
    if (texts or labels) and not plain:
        name = (texts or labels)[0]
        raise PixWordError(f"{path}: the column {name!r} holds {kinds[name]}, and a text is needed; write one a record")
    if texts and len(plain) > 1:
        raise PixWordError(f"{path} has text in the columns {' and '.join(plain)}; keep one of them")
    return (plain[0] if plain else None), False


def _refuse_paths(file: Any, names: list[str], path: Path | MemberFile) -> None:
    """Refuse names of images under a key that nobody would read, where no images are read at all."""
    if not names:
        return
    try:
        batches: Iterable[Any] = file.iter_batches(batch_size=_LOOKED_AT, row_groups=[0], columns=names)
        rows = next(iter(batches)).to_pylist()
    except Exception as error:  # pyarrow raises many kinds, all of them for a damaged file
        raise PixWordError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    for name in names:
        if any(looks_like_image(row[name]) for row in rows):
            raise PixWordError(f"{path}: the column {name!r} looks like images; they are read from {IMAGE_KEYS}")


def _is_plain(kind: Any) -> bool:
    return _is_text(kind) or str(kind).startswith(_NUMBERS)


def _is_captions(name: str, kind: Any) -> bool:
    """Whether a column holds lists of captions: of texts, or of objects with one each."""

    def is_caption(kind: Any) -> bool:
        is_object = str(kind).startswith("struct")
        return _is_text(kind) or (is_object and any(kind.get_field_index(key) >= 0 for key in HOLDERS))

    return name.lower() in (*TEXT_KEYS, *LIST_KEYS) and not is_caption(kind) and _holds(kind, is_caption)


def _is_text(kind: Any) -> bool:
    """Text of any width, as it is or in a dictionary."""
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    return str(kind) in ("string", "large_string", "string_view")


def _is_bytes(kind: Any) -> bool:
    """Bytes, or Hugging Face's pair of bytes and a path."""
    is_pair = str(kind).startswith("struct") and kind.get_field_index("bytes") >= 0
    return is_pair or str(kind) in ("binary", "large_binary", "binary_view")


def _holds(kind: Any, what: Callable[[Any], bool]) -> bool:
    """Whether a column is of some kind, or holds lists of it."""
    is_list = str(kind).partition("<")[0] in ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return what(kind.value_type if is_list else kind)


def _labels(schema: Any, column: str | None) -> list[str]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
