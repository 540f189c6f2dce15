"""Decode an image file as a person sees it: upright, in sRGB, over white, eight bits a channel, small enough."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..common.errors import BadImage, PixWordError
from ..common.files import LFS, open_regular
from .flat import TURNED, flatten, orientation_of
from .formats import MAX_PIXELS, is_heif, load, open_image
from .profiles import to_srgb
from .windows import fit_size

Box = tuple[int, int, int, int]  # x and y of the upper left corner, width, height

_UNKNOWN = "not an image of a known format"

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

# Pillow warns of odd metadata in files it decodes well. Set once at import: filters toggled in threads race.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Decoded(NamedTuple):
    """An image, decoded.

    Attributes:
        rgb: uint8 ``[h, w, 3]``, possibly read-only.
        size: width and height of the upright image before anything was scaled or cut out.
        note: what is wrong with a file that could be shown nevertheless; empty for most.
    """

    rgb: np.ndarray
    size: tuple[int, int]
    note: str = ""


def decode(file: BinaryIO, image_size: int, box: Box | None = None) -> Decoded:
    """Decode the first frame of an image file.

    EXIF orientation and an embedded colour profile are applied, transparency is laid over white, and depths above
    8 bits are scaled down. A JPEG that lacks its last bytes is shown as far as it goes, with a note.

    Args:
        file: seekable binary file; it is left open.
        image_size: ``S``, pixels; a longer image is scaled down bilinearly (``fit_size``), none is enlarged.
        box: a part of the upright image to show alone and at its own size, however large.

    Raises:
        BadImage: no image of a format in ``FORMATS``, damaged, or too many pixels.
        PixWordError: a box that is empty or reaches beyond the image.
    """
    kind = ""
    try:
        file.seek(0)
        kind = "HEIC " if is_heif(file.read(32)) else ""
        image, size = open_image(file, whole=box is not None)
        image, note = load(image, file, whole=box is not None)
        method = orientation_of(image, _UNREADABLE)
        return Decoded(_show(image, method, image_size, box), size[::-1] if method in TURNED else size, note)
    except PixWordError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"too large, the limit is {MAX_PIXELS:,} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise BadImage(f"damaged {kind}image, nothing in it can be read" if kind else _what_else(file)) from None
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadImage(f"damaged {kind}image: {reason}") from error


def _what_else(file: BinaryIO) -> str:
    """What a file is that is no image, as far as its first bytes tell."""
    file.seek(0)
    start = file.read(64).lstrip()
    if not start:
        return f"{_UNKNOWN}: the file is empty"
    if start.startswith(LFS):
        return f"{_UNKNOWN}: a pointer of Git LFS; run git lfs pull"
    return f"{_UNKNOWN}: a web page" if start[:9].lower() in (b"<!doctype", b"<html>") else _UNKNOWN


def decode_image(file: BinaryIO, image_size: int) -> np.ndarray:
    """The pixels alone that `decode` gives: uint8 ``[h, w, 3]``."""
    return decode(file, image_size).rgb


def decode_file(path: Path, flag: str, image_size: int, box: Box | None = None) -> Decoded:
    """`decode` on a file that a flag names; raises ``PixWordError`` with the flag and the name."""
    try:
        with open_regular(path) as file:
            return decode(file, image_size, box)
    except PixWordError as error:
        raise PixWordError(f"{flag} {path}: {error}") from error
    except OSError as error:
        raise PixWordError(f"{flag} {path}: {error.strerror}") from error


def fit_rgb(image: Image.Image, image_size: int, box: Box | None = None) -> np.ndarray:
    """The same for an image that is open already: uint8 ``[h, w, 3]``, longer side at most ``image_size``."""
    return _show(image, orientation_of(image, _UNREADABLE), image_size, box)


def _show(image: Image.Image, method: Image.Transpose | None, image_size: int, box: Box | None) -> np.ndarray:
    profile = image.info.get("icc_profile")
    late = image.mode == "RGB" and not image.has_transparency_data  # colours of fewer pixels are sooner changed
    flat = flatten(image if late else to_srgb(image, profile))
    flat = flat if method is None else flat.transpose(method)
    flat = _fit(flat, image_size) if box is None else _cut_out(flat, box)
    flat = to_srgb(flat, profile) if late else flat
    return np.asarray(flat if flat.mode == "RGB" else flat.convert("RGB"))


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    height, width = fit_size(image.height, image.width, image_size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def crop(rgb: np.ndarray, box: Box) -> np.ndarray:
    """A part of an image, at its own size.

    Args:
        rgb: ``[h, w, 3]``.
        box: ``(x, y, width, height)`` in pixels, from the upper left corner.

    Raises:
        PixWordError: a box that is empty or reaches beyond the image.
    """
    x, y, width, height = _inside(box, rgb.shape[1], rgb.shape[0])
    return rgb[y : y + height, x : x + width]


def _cut_out(image: Image.Image, box: Box) -> Image.Image:
    x, y, width, height = _inside(box, *image.size)
    return image.crop((x, y, x + width, y + height))


def _inside(box: Box, across: int, down: int) -> Box:
    x, y, width, height = box
    if min(x, y) < 0 or min(width, height) < 1 or x + width > across or y + height > down:
        raise PixWordError(f"the box {x},{y},{width},{height} does not lie inside the image of {across}x{down} pixels")
    return box
