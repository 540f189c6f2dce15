"""Records that lie beside the images that they name: Hugging Face's ``metadata`` files, labels, captions."""

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..common.errors import PixWordError
from ..common.settings import shown
from ..pixels.formats import is_image_name
from .archives import Archive
from .base import Source
from .listing import UNREAD
from .member_file import MemberFile
from .names import checked, find_file, normal, on_disk
from .parquet import ParquetFile
from .record_files import SUFFIXES, Records, open_records
from .record_parts import DamagedRecords
from .references import image_opener, member_opener

NAMES_IMAGES = "names images, and is not read"
NAMES_NONE = "names images that do not lie here"
_METADATA = "metadata"  # Hugging Face's name for records of the images they lie beside
_COCO = re.compile(r"(.*/)?annotations/captions_[^/]+\.json")  # of images in a folder of the split's name
_MOST = 100  # files that are looked into
_START = 2**16  # bytes of a file that tell whether it names an image


@dataclass
class Beside:
    """What was found beside images.

    Attributes:
        left: the files that are neither records nor named by any.
        sources: the records.
        unusable: ``(name, reason)`` of files that are records of another kind, or malformed from their beginning.
    """

    left: list[str]
    sources: list[Source] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)


def records_of_folder(root: Path, files: list[str], allow_outside: bool) -> Beside:
    """Records in a folder that name images of it.

    Args:
        root: the folder.
        files: what lies in it.
        allow_outside: lets references leave the folder of their records.

    Raises:
        PixWordError: malformed records that name images, or a malformed ``metadata`` file.
    """
    spelled = dict[str, str]()  # files by their names in one spelling, made when it is first needed

    def folder_of(name: str) -> Path:
        return next(folder for folder in map(Path, _folders(name)) if (root / folder).is_dir())

    def open_file(name: str) -> Records:
        return open_records(root / name, image_opener(root / folder_of(name), allow_outside))

    def named(name: str, references: Iterable[str]) -> Iterator[str]:
        folder = folder_of(name)
        spelled.update(spelled or {normal(file): file for file in files})
        for reference in references:
            try:
                found = spelled.get(normal((folder / on_disk(checked(reference))).as_posix()))
                place = None if found else find_file(reference, root / folder, allow_outside)
            except PixWordError:
                continue  # it is reported when its turn comes
            place = None if place is None else Path(os.path.normpath(place))
            if place is not None and place.is_relative_to(root):
                found = spelled.get(normal(place.relative_to(root).as_posix()))
            if found is not None:
                yield found

    def start(name: str) -> bytes:
        with (root / name).open("rb") as file:
            return file.read(_START)

    return _collect(files, open_file, named, start)


def records_of_archive(archive: Archive, members: list[str], outside: Sequence[Path] = ()) -> Beside:
    """The same of an archive; ``outside`` are further records of it, which lie on the disk."""

    def open_member(name: str) -> Records:
        return open_records(MemberFile(archive, name), member_opener(archive, _folders(name)[0]))

    def named(name: str, references: Iterable[str]) -> Iterator[str]:
        opener = member_opener(archive, _folders(name)[0])
        for reference in references:
            try:
                yield opener(reference).member
            except PixWordError:
                continue  # it is reported when its turn comes

    found = _collect(members, open_member, named, lambda name: archive.read(name)[:_START])
    for path in outside:
        source = open_records(path, member_opener(archive, ""))
        images = set(named("", source.references()))
        found.sources.append(source)
        found.left = [member for member in found.left if member not in images]
    return found


def _collect(
    files: list[str],
    open_file: Callable[[str], Records],
    named: Callable[[str, Iterable[str]], Iterable[str]],
    start: Callable[[str], bytes],
) -> Beside:
    found, used, names = Beside(files), set[str](), _candidates(files)
    there = set(files if names else ())
    pictures = [file for file in files if is_image_name(file)] if names else []
    for name in names:
        is_metadata = PurePosixPath(name).stem.lower() == _METADATA
        try:
            source = open_file(name)
        except DamagedRecords:
            raise
        except PixWordError as error:
            if is_metadata:
                raise
            if name.lower().endswith(".txt"):
                continue  # it is no table
            kind = NAMES_IMAGES if _names_any(pictures, name, start) else "no records of images"
            kind = UNREAD if name.lower().endswith(".parquet") else kind  # it may hold images
            found.unusable.append((name, f"{kind}: {str(error).rpartition(name)[2].lstrip(', :')}"))
            continue
        images = there.intersection(named(name, source.references()))
        holds_images = isinstance(source, ParquetFile) and source.holds_images
        if images or holds_images or not pictures or (isinstance(source, ParquetFile) and is_metadata):
            found.sources.append(source)
            used |= images | {name}
        elif source.captioned:
            first = next(iter(source.references()), "")
            found.unusable.append((name, f"{NAMES_NONE}, such as {shown(first)}"))
    used |= {name for name, _ in found.unusable}
    found.left = [file for file in files if file not in used] if used else files
    return found


def _names_any(pictures: list[str], name: str, start: Callable[[str], bytes]) -> bool:
    """Whether the beginning of a file has the name of an image that is there."""
    try:
        beginning = start(name)
    except (OSError, PixWordError):
        return False
    return any(os.fsencode(posixpath.basename(picture)) in beginning for picture in pictures)


def _folders(name: str) -> list[str]:
    """Where the images of records may lie, the likeliest first."""
    here, split = posixpath.dirname(name), PurePosixPath(name).stem.removeprefix("captions_")
    return [*([posixpath.join(posixpath.dirname(here), split)] if _COCO.fullmatch(name) else []), here]


def _candidates(files: Sequence[str]) -> list[str]:
    """Files that may hold captions of images: records anywhere, COCO's, and what no image has its name from.

    These are ``.json`` at the top, and labels in ``.txt`` anywhere.
    """
    names = [file for file in files if file.lower().endswith(SUFFIXES)]
    objects = [file for file in files if file.lower().endswith(".json") and "/" not in file][: _MOST + 1]
    texts = [file for file in files if file.lower().endswith(".txt")]
    stems = {file[: file.rfind(".")] for file in files if is_image_name(file)} if objects or texts else set()
    names += filter(_COCO.fullmatch, files)
    for kind in (objects, [text for text in texts if text[: text.rfind(".")] not in stems][: _MOST + 1]):
        names += [file for file in kind if file[: file.rfind(".")] not in stems and len(kind) <= _MOST]
    metadata = [name for name in names if PurePosixPath(name).stem.lower() == _METADATA]
    return names if len(names) <= _MOST else metadata  # of more, each would belong to one image
