"""From records, as JSON, tables and Parquet have them, to documents: which keys name images, which hold text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..common.errors import PixWordError
from ..common.settings import shown
from ..pixels.formats import is_image_name
from .names import MAX_REFERENCE
from .references import parse_references

IMAGE_KEYS = ("image", "images", "file_name", "filename", "image_path", "path", "file")
MORE_IMAGE_KEYS = (  # where there is none of the former
    "img", "img_path", "image_file", "image_name", "img_name", "filepath", "file_path", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
TEXT_KEYS = ("text", "caption")
LIST_KEYS = ("captions", "sentences")  # of captions of one image, where there is none of the former
HOLDERS = (*TEXT_KEYS, "raw")  # in objects that hold one caption each
LABEL_KEYS = (  # text where there is none of the former
    *LIST_KEYS, "words", "label", "transcription", "transcript", "txt", "sentence", "comment", "description", "latex",
    "formula",
)  # fmt: skip
TURN_KEYS = ("conversations", "messages", "texts")
MARK = "<image>"  # LLaVA's

Resolve = Callable[[str], Any]
T = TypeVar("T")


class DamagedRecords(PixWordError):
    """A malformed record that holds images with their captions: the file is no file of another kind."""


def caption_parts(record: Mapping[str, Any], resolve: Resolve) -> list[Any]:
    """``{"text": ...}`` with references, or images with their text, as a document.

    Args:
        record: keys of images are `IMAGE_KEYS`, one or a list of paths; of text `TEXT_KEYS`, else `LABEL_KEYS`.
        resolve: makes pictures of paths.

    Raises:
        PixWordError: none of these, text twice, or an unknown key that looks like an image.
    """
    images, text = image_names(record), _text(record, LABEL_KEYS)
    _check_unknown(record, images)
    if images and text is not None:
        return place_images(text, [resolve(image) for image in images])
    if not images and isinstance(record.get("text"), str) and text is not None:
        return parse_references(text, resolve)
    if len(given := [key for key in TEXT_KEYS if isinstance(record.get(key), str)]) > 1:
        raise DamagedRecords(f"expected one text, got the keys {' and '.join(given)}; keep one of them")
    told = any(record.get(key) is not None for key in TEXT_KEYS)
    raise (DamagedRecords if images and told else PixWordError)(
        'expected {"text": ...} or {"image": ..., "caption": ...} of strings (image, images or file_name; text, '
        f"caption or a list of captions), got {shape(record)}"
    )


def each_caption(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A record for each of its captions, where it has a list of them; else the record itself.

    Captions are texts, or objects that hold one each, as in Karpathy's splits of COCO and Flickr30k.
    """
    given = [key for key in (*TEXT_KEYS, *LIST_KEYS) if record.get(key) is not None]
    key = next((key for key in given if record[key] != []), given[0] if given else "")
    captions = captions_in(record.get(key))
    images = list(_given_images(record).values())
    if captions is None or not images or any(isinstance(image, list) and len(image) > 1 for image in images):
        return [record]
    rest = {name: value for name, value in record.items() if name not in (*TEXT_KEYS, *LIST_KEYS)}
    return [{**rest, "caption": caption} for caption in captions or [""]]


def captions_in(value: Any) -> list[str] | None:
    """The captions in a list of texts, or of objects that hold them, without empty ones; None for anything else."""
    if not isinstance(value, list):
        return None
    texts = list[str]()
    for item in value:
        text = next((item[key] for key in HOLDERS if key in item), item) if isinstance(item, dict) else item
        if isinstance(text, str):
            texts += [text.strip()] if text.strip() else []
        elif text is not None:
            return None
    return texts


def llava_parts(record: Mapping[str, Any], resolve: Resolve, captions: bool = False) -> list[Any]:
    """A conversation of LLaVA's as a document, each image where ``<image>`` stands, or first.

    Args:
        record: ``conversations`` of ``from`` and ``value`` (or ``messages`` of ``role`` and ``content``), and any
            number of images.
        resolve: makes pictures of paths.
        captions: of one image and one question, as in LLaVA-CC3M, keep the image and the answers alone: the question
            is always another wording of the same one.
    """
    images, (turns, answers) = image_names(record) or _images_of_turns(record), turns_of(record)
    _check_unknown(record, images)
    pictures = [resolve(image) for image in images]
    if captions and len(images) == 1 and len(turns) - len(answers) <= 1:
        return [pictures[0], " ".join(answers)]
    return place_images("\n".join(turns), pictures)


def array_parts(record: Mapping[str, Any], resolve: Resolve, captions: bool = False) -> list[Any]:
    """A record of JSON: a conversation, or images with their text."""
    if any(record.get(key) is not None for key in TURN_KEYS):
        return llava_parts(record, resolve, captions)
    return caption_parts(record, resolve)


def place_images(text: str, images: Sequence[T]) -> list[str | T]:
    """Images at the ``<image>`` marks of a text, or before a text without marks.

    Raises:
        PixWordError: as many marks as images, or none, are needed.
    """
    pieces = text.split(MARK)
    if len(pieces) == 1:
        return [*images, *([text] if text else [])]
    if len(pieces) - 1 != len(images):
        raise PixWordError(f"the text has {len(pieces) - 1} {MARK} marks for {len(images)} images")
    parts: list[str | T] = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [image, piece]
    return [part for part in parts if not isinstance(part, str) or part.strip()]


