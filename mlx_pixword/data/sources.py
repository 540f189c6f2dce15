"""Sources of documents on disk: what lies at a path is recognised by its name or content, and opened."""

from functools import partial
from pathlib import Path

from ..common.errors import PixWordError
from ..common.files import expand
from ..common.settings import named
from ..pixels.formats import HEIF_SUFFIXES, holds_heif, is_image_name
from .archives import is_archive, open_archive
from .base import MAX_TEXT_BYTES, Source
from .captions import NOT_AN_IMAGE, pair, read_caption
from .chain import Chain
from .coco import MAX_BYTES, CaptionObject
from .known import Names
from .listing import Listing, list_folder
from .names import find_file, normal
from .parquet import ParquetFile
from .pictures import ArchivePicture, FilePicture
from .record_parts import array_parts, caption_parts
from .records import RecordFile, parse_json, scan_array, scan_lines
from .references import image_opener
from .tables import Table
from .text_file import SUFFIX, TextFile
from .texts import Images, TextFiles, has_marks, text_opener

_USABLE = (
    "a folder of images or of .txt files, an image, .jsonl, .json, .csv, .tsv or .parquet of images with texts, or a "
    ".zip or .tar of images"
)
_LLAVA_FILE = "chat.json"
_RECORDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_METADATA = "metadata"  # Hugging Face's name for records of the images they lie beside
_MOST_RECORDS = 100  # files that are looked into for captions of a folder's images
_LOOKED_AT = 1000  # texts that are searched for references


def open_source(
    path: Path, images: Path | None = None, allow_outside: bool = False, names: Names | None = None
) -> Source:
    """Recognise what lies at a path, and open it.

    Args:
        path: a folder of images, with captions beside them or in ``metadata.jsonl``, ``.csv`` or ``.parquet``; a folder
            of UPW text files (``.txt``), or of archives or records; ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` of
            images and texts; ``.json`` of LLaVA's or COCO's; a ``.zip`` or ``.tar`` of images; a text, or an image;
            ``.pwtext``.
        images: the folder or archive that image references are relative to; by default where the texts lie.
        allow_outside: lets references and links leave that folder.
        names: notes what folders and archives hold, and may leave out what a run does not know.

    Raises:
        PixWordError: nothing there, nothing usable in it, or a malformed file.
    """
    path, images = expand(path), None if images is None else expand(images)
    suffix, names = path.suffix.lower(), names or Names(path)
    if path.is_dir():
        return _open_folder(path, images, allow_outside, names)
    if not path.is_file():
        raise PixWordError(f"no file or folder {path}; give {_USABLE}")
    if suffix in _RECORDS:
        return _open_records(path, images, allow_outside)
    if suffix == ".json":
        return _open_json(path, images, allow_outside)
    if suffix == SUFFIX:
        return TextFile(path)
    if is_archive(path):
        return _open_archive(path, names)
    if suffix == ".txt":
        return TextFiles(str(path), [path], text_opener(images, allow_outside), [])
    if is_image_name(path.name):
        return Images(str(path), pair([path.name], lambda _: b""), lambda _: FilePicture(path))
    raise PixWordError(f"{path} is of an unknown kind ({suffix or 'no suffix'}); give {_USABLE}")


def _open_records(path: Path, images: Path | None, allow_outside: bool) -> RecordFile | ParquetFile:
    resolve, suffix = image_opener(images or path.parent, allow_outside), path.suffix.lower()
    if suffix == ".parquet":
        return ParquetFile(path, resolve)
    if suffix in (".csv", ".tsv"):
        table = Table(path)
        return RecordFile(path, resolve, table.scan, caption_parts, table.parse)
    return RecordFile(path, resolve, scan_lines, array_parts)


def _open_json(path: Path, images: Path | None, allow_outside: bool) -> Source:
    """An array of records, an object of captions, or lines of records that have this suffix by mistake."""
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_TEXT_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
            lines = _is_record(first)
            content = first + file.read(MAX_BYTES) if first.startswith(b"{") and not lines else b""
    except OSError as error:
        raise PixWordError(f"{path} cannot be read: {error.strerror or error}") from None
    resolve = image_opener(images or _image_folder(path), allow_outside)
    if lines:
        return RecordFile(path, resolve, scan_lines, array_parts)
    if not content:
        to_parts = partial(array_parts, captions=path.name == _LLAVA_FILE)
        return RecordFile(path, resolve, scan_array, to_parts)
    if len(content) > MAX_BYTES:
        raise PixWordError(f"{path} has more than {MAX_BYTES:,} bytes; make it .jsonl, a record a line")
    return CaptionObject(path, content, resolve)


