"""Fuzzing the decoding of images: the decoders' processes first, then this process, and both must say the same."""

import io
import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
from fuzzing import Finding, Target
from PIL import Image, ImageDraw

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.pixels.images import decode_image

SECONDS = 5.0  # of processor time; what is fuzzed is small
SIZE = 64  # longer side of what is decoded, pixels


class EncodedBytes:
    """A file's bytes as a picture."""

    cache_key = None

    def __init__(self, data: bytes, name: str = "bytes") -> None:
        self._data, self.name = data, name

    def encoded(self) -> bytes:
        return self._data

    def rgb(self, image_size: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tests make errors of them, the decoders' processes do not
            return decode_image(io.BytesIO(self._data), image_size)


def check(data: bytes) -> None:
    """Decode in another process and, if that one survives, here."""
    here, there = None, None
    picture = EncodedBytes(data)
    try:
        there = _decoders().rgb(picture, SIZE)
    except BadImage as error:
        if str(error).startswith(("it crashes", "decoding takes")):
            raise Finding("decoder", str(error)) from error
        try:
            here = picture.rgb(SIZE)
        except BadImage as other:
            _same(str(other), str(error))
            raise
    else:
        here = picture.rgb(SIZE)
    if here is None or there is None or here.shape[2] != 3 or not 1 <= max(here.shape[:2]) <= SIZE:
        raise Finding("pixels", "not a small image, or taken by one process alone")
    if here.dtype != np.uint8 or not np.array_equal(here, there):
        raise Finding("pixels", f"{here.dtype} {here.shape}, another process gives other pixels")


def _same(here: str, there: str) -> None:
    """Reasons may differ in an address or in memory, not in kind."""
    if here.partition(":")[0] != there.partition(":")[0]:
        raise Finding("reason", f"{here!r} here, {there!r} in another process")


@cache
def _decoders() -> Decoders:
    return Decoders(SECONDS)


@cache  # an AVIF of several frames holds the second in which it was written
def seeds() -> list[bytes]:
    """Small images of every format and of many kinds."""
    return [encode(image, name, **options) for image, name, options in _kinds()]


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, name, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _kinds() -> Iterator[tuple[Image.Image, str, dict[str, object]]]:
    noise = np.random.default_rng(0).normal(128, 60, (24, 32, 3))  # [h, w, 3]
    photo = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(photo).ellipse((4, 4, 20, 20), "red")
    grey, palette, clear = photo.convert("L"), photo.quantize(16), photo.copy()
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "ICO", "TGA"):
        yield photo, name, {}
    yield photo, "JPEG", {"progressive": True, "exif": exif}
    yield photo.convert("CMYK"), "JPEG", {}
    yield photo, "MPO", _frames(photo)
    yield palette, "PNG", {"transparency": 3, "optimize": True}
    yield deep, "PNG", {}
    yield clear, "PNG", _frames(photo)
    yield clear, "WEBP", {"lossless": True, "exif": exif}
    yield photo, "WEBP", _frames(photo)
    yield palette, "GIF", {**_frames(photo), "transparency": 2}
    yield grey, "GIF", {}
    yield palette, "BMP", {}
    yield photo.convert("1"), "BMP", {}
    for compression in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "group4"):
        yield photo.convert("1") if compression == "group4" else photo, "TIFF", {"compression": compression}
    yield deep, "TIFF", {}
    yield grey.convert("F"), "TIFF", {"exif": exif}
    yield grey.convert("I"), "TIFF", {}
    yield photo, "TIFF", _frames(photo)
    yield grey, "PPM", {}
    yield photo.convert("1"), "PPM", {}
    yield grey.convert("F"), "PPM", {}
    yield clear, "JPEG2000", {"tile_size": (16, 16)}
    yield clear, "AVIF", _frames(clear)
    yield clear, "ICO", {"sizes": [(16, 16), (32, 24)]}
    yield clear, "TGA", {"compression": "tga_rle"}
    yield palette, "TGA", {}


def _frames(photo: Image.Image) -> dict[str, object]:
    """Options of an animation; made anew each time, as saving leaves traces in images."""
    return {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}


WORDS = (
    b"IHDR", b"IDAT", b"tRNS", b"acTL", b"fdAT", b"PLTE", b"Exif\0\0", b"\xff\xd8", b"\xff\xda", b"\xff\xe1\0\x10",
    b"RIFF", b"VP8X", b"ANMF", b"II*\0", b"MM\0*", b"GIF89a", b"!\xf9\x04", b"P6 9 9 255 ", b"Pf 3 3 -1.0 ",
    b"ftypavif", b"jP  ", b"\xff\x4f\xff\x51", b"qoif", b"BM", b"-1", b"0 0 ", b"nan ",
)  # fmt: skip
TARGET = Target("images", seeds, check, WORDS, seconds=30.0, memory=2**31)
