"""Archives that lie in a folder beside images or beside records: which belong to what."""

import posixpath
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..common.errors import PixWordError
from ..pixels.formats import is_image_name
from .archives import Archive, is_archive, open_archive
from .captions import NOT_AN_IMAGE
from .listing import UNPACKED, UNREAD
from .names import find_file
from .record_files import open_records
from .references import image_opener, member_opener

_LOOKED_AT = 16  # images that records name, to tell where these lie


def archives_beside(root: Path, files: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Archives of further images in a folder of images.

    Returns:
        Archives to read; and names of the others with the reason: most of their images lie in the folder already, they
        have none, or cannot be read.
    """
    archives = [file for file in files if is_archive(Path(file)) and (root / file).is_file()]  # a pipe never ends
    unpacked = {posixpath.basename(file) for file in files if is_image_name(file)} if archives else set()
    further, others = list[str](), list[tuple[str, str]]()
    for name in archives:
        try:
            members = open_archive(root / name).members
        except PixWordError as error:
            problem = str(error).partition(f"{name} ")[2]
            others.append((name, f"{UNREAD}: it {problem}"))
            continue
        pictures = [posixpath.basename(member) for member in members if is_image_name(member)]
        if 2 * len(unpacked.intersection(pictures)) > len(pictures):
            others.append((name, UNPACKED))
        elif pictures or any(member.endswith(".parquet") for member in members):
            further.append(name)
        else:
            others.append((name, NOT_AN_IMAGE))
    return further, others


def records_of_archives(root: Path, shards: Sequence[str]) -> tuple[dict[str, list[Path]], list[tuple[str, str]]]:
    """Records that lie beside the archive of the images that they name.

    Returns:
        Records by their archive; and those that only tell of an archive of their name, with the reason.
    """
    archives = [shard for shard in shards if is_archive(Path(shard))]
    found, others = dict[str, list[Path]](), list[tuple[str, str]]()
    for name in [shard for shard in shards if archives and shard not in archives]:
        own = [archive for archive in archives if archive[: archive.rfind(".")] == name[: name.rfind(".")]]
        try:
            archive = _archive_of(root, name, [*own, *(one for one in archives if one not in own)])
        except PixWordError as error:
            if not own:
                raise
            others.append((name, f"tells of {own[0]}: {error}"))
            continue
        if archive is not None:
            found.setdefault(archive, []).append(root / name)
    return found, others


def _archive_of(root: Path, name: str, archives: Sequence[str]) -> str | None:
    """The archive that has an image which records name; None if they name none, or one that lies on the disk."""
    folder = root / posixpath.dirname(name)
    references = list(islice(open_records(root / name, image_opener(folder, False)).references(), _LOOKED_AT))
    if any(_lies_in(folder, reference) for reference in references):
        return None
    for archive in archives if references else ():
        packed = open_archive(root / archive)
        if any(_is_member(packed, reference) for reference in references):
            return archive
    return None


def _lies_in(folder: Path, reference: str) -> bool:
    try:
        return find_file(reference, folder, allow_outside=False).is_file()
    except (PixWordError, OSError):
        return False


def _is_member(archive: Archive, reference: str) -> bool:
    try:
        return member_opener(archive, "")(reference).member in archive
    except PixWordError:
        return False