def _is_record(line: bytes) -> bool:
    """Whether the first line of a file is a whole record, with a key of its own for text or images."""
    try:
        return bool({"text", "caption", "conversations", "messages"} & parse_json(line).keys())
    except PixWordError:
        return False


def _image_folder(path: Path) -> Path:
    """Where the images of a ``.json`` lie: images.zip, images/, the folder of COCO's split, or beside it."""
    folder, split = path.parent, path.stem.removeprefix("captions_")
    places = (folder / "images.zip", folder / "images", *([folder.parent / split] if split != path.stem else []))
    return next((place for place in places if place.exists()), folder)


def _open_archive(path: Path, names: Names) -> Images:
    archive = open_archive(path)
    members, unknown = names.of_run(path, archive.members)
    samples = pair(members, archive.read, by_key=path.suffix.lower() == ".tar")
    foreign = [(f"{path}:{name}", reason) for name, reason in samples.unusable]
    samples.unusable = archive.unusable + foreign + unknown
    if not samples.images:
        raise PixWordError(f"{path} holds no images{_examples(samples.unusable + archive.unreadable)}; give {_USABLE}")
    return Images(
        str(path), samples, partial(ArchivePicture, archive), archive.read, archive.size, archive.unreadable
    )  # fmt: skip


def _open_folder(path: Path, images: Path | None, allow_outside: bool, names: Names) -> Source:
    if (path / _LLAVA_FILE).is_file():
        return open_source(path / _LLAVA_FILE, images, allow_outside, names)
    listing = list_folder(path, allow_outside)
    listing.files, unknown = names.of_run(path, listing.files)
    listing.unusable += unknown
    texts = [file for file in listing.files if file.lower().endswith(".txt")]
    if texts:
        pipes = {text for text in texts if not (path / text).is_file()}  # a pipe never ends
        listing.unusable += [(str(path / text), "not a regular file") for text in sorted(pipes)]
        listing.files = [file for file in listing.files if file not in pipes] if pipes else listing.files
        texts = [text for text in texts if text not in pipes]
    if texts and _are_documents(path, texts, listing.files, images):
        return _open_texts(path, texts, images, allow_outside, listing)
    pictures = any(map(is_image_name, listing.files))
    if not pictures and (shards := [f for f in listing.files if is_archive(Path(f)) or f.lower().endswith(_RECORDS)]):
        return _open_shards(path, shards, images, allow_outside, listing, names)
    return _open_images(path, allow_outside, listing, names)


def _are_documents(path: Path, texts: list[str], files: list[str], images: Path | None) -> bool:
    """Whether texts are documents that refer to images, and not captions beside them."""
    stems = {normal(file[: file.rfind(".")]) for file in files if is_image_name(file)}
    if images or not stems:
        return True
    alone = [text for text in texts if normal(text[: text.rfind(".")]) not in stems]
    beside = [text for text in texts if normal(text[: text.rfind(".")]) in stems]
    return any(has_marks(path / text) for text in (*alone[:_LOOKED_AT], *beside[:_LOOKED_AT]))


def _open_texts(path: Path, texts: list[str], images: Path | None, allow_outside: bool, listing: Listing) -> TextFiles:
    foreign = [file for file in listing.files if not is_image_name(file) and not file.lower().endswith(".txt")]
    unusable = listing.unusable + [(str(path / file), "neither text nor image") for file in foreign]
    opener = text_opener(images, allow_outside)
    return TextFiles(str(path), [path / text for text in texts], opener, unusable, listing.unreadable)


def _open_shards(
    path: Path, shards: list[str], images: Path | None, allow_outside: bool, listing: Listing, names: Names
) -> Chain:
    sources = [open_source(path / shard, images, allow_outside, names) for shard in shards]
    foreign = [(str(path / file), NOT_AN_IMAGE) for file in sorted(set(listing.files) - set(shards))]
    return Chain(str(path), sources, listing.unusable + foreign, listing.unreadable)


