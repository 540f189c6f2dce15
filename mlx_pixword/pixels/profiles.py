"""Embedded colour profiles (ICC) to sRGB, as viewers show them, by Little CMS."""

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

MAX_PROFILE = 2**24  # bytes; printers' profiles have a few millions
SAME = 2  # levels of 255 by which a profile may differ from sRGB and be taken for it
_SPACES = {b"RGB ": ("RGB", "RGBA"), b"GRAY": ("L", "LA"), b"CMYK": ("CMYK",)}  # by bytes 16 to 19 of a profile


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """The image's colours in sRGB.

    A profile that is broken, or made for other channels than the image has, is left aside, as viewers do. So is one
    that differs from sRGB by no more than rounding.

    Args:
        image: any mode; transparency is kept.
        profile: the bytes of a profile, or None for an image without one.
    """
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE:
        return image
    modes = _SPACES.get(profile[16:20], ())
    if "RGB" in modes and (image.mode in ("P", "PA") or (image.mode == "RGB" and image.has_transparency_data)):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode not in modes:
        return image
    if image.mode == "LA":
        grey = to_srgb(image.getchannel("L"), profile).convert("RGB")
        grey.putalpha(image.getchannel("A"))
        return grey
    transform = _transform(profile, image.mode)
    return image if transform is None else _apply(image, transform)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    """What turns a mode of a profile into sRGB; None if the profile is broken or as good as sRGB."""
    from PIL import ImageCms  # needed for images with profiles alone

    out = "RGBA" if mode == "RGBA" else "RGB"
    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, out)
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Try colours over the whole range: nine levels a channel, or all levels of grey."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    if mode == "L":
        colors = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)  # [1, 256, 3]
        probe = Image.fromarray(colors[..., 0])
    else:
        colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        probe = Image.fromarray(colors).convert(mode)
    shown = np.asarray(_apply(probe, transform).convert("RGB"), np.int16)
    return int(np.abs(shown - colors.astype(np.int16)).max()) <= SAME


def _apply(image: Image.Image, transform: Any) -> Image.Image:
    from PIL import ImageCms

    return ImageCms.applyTransform(image, transform) or image  # None where an image is changed in place
