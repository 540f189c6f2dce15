"""The built-in data: number plates, drawn with Pillow's own font, seeded and endless.

The text of a plate decides by its hash whether it is reserved: a tenth of all strings is never drawn in
training, so a model that reads them has learnt to read and not to remember.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..common.errors import PixWordError
from ..config.data import COLORS
from ..pixels.images import fit_rgb
from .base import Picture, digest_of

WIDTH, HEIGHT = 28, 12  # pixels
FONT_SIZES = (10, 11, 12)  # pixels an em; smaller digits cannot be told apart
MIN_DIGITS, MAX_DIGITS = 2, 3
SCHEMES = (  # ink, background
    ((0, 0, 0), (255, 255, 255)),
    ((16, 32, 112), (250, 240, 208)),
    ((255, 255, 255), (24, 48, 144)),
    ((255, 216, 32), (16, 16, 16)),
    ((96, 16, 24), (216, 228, 236)),
    ((8, 80, 40), (240, 248, 240)),
)


def is_reserved(text: str) -> bool:
    """True for the tenth of all strings that is kept for evaluation."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Plate:
    """One plate: what it says and how it looks; a `Picture` that is drawn when asked for."""

    text: str
    ink: tuple[int, int, int]
    background: tuple[int, int, int]
    font_size: int
    left: float  # share of the free space, 0..1
    top: float
    name: str = "plate"
    cache_key: None = None

    def draw(self) -> np.ndarray:
        """uint8 ``[HEIGHT, WIDTH, 3]``."""
        font = _font(self.font_size)
        x0, y0, x1, y1 = font.getbbox(self.text)
        mask = Image.new("L", (WIDTH, HEIGHT))
        place = (1 + round(self.left * (WIDTH - 2 - x1 + x0)) - x0, 1 + round(self.top * (HEIGHT - 2 - y1 + y0)) - y0)
        ImageDraw.Draw(mask).text(place, self.text, fill=255, font=font)
        share = np.asarray(mask, np.float32)[..., None] / 255  # [h, w, 1]
        ink, background = np.array(self.ink, np.float32), np.array(self.background, np.float32)
        return np.rint(background + (ink - background) * share).astype(np.uint8)

    def rgb(self, image_size: int) -> np.ndarray:
        return fit_rgb(Image.fromarray(self.draw()), image_size)


class PlateSource:
    """Endless plates with their text: document ``i`` is a pure function of (seed, i).

    Args:
        seed: any non-negative integer.
        reserved: draw the reserved strings instead of the others.
        colors: "schemes" for the fixed pairs of `SCHEMES`, "random" for random shades of ink and background.
    """

    endless, captioned = True, True

    def __init__(self, seed: int = 0, *, reserved: bool = False, colors: str = "schemes") -> None:
        if colors not in COLORS:
            raise PixWordError(f"plate colours must be one of {', '.join(COLORS)}, got {colors!r}")
        self.seed, self.reserved, self.colors = seed, reserved, colors
        self.name, self.unusable = "built-in plates", list[tuple[str, str]]()

    def __len__(self) -> int:
        raise TypeError("the built-in plates are endless; ask for as many as you need")

    def plate(self, index: int) -> Plate:
        """The plate at ``index >= 0``."""
        rng = np.random.default_rng((self.seed, int(self.reserved), index))
        ink, background = self._shades(rng)
        size, left, top = int(rng.choice(FONT_SIZES)), rng.random(), rng.random()
        return Plate(self._string(rng), ink, background, size, left, top, name=f"plate {index}")

    def _string(self, rng: np.random.Generator) -> str:
        while True:
            length = rng.integers(MIN_DIGITS, MAX_DIGITS + 1)
            text = "".join(map(str, rng.integers(0, 10, length)))
            if is_reserved(text) == self.reserved:
                return text

    def _shades(self, rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        if self.colors == "schemes":
            return SCHEMES[rng.integers(len(SCHEMES))]
        dark, light = rng.integers(0, 96, 3), rng.integers(160, 256, 3)
        pair = (dark, light) if rng.random() < 0.5 else (light, dark)
        return tuple(map(int, pair[0])), tuple(map(int, pair[1]))  # type: ignore[return-value]

    def parts(self, index: int) -> list[str | Picture]:
        plate = self.plate(index)
        return [plate, plate.text]

    def texts(self) -> Iterator[str]:
        """Two hundred captions: enough to see every character."""
        return (self.plate(i).text for i in range(200))

    def digest(self) -> str:
        """See ``Source.digest``."""
        return digest_of([self.seed, self.reserved, self.colors])