def _open_images(path: Path, allow_outside: bool, listing: Listing, names: Names) -> Source:
    """Images, with captions from records that lie in the folder, and beside the images that those do not name."""
    husks = _husks(path, listing.files)
    listing.unusable += [(str(path / name), "not a HEIC image, it describes no picture") for name in sorted(husks)]
    files = [name for name in listing.files if name not in husks] if husks else listing.files
    records, left = _open_beside(path, files, allow_outside, names)
    samples = pair(left, lambda name: read_caption(path / name))
    samples.unusable = listing.unusable + [(str(path / name), reason) for name, reason in samples.unusable]
    if not samples.images and not records:
        raise PixWordError(f"{path} holds no images{_examples(samples.unusable)}; give {_USABLE}")
    rest = Images(
        str(path), samples, lambda file: FilePicture(path / file), lambda name: read_caption(path / name),
        lambda name: (path / name).stat().st_size, listing.unreadable,
    )  # fmt: skip
    if not records:
        return rest
    if not samples.images:
        return Chain(str(path), records, samples.unusable, listing.unreadable)
    return Chain(str(path), [*records, rest])


def _husks(path: Path, files: list[str]) -> set[str]:
    """HEIC files without a picture, among the first ones: what a phone leaves that keeps its photos in the cloud."""
    husks = set[str]()
    for name in [file for file in files if file.lower().endswith(HEIF_SUFFIXES)][:_LOOKED_AT]:
        try:
            if (path / name).is_file():  # a pipe never ends
                with (path / name).open("rb") as file:
                    husks |= set() if holds_heif(file.read(4096)) else {name}
        except OSError:
            continue  # it is reported when its turn comes
    return husks


def _open_beside(path: Path, files: list[str], allow_outside: bool, names: Names) -> tuple[list[Source], list[str]]:
    """Records that name images of the folder, and all files that they leave over."""
    records = _records_beside(files)
    if not records:
        return [], files
    spelled = {normal(file): file for file in files}
    sources, used = list[Source](), set[str]()
    for name in records:
        try:
            source = open_source(path / name, (path / name).parent, allow_outside, names)
        except PixWordError:
            if Path(name).stem.lower() == _METADATA:
                raise
            continue  # a table of another kind, which is named with the files that are left out
        there = _named_images(source, path, Path(name).parent, spelled, allow_outside)
        if there or (isinstance(source, ParquetFile) and Path(name).stem.lower() == _METADATA):
            sources.append(source)
            used |= there | {name}
    return sources, [file for file in files if file not in used]


def _records_beside(files: list[str]) -> list[str]:
    """Files that may hold captions of images: records anywhere, and at the top ``.json`` that belongs to no image."""
    names = [file for file in files if file.lower().endswith(_RECORDS)]
    objects = [file for file in files if file.lower().endswith(".json") and "/" not in file][: _MOST_RECORDS + 1]
    stems = {file[: file.rfind(".")] for file in files if is_image_name(file)} if objects else set()
    names += [file for file in objects if file[: file.rfind(".")] not in stems and len(objects) <= _MOST_RECORDS]
    metadata = [name for name in names if Path(name).stem.lower() == _METADATA]
    return names if len(names) <= _MOST_RECORDS else metadata  # of more, each would belong to one image


def _named_images(source: Source, root: Path, folder: Path, spelled: dict[str, str], allow_outside: bool) -> set[str]:
    """Files of the folder that records name."""
    found = set[str]()
    for reference in source.references() if isinstance(source, RecordFile | ParquetFile | CaptionObject) else ():
        name = spelled.get(normal((folder / reference).as_posix()))
        if name is None:
            try:
                place = find_file(reference, root / folder, allow_outside)
            except PixWordError:
                continue  # it is reported when its turn comes
            name = spelled.get(normal(place.relative_to(root).as_posix())) if place.is_relative_to(root) else None
        if name is not None:
            found.add(name)
    return found


def _examples(unusable: list[tuple[str, str]]) -> str:
    if not unusable:
        return ", it is empty"
    name, reason = unusable[0]
    return f" but {len(unusable)} other files, such as {named(name)} ({reason})"
