"""Faces for the built-in text: those that matplotlib bundles, Pillow's own, and more from folders.

Families are split, so that what is held out is drawn in faces that were never seen in training. Faces that are one
design under several names stay on one side: Arimo is Liberation Sans, Hack grew out of DejaVu Sans Mono.
"""

import hashlib
import importlib.metadata
import importlib.util
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..common.errors import PixWordError

FONT_PACKAGES = (  # of the extra ``fonts``
    "font-roboto", "font-source-sans-pro", "font-source-serif-pro", "font-caladea", "font-manrope",
    "font-hanken-grotesk", "font-lato",
)  # fmt: skip
CHARACTERS = string.digits + string.ascii_letters + ".,:/-$"  # a face needs all of them
MARKS = "()[]'\"%+|?!;=_&#*@\\"  # for the kind "marks", drawn in faces that have them all
RAISED_DOT = "\u00b7"  # drawn as a full stop between the baseline and the capitals' top, so that every face has it
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
EM = (32, 64, 96, 192, 384, 768)  # pixels an em at which glyphs are drawn, before they are made small
LEAST_STROKE = 0.05  # of the height of an "l"; hairlines vanish at the heights drawn here
HELD_OUT = frozenset({"computer modern sans", "computer modern typewriter", "stixgeneral"})

_BUNDLED = re.compile(r"(DejaVu(Sans|SansMono|Serif)(-\w+)?|STIXGeneral\w*|cm(b|r|ss|tt)10)\.ttf")
_TRAINED = frozenset({"dejavu sans", "dejavu sans mono", "dejavu serif", "computer modern", "aileron"})
_NAMES = {  # one design under several names
    "cmr10": "computer modern", "cmb10": "computer modern", "cmti10": "computer modern",
    "cmss10": "computer modern sans", "cmtt10": "computer modern typewriter",
    "arimo": "liberation sans", "tinos": "liberation serif", "cousine": "liberation mono", "carlito": "lato",
    "hack": "dejavu sans mono", "bitstream vera sans": "dejavu sans", "bitstream vera sans mono": "dejavu sans mono",
    "bitstream vera serif": "dejavu serif", "fira mono": "fira code",
}  # fmt: skip
_VARIANT = re.compile(
    r" (condensed|semicondensed|narrow|display|thin|hairline|(extra|ultra)?light|book|regular|medium|retina|semi-?bold|"
    r"demi-?bold|bold|(extra|ultra)bold|heavy|black)\b"
)
_MISSING = "\U0010fffe"  # for which FreeType draws what it draws for all characters that a face lacks
_NO_TEXT = re.compile(r"symbol|dingbat|awesome|icon|emoji|math|ornament", re.IGNORECASE)


@dataclass(frozen=True)
class Glyph:
    """One character: coverage uint8 ``[h, w]``, its place against the pen on the baseline, and the pen's advance."""

    mask: np.ndarray
    left: int
    top: int
    advance: int


