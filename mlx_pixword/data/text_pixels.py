"""From a string and its looks to pixels: drawn large, brought to its height at a sub-pixel phase, coloured, degraded.

Legend: h, w height and width in pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .fonts import EM, RAISED_DOT, Face

KERNELS = ("box", "bilinear", "hamming", "bicubic", "lanczos")
INK = 32  # of 255: the coverage that counts as ink of a turned text
NOISE = 2**17  # numbers of the table of noise, and places to begin at
GRAIN = 12  # patches of missing ink an em
_LEVELS = np.arange(256, dtype=np.float32)[:, None] / 255


@dataclass(frozen=True)
class Looks:
    """How one text is drawn; lengths are pixels of the crop.

    Attributes:
        height: of the text's ink box, and ``width`` of it.
        size: height and width of the crop; ``left`` and ``top`` place the ink box in it.
        kernel: of `KERNELS`.
        ink, paper: colours.
        angle: degrees, counter-clockwise.
        neighbors: what intrudes at the edges: ``(side, text, gap)``; an empty text is a rule of a table.
        noise: standard deviation, levels of 255; ``noise_at`` is where in a fixed table it is read.
        blur: radius of a Gaussian; 0 for none.
        jpeg: quality; 0 for none.
        tracking: room between characters, a share of the em.
        weight: by which strokes are thicker, a share of the em.
        dot: characters before a raised dot, as number plates have it, which is no part of the text; 0 for none.
        mottle: share of ink that is missing in patches.
        shade: levels of 255 by which light grows from the left to the right edge, and from the upper to the lower.
    """

    height: float
    width: float
    size: tuple[int, int]
    left: float
    top: float
    kernel: str = "bilinear"
    ink: tuple[int, int, int] = (0, 0, 0)
    paper: tuple[int, int, int] = (255, 255, 255)
    angle: float = 0.0
    neighbors: tuple[tuple[str, str, float], ...] = ()
    noise: float = 0.0
    noise_at: int = 0
    blur: float = 0.0
    jpeg: int = 0
    tracking: float = 0.0
    weight: float = 0.0
    dot: int = 0
    mottle: float = 0.0
    shade: tuple[float, float] = (0.0, 0.0)


def em_for(height: float) -> int:
    """Pixels an em of the large drawing for an ink height: capitals are twice as high."""
    return next((em for em in EM if em >= 3 * height), EM[-1])


def turned_extent(width: float, height: float, angle: float) -> tuple[float, float]:
    """Width and height of a box that holds a turned one."""
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    return width * cos + height * sin, height * cos + width * sin


def draw_text(face: Face, text: str, looks: Looks) -> np.ndarray:
    """uint8 ``[h, w, 3]``."""
    share = _shrink(face, text, looks)  # [h, w]
    paper, ink = np.array(looks.paper, np.float32), np.array(looks.ink, np.float32)
    colors = paper + (ink - paper) * _LEVELS  # [256, 3]
    if looks.noise or any(looks.shade):
        rgb = colors[share]
        if any(looks.shade):
            rgb = rgb + _light(looks.shade, share.shape)
        if looks.noise:
            rgb = rgb + looks.noise * _noise(looks.noise_at, share.size * 3).reshape(*share.shape, 3)
        pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    else:
        pixels = np.rint(colors).astype(np.uint8)[share]
    return _jpeg(pixels, looks.jpeg) if looks.jpeg else pixels


def _shrink(face: Face, text: str, looks: Looks) -> np.ndarray:
    """Coverage uint8 ``[h, w]``: the large drawing with its neighbours, at the crop's size."""
    em = em_for(looks.height)
    mask = _ink(face, text, em, looks)
    x_scale, y_scale = mask.shape[1] / looks.width, mask.shape[0] / looks.height
    x, y = math.ceil(looks.left * x_scale), math.ceil(looks.top * y_scale)
    x_start, y_start = x - looks.left * x_scale, y - looks.top * y_scale  # in 0..1: the phase that rounding takes
    box = (x_start, y_start, x_start + looks.size[1] * x_scale, y_start + looks.size[0] * y_scale)
    canvas = np.zeros((math.ceil(box[3]), math.ceil(box[2])), np.uint8)
    _paste(canvas, mask, x, y)
    for side, neighbor, gap in looks.neighbors:
        _intrude(canvas, face, em, (x, y, mask.shape[1], mask.shape[0]), (side, neighbor, gap * y_scale))
    resample = Image.Resampling[looks.kernel.upper()]
    small = _image(canvas).resize(looks.size[::-1], resample, box)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(looks.blur)) if looks.blur else small)


