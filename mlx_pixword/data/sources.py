"""Sources of documents on disk: what lies at a path is recognised by its name or content, and opened."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..common.errors import PixWordError
from ..common.files import expand, missing
from ..common.settings import named
from ..pixels.formats import HEIF_SUFFIXES, holds_heif, is_image_name
from .archives import is_archive, open_archive
from .base import Source
from .beside import records_of_archive, records_of_folder
from .captions import NOT_AN_IMAGE, pair, read_caption
from .chain import Chain
from .known import Names
from .listing import Listing, list_folder
from .names import normal
from .packed import archives_beside, records_of_archives
from .pictures import ArchivePicture, FilePicture
from .record_files import LLAVA_FILE, image_folder, open_records
from .record_files import SUFFIXES as RECORDS
from .references import check_images, image_opener
from .tables import is_labels
from .text_file import SUFFIX, TextFile
from .texts import Images, TextFiles, has_marks, text_opener

_USABLE = (
    "a folder of images or of .txt files, an image, .jsonl, .json, .csv, .tsv or .parquet of images with texts, or a "
    ".zip or .tar of images"
)
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
    if images is not None:
        check_images(images)  # a mistake, also where there is no reference
    if path.is_dir():
        return _open_folder(path, images, allow_outside, names)
    if not path.is_file():
        raise PixWordError(f"no file or folder {path}{missing(path)}; give {_USABLE}")
    if suffix in RECORDS or suffix == ".json":
        return open_records(path, image_opener(images or image_folder(path), allow_outside))
    if suffix == SUFFIX:
        return TextFile(path)
    if is_archive(path):
        return _open_archive(path, names)
    if suffix == ".txt":
        if is_labels(path):
            return open_records(path, image_opener(images or path.parent, allow_outside))
        return TextFiles(str(path), [path], text_opener(images, allow_outside), [])
    if is_image_name(path.name):
        return Images(str(path), pair([path.name], lambda _: b""), lambda _: FilePicture(path))
    if suffix in (".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"):
        raise PixWordError(f"{path} is compressed ({suffix}), and cannot be read in place; unpack it")
    raise PixWordError(f"{path} is of an unknown kind ({suffix or 'no suffix'}); give {_USABLE}")


def _open_archive(path: Path, names: Names, outside: Sequence[Path] = ()) -> Source:
    """An archive; ``outside`` are records that lie beside it and name its images."""
    archive = open_archive(path)
    members, unknown = names.of_run(path, archive.members)
    beside = records_of_archive(archive, members, outside)
    samples = pair(beside.left, archive.read, by_key=path.suffix.lower() == ".tar")
    foreign = [(f"{path}:{name}", reason) for name, reason in sorted(samples.unusable + beside.unusable)]
    samples.unusable = archive.unusable + foreign + unknown
    if not samples.images and not beside.sources:
        raise PixWordError(f"{path} holds no images{_examples(samples.unusable + archive.unreadable)}; give {_USABLE}")
    rest = Images(
        str(path), samples, partial(ArchivePicture, archive), archive.read, archive.size, archive.unreadable
    )  # fmt: skip
    return _with_records(beside.sources, rest)


def _open_folder(path: Path, images: Path | None, allow_outside: bool, names: Names) -> Source:
    if (path / LLAVA_FILE).is_file():
        return open_source(path / LLAVA_FILE, images, allow_outside, names)
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
    if not pictures and (shards := [f for f in listing.files if is_archive(Path(f)) or f.lower().endswith(RECORDS)]):
        return _open_shards(path, shards, images, allow_outside, listing, names)
    archives, others = archives_beside(path, listing.files)
    listing.unusable += [(str(path / name), reason) for name, reason in others]
    gone = {*archives, *(name for name, _ in others)}
    listing.files = [file for file in listing.files if file not in gone] if gone else listing.files
    source = _open_images(path, allow_outside, listing)
    return Chain(str(path), [source, *(_open_archive(path / name, names) for name in archives)]) if archives else source


def _are_documents(path: Path, texts: list[str], files: list[str], images: Path | None) -> bool:
    """Whether texts are documents that refer to images, and not captions beside them."""
    stems = {normal(file[: file.rfind(".")]) for file in files if is_image_name(file)}
    if images or not stems:
        return True
    beside = [text for text in texts if normal(text[: text.rfind(".")]) in stems][:_LOOKED_AT]
    alone = [text for text in texts if normal(text[: text.rfind(".")]) not in stems][:_LOOKED_AT]
    caption = next((text for text in beside if not has_marks(path / text)), None)
    document = next((text for text in (*beside, *alone) if has_marks(path / text)), None)
    if caption and document:
        raise PixWordError(
            f"{path} holds both captions beside images, such as {named(caption)}, and texts that refer to images, such "
            f"as {named(document)}; give each a folder of its own"
        )
    return document is not None


def _open_texts(path: Path, texts: list[str], images: Path | None, allow_outside: bool, listing: Listing) -> TextFiles:
    if labels := next((text for text in texts[:_LOOKED_AT] if is_labels(path / text)), None):
        raise PixWordError(f"{path / labels} is a table of images and texts; give that file itself, and --images")
    foreign = [file for file in listing.files if not is_image_name(file) and not file.lower().endswith(".txt")]
    unusable = listing.unusable + [(str(path / file), "neither text nor image") for file in foreign]
    opener = text_opener(images, allow_outside)
    return TextFiles(str(path), [path / text for text in texts], opener, unusable, listing.unreadable)


def _open_shards(
    path: Path, shards: list[str], images: Path | None, allow_outside: bool, listing: Listing, names: Names
) -> Chain:
    told, others = records_of_archives(path, shards) if images is None else ({}, [])
    apart = {name for name, _ in others} | {str(one.relative_to(path)) for several in told.values() for one in several}
    sources = [
        _open_archive(path / shard, names, told[shard])
        if shard in told
        else open_source(path / shard, images, allow_outside, names)
        for shard in shards
        if shard not in apart
    ]
    foreign = [(str(path / file), NOT_AN_IMAGE) for file in sorted(set(listing.files) - set(shards))]
    foreign += [(str(path / name), reason) for name, reason in others]
    return Chain(str(path), sources, listing.unusable + foreign, listing.unreadable)


def _open_images(path: Path, allow_outside: bool, listing: Listing) -> Source:
    """Images, with captions from records that lie in the folder, and beside the images that those do not name."""
    husks = _husks(path, listing.files)
    listing.unusable += [(str(path / name), "not a HEIC image, it describes no picture") for name in sorted(husks)]
    files = [name for name in listing.files if name not in husks] if husks else listing.files
    beside = records_of_folder(path, files, allow_outside)
    samples = pair(beside.left, lambda name: read_caption(path / name))
    foreign = sorted(samples.unusable + beside.unusable)
    samples.unusable = listing.unusable + [(str(path / name), reason) for name, reason in foreign]
    if not samples.images and not beside.sources:
        raise PixWordError(f"{path} holds no images{_examples(samples.unusable)}; give {_USABLE}")
    rest = Images(
        str(path), samples, lambda file: FilePicture(path / file), lambda name: read_caption(path / name),
        lambda name: (path / name).stat().st_size, listing.unreadable,
    )  # fmt: skip
    return _with_records(beside.sources, rest)


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


def _with_records(records: list[Source], rest: Images) -> Source:
    """Records, and after them the images that they do not name."""
    if not records:
        return rest
    if not len(rest):
        return Chain(rest.name, records, rest.unusable, rest.unreadable)
    return Chain(rest.name, [*records, rest])


def _examples(unusable: list[tuple[str, str]]) -> str:
    if not unusable:
        return ", it is empty"
    name, reason = unusable[0]
    return f" but {len(unusable)} other files, such as {named(name)} ({reason})"
