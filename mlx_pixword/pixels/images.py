"""Decode an image file as a person sees it: upright, over white, eight bits a channel, small enough for the model."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..common.errors import BadImage, PixWordError
from .windows import fit_size

Box = tuple[int, int, int, int]  # x and y of the upper left corner, width, height

MAX_PIXELS = 2**30 // 12  # 89,478,485, where Pillow begins to warn of decompression bombs

# Only formats that Pillow decodes in this process; EPS, for one, starts Ghostscript. JPEG includes MPO.
# TGA has no signature and accepts almost anything, so it comes last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "ICO", "TGA")

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs", ".qoi", ".ico", ".tga",
})
# fmt: on

# What Pillow raises on broken files, besides warnings that a program has turned into errors.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of odd metadata in files it decodes well. Set once at import: filters toggled in threads race.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(file: BinaryIO, image_size: int) -> np.ndarray:
    """Decode the first frame of an image file.

    EXIF orientation is applied, transparency is laid over white, and depths above 8 bits are scaled down.

    Args:
        file: seekable binary file; it is left open.
        image_size: ``S``, pixels; a longer image is scaled down bilinearly (``fit_size``), none is enlarged.

    Returns:
        uint8 ``[h, w, 3]``, RGB, possibly read-only.

    Raises:
        BadImage: no image of a format in ``FORMATS``, damaged, or more than ``MAX_PIXELS`` pixels.
    """
    return _fit(_read(file), image_size)


def decode_file(path: Path, flag: str, image_size: int) -> np.ndarray:
    """`decode_image` on a file that a flag names; raises ``PixWordError`` with the flag and the name."""
    try:
        with path.open("rb") as file:
            return decode_image(file, image_size)
    except BadImage as error:
        raise PixWordError(f"{flag} {path}: {error}") from error
    except OSError as error:
        raise PixWordError(f"{flag} {path}: {error.strerror}") from error


def fit_rgb(image: Image.Image, image_size: int) -> np.ndarray:
    """The same for an image that is open already: uint8 ``[h, w, 3]``, longer side at most ``image_size``."""
    return _fit(_upright_flat(image), image_size)


def _upright_flat(image: Image.Image) -> Image.Image:
    flat, method = _flatten(image), _UPRIGHT.get(_orientation(image))
    return flat if method is None else flat.transpose(method)


def _fit(image: Image.Image, image_size: int) -> np.ndarray:
    height, width = fit_size(image.height, image.width, image_size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _read(file: BinaryIO) -> Image.Image:
    """The whole image, upright, of mode RGB or L; every failure of Pillow becomes ``BadImage``."""
    try:
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width}x{image.height} is too large, the limit is {MAX_PIXELS:,} pixels")
        image.load()
        return _upright_flat(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"too large, the limit is {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadImage("not an image of a known format") from None
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadImage(f"damaged image: {reason}") from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata is absent or broken, as viewers do."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    """Mode RGB or L without transparency. L stays L until after scaling, which gives the same pixels sooner."""
    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits (``I;16`` and its byte orders), 32 bits (``I``) or floats (``F``) to mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> 8).astype(np.uint8)
    else:
        finite = np.where(np.isfinite(values), values, 0).astype(np.float32)
        grey = (np.clip(finite / _white(image, finite), 0, 1) * 255 + 0.5).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _white(image: Image.Image, values: np.ndarray) -> float:
    """The value shown as white. 32-bit files do not say: the smallest usual white that clips no pixel."""
    if image.mode == "I" and image.format != "TIFF":
        return 65535.0  # Pillow opens 16-bit PNM files, and in older releases 16-bit PNG, as 32-bit images
    usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
    brightest = float(values.max())
    return next((white for white in usual if brightest <= white), brightest)


def crop(rgb: np.ndarray, box: Box) -> np.ndarray:
    """A part of an image, at its own size.

    Args:
        rgb: ``[h, w, 3]``.
        box: ``(x, y, width, height)`` in pixels, from the upper left corner.

    Raises:
        PixWordError: a box that is empty or reaches beyond the image.
    """
    x, y, width, height = box
    if min(x, y) < 0 or min(width, height) < 1 or x + width > rgb.shape[1] or y + height > rgb.shape[0]:
        raise PixWordError(
            f"the box {x},{y},{width},{height} does not lie inside the image of {rgb.shape[1]}x{rgb.shape[0]} pixels"
        )
    return rgb[y : y + height, x : x + width]
