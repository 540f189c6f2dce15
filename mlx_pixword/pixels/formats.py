"""Image files opened with Pillow: formats, sizes, HEIC through pillow-heif, a JPEG that lacks its last bytes."""

from contextlib import suppress
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin

from ..common.errors import BadImage

MAX_PIXELS = 2**30 // 12  # 89,478,485, where Pillow begins to warn of decompression bombs
MAX_JPEG_PIXELS = 2**28  # of a JPEG, whose decoder can leave out every second pixel as it goes
MAX_JPEG_BYTES = 2**29  # of a file that is cut short, which has to be held as a whole
MAX_MISSING = 0.25  # fraction of a JPEG's rows that may be missing
CUT_SHORT = "cut short, its last bytes are missing; shown as far as it goes"

# Only formats that Pillow decodes in this process; EPS, for one, starts Ghostscript. JPEG includes MPO.
# TGA has no signature and accepts almost anything, so it comes last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "ICO", "TGA")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs", ".qoi", ".ico", ".tga",
    ".heic", ".heif", ".hif",
})
# fmt: on

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


HEIF_SUFFIXES = (".heic", ".heif", ".hif")


def is_image_name(name: str) -> bool:
    """True if a file's name is that of an image."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def is_heif(start: bytes) -> bool:
    """True for the first bytes of a HEIC or HEIF file; AVIF, which begins alike, is Pillow's own."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and b"avif" not in start[16:32]


def holds_heif(start: bytes) -> bool:
    """Whether the first bytes of a file named as HEIC describe a picture at all: some apps leave mere husks."""
    place = 0
    for _ in range(8):  # boxes of a file: bytes, kind, content
        size, kind = int.from_bytes(start[place : place + 4], "big"), start[place + 4 : place + 8]
        if kind == b"meta":
            return True
        if size < 8 or not kind.strip(b"\0"):
            return False
        place += size
    return False


def open_image(file: BinaryIO, whole: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image without decoding it; a JPEG above `MAX_PIXELS` will be decoded at half its size.

    Args:
        file: seekable, read from its beginning.
        whole: decode every pixel of a large JPEG too.

    Returns:
        The image, and width and height as the file has them.

    Raises:
        BadImage: too many pixels, or HEIC without pillow-heif. What Pillow raises passes through.
    """
    file.seek(0)
    start = file.read(32)
    file.seek(0)
    if start.startswith(b"\xff\xd8\xff"):  # not by `Image.open`, which refuses before anything can be left out
        image: Image.Image = JpegImagePlugin.jpeg_factory(file)
        size = _checked_size(image, MAX_JPEG_PIXELS)
        if image.width * image.height > MAX_PIXELS and not whole:
            image.draft(None, (image.width // 2, image.height // 2))
        return image, size
    if is_heif(start):
        _learn_heif()
        image = Image.open(file, formats=("HEIF",))
    else:
        image = Image.open(file, formats=FORMATS)
    return image, _checked_size(image, MAX_PIXELS)


def load(image: Image.Image, file: BinaryIO, whole: bool = False) -> tuple[Image.Image, str]:
    """Decode an open image.

    Returns:
        The image, and `CUT_SHORT` for a JPEG whose last bytes are missing, or nothing.

    Raises:
        BadImage: more than `MAX_MISSING` of a JPEG's rows are missing. What Pillow raises passes through.
    """
    try:
        image.load()
        return image, ""
    except OSError as error:
        if not isinstance(image, JpegImagePlugin.JpegImageFile) or "truncated" not in str(error):
            raise
        file.seek(0)
        content = file.read(MAX_JPEG_BYTES + 1)
        if len(content) > MAX_JPEG_BYTES:
            raise
    mended, _ = open_image(BytesIO(content + b"\xff\xd9"), whole)  # with an end, what is missing becomes grey
    mended.load()
    if (missing := _grey_rows(mended)) > MAX_MISSING * mended.height:
        raise BadImage(f"damaged image: cut short, {missing / mended.height:.0%} of its rows are missing")
    return mended, CUT_SHORT


def _grey_rows(image: Image.Image) -> int:
    """Rows at the bottom that are nothing but the grey of missing data."""
    if image.mode not in ("RGB", "L"):
        return 0
    values = np.asarray(image).reshape(image.height, -1)  # [h, 3 w] or [h, w]
    filled = np.flatnonzero((values != 128).any(axis=1))
    return image.height - 1 - int(filled[-1]) if len(filled) else image.height


def _checked_size(image: Image.Image, limit: int) -> tuple[int, int]:
    if image.width * image.height > limit:
        raise BadImage(f"{image.width}x{image.height} is too large, the limit is {limit:,} pixels; scale it down")
    return image.size


def _learn_heif() -> None:
    """Let Pillow read HEIC; the library is loaded with the first such file."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
        return
    raise BadImage("a HEIC image, which needs pillow-heif: python -m pip install pillow-heif, or convert it to JPEG")