@dataclass(frozen=True)
class Face:
    """One face; its glyphs are drawn once and kept. Safe to use from any thread.

    Attributes:
        name: family and style, as the file tells them.
        family: the design it belongs to, in lower case; families are split.
        digest: SHA-256 of the font's bytes.
    """

    name: str
    family: str
    digest: str
    font: ImageFont.FreeTypeFont = field(repr=False, compare=False)
    _glyphs: dict[tuple[str, int], Glyph] = field(default_factory=dict, repr=False, compare=False)
    _sizes: dict[int, ImageFont.FreeTypeFont] = field(default_factory=dict, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def held_out(self) -> bool:
        """True if the family is kept for evaluation: of families that are not bundled, a quarter by their hash."""
        if self.family in HELD_OUT or self.family in _TRAINED:
            return self.family in HELD_OUT
        return hashlib.sha256(f"family {self.family}".encode()).digest()[0] % 4 == 0

    def glyph(self, character: str, em: int) -> Glyph:
        """A character at ``em`` pixels an em."""
        found = self._glyphs.get((character, em))
        if found is None:
            with self._lock:  # FreeType serves one thread at a time
                found = self._glyphs[character, em] = self._draw(character, em)
        return found

    def _draw(self, character: str, em: int) -> Glyph:
        if character == RAISED_DOT:
            stop = self._draw(".", em)
            return replace(stop, top=stop.top - round(0.3 * em))
        if em not in self._sizes:
            self._sizes[em] = self.font.font_variant(size=em)
        font = self._sizes[em]
        left, top, right, bottom = (int(side) for side in font.getbbox(character, anchor="ls"))
        canvas = Image.new("L", (max(1, right - left), max(1, bottom - top)))
        ImageDraw.Draw(canvas).text((-left, -top), character, 255, font, anchor="ls")
        x0, y0, x1, y1 = canvas.getbbox() or (0, 0, 0, 0)  # Pillow's box holds the pen's advance too
        mask = np.asarray(canvas)[y0:y1, x0:x1]
        return Glyph(mask, left + x0, top + y0, round(font.getlength(character)))

    def extent(self, text: str, em: int, tracking: int = 0) -> tuple[int, int]:
        """Width and height of a text's ink, in pixels, with so many more between characters."""
        x0, y0, x1, y1 = _box(self._place(text, em, tracking))
        return x1 - x0, y1 - y0

    def mask(self, text: str, em: int, tracking: int = 0) -> np.ndarray:
        """A text's ink box: coverage uint8 ``[h, w]``. Whole glyphs side by side, without kerning; see `extent`."""
        placed = self._place(text, em, tracking)
        x0, y0, x1, y1 = _box(placed)
        canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for x, glyph in placed:
            h, w = glyph.mask.shape
            part = canvas[glyph.top - y0 : glyph.top - y0 + h, x - x0 : x - x0 + w]
            np.maximum(part, glyph.mask, out=part)
        return canvas

    @property
    def has_marks(self) -> bool:
        """Whether the font draws every one of `MARKS`, and as itself: TeX's old fonts have a dash for a bar."""
        missing = self.glyph(_MISSING, EM[0]).mask
        masks = {character: self.glyph(character, EM[0]).mask for character in MARKS + "l"}
        drawn = all(mask.any() and not np.array_equal(mask, missing) for mask in masks.values())
        return drawn and all(len(masks[character]) > 0.8 * len(masks["l"]) for character in "|\\()")

    def _place(self, text: str, em: int, tracking: int = 0) -> list[tuple[int, Glyph]]:
        placed, pen = list[tuple[int, Glyph]](), 0
        for character in text:
            glyph = self.glyph(character, em)
            if glyph.mask.size:
                placed.append((pen + glyph.left, glyph))
            pen += glyph.advance + tracking
        return placed


def _box(placed: Sequence[tuple[int, Glyph]]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of glyphs at their places; there is at least one."""
    return (
        min(x for x, _ in placed),
        min(glyph.top for _, glyph in placed),
        max(x + glyph.mask.shape[1] for x, glyph in placed),
        max(glyph.top + glyph.mask.shape[0] for _, glyph in placed),
    )


def package_folders() -> list[Path]:
    """Folders of the font packages of the extra ``fonts``, in the order of `FONT_PACKAGES`.

    Raises:
        PixWordError: one is not installed.
    """
    folders = dict[Path, None]()
    for package in FONT_PACKAGES:
        try:
            found = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise PixWordError(f"{package} is missing: pip install -e '.[fonts]'") from None
        fonts = [Path(str(file.locate())) for file in found if str(file).endswith((".ttf", ".otf"))]
        folders |= dict.fromkeys(sorted({font.parent for font in fonts}))
    return [*folders]


@cache
def bundled_faces() -> tuple[Face, ...]:
    """The faces that are always there: matplotlib's DejaVu, STIX and Computer Modern, and Pillow's own."""
    spec = importlib.util.find_spec("matplotlib")  # looks for it, and does not import it
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0], "mpl-data", "fonts", "ttf") if places else Path()
    paths = [path for path in sorted(folder.glob("*.ttf")) if _BUNDLED.fullmatch(path.name)]
    if not paths:
        raise PixWordError(f"matplotlib's fonts are missing in {folder}; install matplotlib again")
    return (*(_open(path) for path in paths), _pillows_own())


def _pillows_own() -> Face:
    font = ImageFont.load_default(EM[0])
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise PixWordError("Pillow was built without FreeType; install Pillow's own wheel")
    font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    content = font.font_bytes or b""
    return Face(_name(font), family_of(font.getname()[0] or ""), hashlib.sha256(content).hexdigest(), font)


def find_faces(folders: Sequence[str | Path]) -> tuple[list[Face], list[tuple[str, str]]]:
    """Faces below folders (or font files), bundled ones first, no file twice; and ``(file, reason)`` of those left out.

    Raises:
        PixWordError: nothing there, or no face with all of `CHARACTERS`.
    """
    faces, unusable = {face.digest: face for face in bundled_faces()}, list[tuple[str, str]]()
    for folder in map(Path, folders):
        if not folder.exists():
            raise PixWordError(f"--fonts {folder}: no such folder; give one that holds .ttf or .otf files")
        files = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
        paths = [path for path in files if path.suffix.lower() in SUFFIXES]
        usable = 0
        for path in paths:
            try:
                face = _open(path)
                _check(face)
            except PixWordError as error:
                unusable.append((str(path), str(error)))
                continue
            usable += 1
            faces.setdefault(face.digest, face)
        if not usable:
            found = f"{len(paths)} font files, {unusable[-1][1]}" if paths else "no .ttf or .otf file"
            raise PixWordError(f"--fonts {folder}: no usable face ({found})")
    return list(faces.values()), unusable


def _open(path: Path) -> Face:
    try:
        content = path.read_bytes()
        font = ImageFont.truetype(str(path), EM[0], layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise PixWordError(f"not a font that FreeType reads: {error}") from None
    return Face(_name(font), family_of(font.getname()[0] or ""), hashlib.sha256(content).hexdigest(), font)


def _name(font: ImageFont.FreeTypeFont) -> str:
    family, style = font.getname()
    return f"{family} {style}"


def family_of(name: str) -> str:
    """The design that a font's family belongs to: without its weights and widths, under one name."""
    plain = _VARIANT.sub("", name.lower()).strip()
    return _NAMES.get(plain, plain)


def _check(face: Face) -> None:
    """Refuse a face that is not for Latin text, or whose strokes are hairlines."""
    if _NO_TEXT.search(face.name):
        raise PixWordError(f"{face.name} is no face for text")
    masks = {c: face.glyph(c, EM[0]).mask for c in (*CHARACTERS, _MISSING)}
    missing = masks.pop(_MISSING)
    without = [c for c, mask in masks.items() if not mask.any() or np.array_equal(mask, missing)]
    if without:
        raise PixWordError(f"{face.name} has no {' '.join(without[:5])}")
    if len({(mask.shape, mask.tobytes()) for mask in masks.values()}) < 0.9 * len(masks):
        raise PixWordError(f"{face.name} draws one shape for many characters")
    stem = masks["l"]
    if stem[len(stem) // 2].sum() / 255 < LEAST_STROKE * len(stem):
        raise PixWordError(f"{face.name} has strokes too thin for small text")