def large_extent(face: Face, text: str, em: int, looks: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height of the large drawing's ink box, of the fields of `Looks` that decide it."""
    w, h = face.extent(_dotted(text, looks["dot"]), em, round(looks["tracking"] * em))
    thick = _thickness(looks["weight"], em)
    return turned_extent(w + thick, h + thick, looks["angle"])


def _ink(face: Face, text: str, em: int, looks: Looks) -> np.ndarray:
    """The large drawing of the text alone: coverage uint8 ``[h, w]``."""
    mask = face.mask(_dotted(text, looks.dot), em, round(looks.tracking * em))
    if thick := _thickness(looks.weight, em):
        mask = _thicker(mask, thick)
    if looks.mottle:
        mask = _mottled(mask, looks.mottle, looks.noise_at, em)
    return _turn(mask, looks.angle) if looks.angle else mask


def _dotted(text: str, dot: int) -> str:
    return text[:dot] + RAISED_DOT + text[dot:] if dot else text


def _thickness(weight: float, em: int) -> int:
    return max(1, round(weight * em)) if weight else 0


def _thicker(mask: np.ndarray, by: int) -> np.ndarray:
    """Strokes grown by ``by`` pixels to the right and down: ``[h + by, w + by]``."""
    wide = np.pad(mask, ((0, 0), (0, by)))
    for n in range(1, by + 1):
        np.maximum(wide[:, n : n + mask.shape[1]], mask, out=wide[:, n : n + mask.shape[1]])
    high = np.pad(wide, ((0, by), (0, 0)))
    for n in range(1, by + 1):
        np.maximum(high[n : n + len(wide)], wide, out=high[n : n + len(wide)])
    return high


def _mottled(mask: np.ndarray, mottle: float, start: int, em: int) -> np.ndarray:
    """Ink that is missing in patches of some pixels, as thermal printers and old ribbons leave it."""
    cell = max(2, em // GRAIN)
    rows, columns = (-(-length // cell) for length in mask.shape)
    kept = np.clip(1 - mottle * (0.5 + 0.7 * _noise(start, rows * columns).reshape(rows, columns)), 0, 1)
    large = kept.repeat(cell, 0).repeat(cell, 1)[: mask.shape[0], : mask.shape[1]]
    return (mask * large).astype(np.uint8)


def _light(shade: tuple[float, float], shape: tuple[int, ...]) -> np.ndarray:
    """Levels to add, ``[h, w, 1]``: light that comes from a side."""
    across = shade[0] * np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)
    down = shade[1] * np.linspace(-0.5, 0.5, shape[0], dtype=np.float32)
    return (across + down[:, None])[..., None]


def _image(mask: np.ndarray) -> Image.Image:
    """`Image.fromarray` of uint8 ``[h, w]``, in half its time."""
    return Image.frombuffer("L", mask.shape[::-1], mask, "raw", "L", 0, 1)


def _turn(mask: np.ndarray, angle: float) -> np.ndarray:
    """A turned mask, cut to its ink box."""
    turned = np.asarray(_image(mask).rotate(angle, Image.Resampling.BILINEAR, expand=True))
    least = min(INK, turned.max() // 2)  # of faint ink, half
    rows, columns = np.flatnonzero(turned.max(1) > least), np.flatnonzero(turned.max(0) > least)
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paste(canvas: np.ndarray, mask: np.ndarray, x: int, y: int) -> None:
    """The larger coverage of both, where they overlap."""
    y0, x0 = max(y, 0), max(x, 0)
    part = canvas[y0 : max(y0, y + mask.shape[0]), x0 : max(x0, x + mask.shape[1])]
    np.maximum(part, mask[y0 - y : y0 - y + part.shape[0], x0 - x : x0 - x + part.shape[1]], out=part)


def _intrude(
    canvas: np.ndarray, face: Face, em: int, box: tuple[int, int, int, int], neighbor: tuple[str, str, float]
) -> None:
    """Draw a neighbour (side, text, gap) of the ink box (x, y, width, height), all in pixels of the canvas."""
    (x, y, width, height), (side, text, gap) = box, neighbor
    thick = max(1, height // 12)
    beside = side in ("left", "right")
    if text:
        mask = face.mask(text, em)
    else:
        mask = np.full((len(canvas), thick) if beside else (thick, canvas.shape[1]), 255, np.uint8)
    h, w = mask.shape
    far = {"left": x - w, "right": x + width, "above": y - h, "below": y + height}[side]
    far += round(-gap if side in ("left", "above") else gap)
    across = 0 if not text else (height - h if beside else 0)
    _paste(canvas, mask, *((far, (y + across) * bool(text)) if beside else (0, far)))


def _noise(start: int, size: int) -> np.ndarray:
    """Normal numbers, read at different places of a table: drawing fresh ones costs as much as all the rest."""
    table = _noise_table()
    return table[start : start + size] if start + size <= NOISE else np.resize(np.roll(table, -start), size)


@cache
def _noise_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(NOISE, np.float32)


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
