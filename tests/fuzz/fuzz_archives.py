"""Fuzzing archives: a zip or tar of images is opened as a source, and its members are read."""

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fuzzing import Target

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data.pictures import ArchivePicture
from mlx_pixword.data.sources import open_source

NAMES = ("a.zip", "a.tar", "a.tgz")
MOST = 20  # members that are read of an input
MEMBERS = {"a.png": b"not an image", "b/c ü.jpg": bytes(300), ".hidden.png": b"x", "words.txt": b"words", "d.png": b""}


def check(data: bytes) -> None:
    """The first byte says which kind of file the others are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[data[0] % len(NAMES) if data else 0]
        path.write_bytes(data[1:])
        source = open_source(path)
        source.digest()
        for index in range(min(len(source), MOST)):
            for picture in source.parts(index):
                if isinstance(picture, ArchivePicture):
                    _read(picture)


def _read(picture: ArchivePicture) -> None:
    try:
        picture.encoded()
    except BadImage as error:
        if len(str(error).splitlines()) != 1:
            raise


def seeds() -> list[bytes]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    zips = [b"\0" + _zip(method) for method in methods]
    return zips + [b"\1" + _tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _zip(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return file.getvalue()


def _tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in (MEMBERS | {"long/" * 40 + "e.png": b"long"}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


WORDS = (
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"ustar\x0000", b"\x80" + b"\xff" * 11, b"\xff" * 12,
    b"../", b"11 path=a\n", b"30 GNU.sparse.major=1\n", b"30 size=99999999999999999999\n", b"\x1f\x8b", b"\0" * 512,
    b"L", b"x",
)  # fmt: skip
TARGET = Target("archives", seeds, check, WORDS)
