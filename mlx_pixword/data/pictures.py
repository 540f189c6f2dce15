"""Images that wait to be decoded: files, and members of archives."""

from io import BytesIO
from pathlib import Path

import numpy as np

from ..common.errors import BadImage
from ..common.files import open_regular
from ..pixels.images import Decoded, decode
from .archives import Archive
from .names import cache_key


class FilePicture:
    """An image file. ``cache_key`` covers absolute path, size and modification time as they were when it was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.cache_key = cache_key(path)

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``; a missing file is a ``BadImage`` too."""
        return decode_encoded(self.path, image_size).rgb

    def encoded(self) -> Path:
        """See ``EncodedPicture.encoded``."""
        return self.path


class ArchivePicture:
    """A member of an archive, read without unpacking. ``cache_key`` covers the archive's file and the member."""

    def __init__(self, archive: Archive, member: str) -> None:
        self.archive = archive
        self.member = member
        self.name = f"{archive.path}:{member}"
        self.cache_key = cache_key(archive.path, member)

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``; a missing, encrypted or damaged member is a ``BadImage`` too."""
        return decode_encoded(self.encoded(), image_size).rgb

    def encoded(self) -> bytes:
        """See ``EncodedPicture.encoded``; a missing, encrypted or damaged member is a ``BadImage``."""
        return self.archive.read(self.member)


def decode_encoded(content: Path | bytes, image_size: int) -> Decoded:
    """Decode a file, or a file's bytes, in this process; raises ``BadImage``."""
    try:
        with open_regular(content) if isinstance(content, Path) else BytesIO(content) as file:
            return decode(file, image_size)
    except FileNotFoundError:
        raise BadImage("file not found") from None
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from None