def image_names(record: Mapping[str, Any]) -> list[str]:
    """The paths of a record's images; none where the keys are absent or empty."""
    given = _given_images(record)
    lists = [_paths(value, record) for value in given.values()]
    if any(one != lists[0] for one in lists[1:]):
        raise PixWordError(f"the keys {' and '.join(given)} name different images; keep one of them")
    return lists[0] if lists else []


def _given_images(record: Mapping[str, Any]) -> dict[str, Any]:
    for keys in (IMAGE_KEYS, MORE_IMAGE_KEYS):
        if given := {key: record[key] for key in keys if record.get(key) not in (None, "", [])}:
            return given
    return {}


def _paths(value: Any, record: Mapping[str, Any]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    paths = [item.get("path") if isinstance(item, dict) else item for item in values]  # as Hugging Face writes them
    named = [path for path in paths if isinstance(path, str) and path]
    if len(named) < len(paths):
        raise PixWordError(f"expected paths of images, got {shape(record)}")
    return named


def _text(record: Mapping[str, Any], labels: Sequence[str]) -> str | None:
    """The text of a record, nothing where it is null; None if no key is there, or more than one text."""
    found = [_plain(record[key]) for key in TEXT_KEYS if record.get(key) is not None]
    found = found or [_plain(record[key]) for key in labels if record.get(key) is not None][:1]
    if not found and any(key in record for key in (*TEXT_KEYS, *labels)):
        return ""
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None


def _plain(label: Any) -> Any:
    return str(label) if type(label) is int else label


def turns_of(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Texts of a conversation's turns, and those of its answers alone; raises `PixWordError` where there are none."""
    turns = [(role, _content(said)) for role, said in _turns(record)]
    texts = [text for _, text in turns if text is not None]
    answers = [text for role, text in turns if role in ("gpt", "assistant", "model") and text is not None]
    if not answers or len(texts) < len(turns):
        raise PixWordError(f'expected "image" and "conversations" with a "gpt" value, got {shape(record)}')
    return texts, answers


def _turns(record: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Who speaks and what: of ``from`` and ``value``, ``role`` and ``content``, or pairs of ``user``, ``assistant``."""
    given = next((record[key] for key in TURN_KEYS if record.get(key) is not None), None)
    turns = list[tuple[Any, Any]]()
    for turn in given if isinstance(given, list) else []:
        if isinstance(turn, dict) and "assistant" in turn:
            turns += [(role, turn[role]) for role in ("system", "user", "assistant") if turn.get(role) is not None]
        elif isinstance(turn, dict):
            turns.append((turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))))
    return turns


def _content(said: Any) -> str | None:
    """The text of a turn; of a list of texts and images, each image as its mark; None where there is none."""
    if not isinstance(said, list):
        return said if isinstance(said, str) else None
    if not all(isinstance(item, (dict, str)) for item in said):
        return None
    pieces = [MARK if _is_image(item) else item if isinstance(item, str) else item.get("text") for item in said]
    return "".join(pieces) if all(isinstance(piece, str) for piece in pieces) else None


def _is_image(item: Any) -> bool:
    return isinstance(item, dict) and str(item.get("type")).startswith("image")


def _images_of_turns(record: Mapping[str, Any]) -> list[str]:
    """The paths of images inside the turns, as in ``{"type": "image", "image": "a.png"}``."""
    items = [item for _, said in _turns(record) if isinstance(said, list) for item in said if _is_image(item)]
    paths = [next((item[key] for key in (*IMAGE_KEYS, "image_url", "url") if item.get(key)), None) for item in items]
    paths = [path.get("url") if isinstance(path, dict) else path for path in paths]
    return [path for path in paths if isinstance(path, str)]


def _check_unknown(record: Mapping[str, Any], images: Sequence[str]) -> None:
    """Refuse an image under a key that nobody would read; a link to where a known image came from is no image."""
    known = {*IMAGE_KEYS, *TEXT_KEYS, *LABEL_KEYS, *TURN_KEYS, "id"}
    for key, value in record.items():
        if key not in known and value not in images and looks_like_image(value):
            is_link = isinstance(value, str) and "://" in value
            if images and is_link:
                continue
            told = any(isinstance(record.get(name), str) for name in (*TEXT_KEYS, *LABEL_KEYS))
            raise (DamagedRecords if told and not is_link else PixWordError)(
                f"the key {shown(key)} looks like an image, {shown(value)}; "
                f"images are read from {', '.join(IMAGE_KEYS)}"
            )


def looks_like_image(value: Any) -> bool:
    """Whether a value is the name of an image, a picture of Hugging Face's data sets, or a list of these."""
    if isinstance(value, list):
        return bool(value) and looks_like_image(value[0])
    if isinstance(value, dict):
        return "bytes" in value and "path" in value
    return isinstance(value, str) and len(value) <= MAX_REFERENCE and "\n" not in value and is_image_name(value)


def shape(record: Mapping[str, Any]) -> str:
    """A record's keys and types of value, shortened."""
    return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in record.items())[:100] + "}"
