"""From any of Pillow's modes to plain colours: transparency over white, depths above 8 bits scaled down, upright."""

import numpy as np
from PIL import ExifTags, Image

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = {_UPRIGHT[value] for value in (5, 6, 7, 8)}  # height becomes width
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # of TIFF: a value of a tag, and the tag


def flatten(image: Image.Image) -> Image.Image:
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


def orientation_of(image: Image.Image, broken: tuple[type[Exception], ...]) -> Image.Transpose | None:
    """What turns an image upright by its EXIF metadata; None where that is absent or broken, as viewers do."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except broken:
        return None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits (``I;16`` and its byte orders), 32 bits (``I``) or floats (``F``) to mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> 8).astype(np.uint8)
    else:
        finite = np.where(np.isfinite(values), values, 0).astype(np.float32)
        grey = (np.clip(finite / _white(image, finite), 0, 1) * 255 + 0.5).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns 8 bits over, and no more
        grey = 255 - grey
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
