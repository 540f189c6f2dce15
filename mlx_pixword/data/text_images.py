"""The built-in small text: crops of numbers, codes and words at ink heights of some pixels, seeded and endless.

Split twice, so that a model that reads what is held out has learnt to read: a tenth of all strings, and whole families
of faces, are never drawn in training. No crop is longer than S, so none is ever scaled: the ink height is what the
model receives. Drawing is cheap (glyphs are drawn once), so crops are drawn when asked for and not kept.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np

from ..common.errors import PixWordError
from ..config.data import TEXT_KINDS, TEXT_LENGTH
from .base import Picture, digest_of
from .fonts import MARKS, Face, bundled_faces
from .strings import LETTERS, Strings, between, pick
from .text_pixels import KERNELS, NOISE, Looks, draw_text, em_for, large_extent, turned_extent
from .text_wear import cut, frame, spread, stretched, worn_surface

VERSION = 1  # of what is drawn for a seed and an index
MARGIN = 1.0  # pixels left and right of the ink at the least
GAP = 1.2  # heights that a neighbour at the left or right takes, with the gap before it, at the most
CAPTIONS = 2000  # enough to see every character, and the words that are common
_TRIES = 60
_TALL = 32  # pixels; the drawing of taller ink changed after runs with it were there
_FIRST = 0.25  # of the heights' logarithmic range, from the highest down, at reach 0
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class TextStyle:
    """What is drawn.

    Attributes:
        kinds: of `TEXT_KINDS` and `MORE_TEXT_KINDS`.
        heights: of the ink box in pixels, lowest and highest, log-uniform between.
        contrast: difference of luma between ink and paper, a share of 255; lowest and highest.
        clutter: share of crops at whose edges other text or a rule intrudes.
        distort: share of crops that may have noise, blur, JPEG or a small turn.
        length: characters of the longest string.
        slack: of margins, as a share of up to 8 pixels at the left and at the right and 4 above and below.
        reach: share of all this variety that is drawn: 0 is strings of up to 2 characters in one plain face, large and
            of full contrast, 1 is everything.
        wear: share of crops that are worn, see `text_wear`; ``heights`` are those of their capitals.
        curriculum: documents over which ``reach`` grows from 0. A model reads one face within some thousand crops, and
            others soon after; shown all faces, heights and colours at once it does not begin within ten times as many.
    """

    kinds: tuple[str, ...] = TEXT_KINDS
    heights: tuple[float, float] = (4.0, 32.0)
    contrast: tuple[float, float] = (0.2, 1.0)
    clutter: float = 0.2
    distort: float = 1.0
    length: int = TEXT_LENGTH
    slack: float = 1.0
    reach: float = 1.0
    curriculum: int = 0
    wear: float = field(default=0.0, repr=False)  # not part of `TextSource.digest` where there is none


@dataclass(frozen=True)
class TextCrop:
    """One crop: what it says and how it looks; a `Picture` that is drawn when asked for."""

    text: str
    kind: str
    face: Face
    contrast: float
    looks: Looks
    name: str = "text"
    cache_key: None = None

    def draw(self) -> np.ndarray:
        """uint8 ``[h, w, 3]``."""
        return draw_text(self.face, self.text, self.looks)

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``; it is never scaled, so a smaller ``image_size`` than it was laid out for is refused."""
        if max(self.looks.size) > image_size:
            raise PixWordError(f"a text of {self.looks.size} pixels was laid out for a larger image_size")
        return self.draw()

    def facts(self) -> dict[str, Any]:
        """What is known of the crop, as plain values; lengths in pixels, ``left`` and ``top`` of the ink box."""
        looks = self.looks
        return {
            "kind": self.kind, "face": self.face.name, "family": self.face.family, "characters": len(self.text),
            "ink_height": looks.height, "ink_width": looks.width, "left": looks.left, "top": looks.top,
            "contrast": self.contrast, "clutter": int(bool(looks.neighbors)), "kernel": looks.kernel,
            "angle": looks.angle, "noise": looks.noise, "blur": looks.blur, "jpeg": looks.jpeg,
        }  # fmt: skip


class TextSource:
    """Endless small text with what it says: document ``i`` is a pure function of (seed, i).

    Args:
        seed: any non-negative integer.
        held_out: draw reserved strings in families that are held out, instead of the others.
        style: what is drawn.
        image_size: S; no side of a crop is longer.
        faces: of which those on this side of the split are used; None for the bundled ones.
        words: for the kind "words"; None for the built-in ones.
        unusable: see ``Source``.

    Raises:
        PixWordError: S is too small, or nothing is left on this side of the split.
    """

    endless, captioned = True, True

    def __init__(
        self,
        seed: int = 0,
        held_out: bool = False,
        style: TextStyle | None = None,
        image_size: int = 64,
        faces: Sequence[Face] | None = None,
        words: Sequence[str] | None = None,
        unusable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.seed, self.held_out, self.image_size = seed, held_out, image_size
        self.style = style or TextStyle()
        self.faces = bundled_faces() if faces is None else tuple(faces)
        self.name, self.unusable = "built-in text", list(unusable)
        self.strings = Strings(self.style.kinds, held_out, words)
        self.families = self._families()
        self._all = list(self.families.values())
        self._marked = self._with_marks() if "marks" in self.style.kinds else []
        self._check_room()

    def _families(self) -> dict[str, list[Face]]:
        """The faces drawn here, by family."""
        found = dict[str, list[Face]]()
        for face in self.faces:
            if face.held_out == self.held_out:
                found.setdefault(face.family, []).append(face)
        if not found:
            raise PixWordError("no family of faces is held out" if self.held_out else "all families are held out")
        return found

    def _with_marks(self) -> list[list[Face]]:
        """The faces that have all of `MARKS`, a list a family."""
        found = [[face for face in faces if face.has_marks] for faces in self._all]
        if not any(found):
            raise PixWordError(f"no face here has all of {MARKS}; leave the kind marks out, or give more faces")
        return [faces for faces in found if faces]

    def _check_room(self) -> None:
        """Raise if S is too small for the shortest string of every kind at the largest height, in the widest face."""
        high, em = self.style.heights[1], em_for(self.style.heights[1])
        needs = dict[str, int]()
        for kind in self.style.kinds:
            extents = [face.extent(self.strings.shortest(kind), em) for all in self.families.values() for face in all]
            needs[kind] = math.ceil(max(0.9 * high * w / h for w, h in extents) + 2 * MARGIN)
        need = max(min(needs.values()), math.ceil(high + 2 * MARGIN))
        if need > self.image_size:
            raise PixWordError(
                f"text up to {high:g} pixels high of the kinds {', '.join(self.style.kinds)} needs an image_size of at "
                f"least {need}, got {self.image_size}; lower text_heights or raise image_size"
            )

    def __len__(self) -> int:
        raise TypeError("the built-in text is endless; ask for as many as you need")

    def style_at(self, index: int) -> TextStyle:
        """What is drawn at ``index``: the style as far as the curriculum has come."""
        style, over = self.style, self.style.curriculum
        reach = style.reach * (1.0 if index >= over else index / over)
        if reach >= 1:
            return style
        (low, high), contrast = style.heights, style.contrast
        return replace(
            style,
            reach=reach,
            length=2 + round(reach * (style.length - 2)),
            heights=(high * (low / high) ** (_FIRST + (1 - _FIRST) * reach), high),
            contrast=(contrast[1] - reach * (contrast[1] - contrast[0]), contrast[1]),
            clutter=reach * style.clutter,
            distort=reach * style.distort,
            wear=reach * style.wear,
        )

    def crop(self, index: int) -> TextCrop:
        """The crop at ``index >= 0``."""
        r = Random(f"text {VERSION} {self.seed} {int(self.held_out)} {index}")
        style = self.style_at(index)
        (low, high), (least, most) = style.heights, style.contrast
        height, contrast = low * (high / low) ** r.random(), most - (most - least) * r.random() ** 2
        if style.wear and r.random() < style.wear:
            return self._worn(height, contrast, style, f"text {index}", r)
        angle = _angle(r) if r.random() < 0.08 * style.distort else 0.0
        kind, text, face, width = self._fitting(height, angle, style, r)
        neighbors = self._neighbors(height, width, r) if r.random() < style.clutter else ()
        ink, paper = _colors(contrast, r)
        place = _place(height, width, self.image_size, style.slack, neighbors, r)
        damage = _damage(style.distort, height, r)
        looks = Looks(height, width, *place, pick(r, KERNELS), ink, paper, angle, neighbors, **damage)
        return TextCrop(text, kind, face, contrast, looks, f"text {index}")

    def _fitting(self, height: float, angle: float, style: TextStyle, r: Random) -> tuple[str, str, Face, float]:
        """Kind, string and face that fit S at a height, and the width of the ink: stretched or narrowed by a tenth."""
        room = self.image_size - 2 * MARGIN
        for kind, text, face in self._drawn(height, style, r):
            w, h = turned_extent(*face.extent(text, em_for(height)), angle)
            width, stretch = height * w / h, 0.9 + 0.2 * r.random()
            if 0.9 * width <= room:
                return kind, text, face, min(width * stretch, room)
        raise AssertionError("unreachable: `_drawn` raises where nothing fits")

    def _drawn(self, height: float, style: TextStyle, r: Random) -> Iterator[tuple[str, str, Face]]:
        """Kinds, strings and faces to try; each is shorter than the last, and so likelier to fit."""
        limit = style.length
        for _ in range(_TRIES):
            kind = pick(r, self.strings.kinds_within(limit))
            text = self.strings.draw(kind, limit, r)
            yield kind, text, self._face(kind, style.reach, r)
            limit = max(2, min(limit, len(text)) - 1)
        raise PixWordError(f"no text of {height:.1f} pixels fits an image_size of {self.image_size}")

    def _worn(self, capitals: float, contrast: float, style: TextStyle, name: str, r: Random) -> TextCrop:
        """A worn crop whose capitals have a height."""
        em = em_for(capitals)
        for kind, text, face in self._drawn(capitals, style, r):
            form = spread(kind, text, r)
            wide, high = large_extent(face, text, em, form)
            scale = capitals / face.extent("H", em)[1]
            height, width = high * scale, wide * scale * stretched(r)
            if max(width, height) <= self.image_size - 2 * MARGIN:
                break
        framed = r.random() < 0.12 * style.wear
        neighbors = frame(capitals, r) if framed else ()
        if not framed and r.random() < style.clutter:
            neighbors = self._neighbors(capitals, width, r)
        ink, paper = _colors(contrast, r)
        size, left, top = cut(capitals, (height, width), self.image_size, neighbors, r)
        looks = replace(
            Looks(height, width, size, left, top, pick(r, KERNELS), ink, paper, neighbors=neighbors),
            **form, **worn_surface(capitals, style.distort, r),
        )  # fmt: skip
        return TextCrop(text, kind, face, contrast, looks, name)

    def _face(self, kind: str, reach: float, r: Random) -> Face:
        """A family of those within reach that have the kind's characters, and one of its faces."""
        families = self._marked if kind == "marks" else self._all
        faces = families[int(r.random() * max(1.0, reach * len(families)))]
        return faces[int(r.random() * max(1.0, reach * len(faces)))]

    def _neighbors(self, height: float, width: float, r: Random) -> tuple[tuple[str, str, float], ...]:
        """One or two intruders; all are cut by the edge, so that they cannot be taken for the text itself."""
        sides = [("left", "right")[int(r.random() * 2)], ("above", "below")[int(r.random() * 2)]]
        chosen = sides if r.random() < 0.3 else [pick(r, sides)]
        if self.image_size - width < GAP * height + MARGIN:  # no room to see one beside the text
            chosen = sides[1:]
        found = list[tuple[str, str, float]]()
        for side in chosen:
            beside = side in ("left", "right")
            count = 3 if beside else between(r, 6, 30)
            text = "" if r.random() < 0.25 else "".join(pick(r, LETTERS + "023456789") for _ in range(count))
            found.append((side, text, height * (0.4 + 0.4 * r.random() if beside else 0.2 + 0.3 * r.random())))
        return tuple(found)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        crop = self.crop(index)
        return [crop, crop.text]

    def render(self, index: int) -> tuple[np.ndarray, str, dict[str, Any]]:
        """Pixels uint8 ``[h, w, 3]``, what they say, and what is known of them."""
        crop = self.crop(index)
        return crop.draw(), crop.text, crop.facts()

    def faces_note(self) -> str:
        """The families that are drawn here, with the number of their faces, and those that are held out."""
        held_out = sorted({face.family for face in self.faces if face.held_out})
        drawn = ", ".join(f"{family} ({len(faces)})" for family, faces in self.families.items())
        return drawn if self.held_out else f"{drawn}; held out: {', '.join(held_out) or 'none'}"

    def texts(self) -> Iterator[str]:
        """Captions of full length."""
        start = self.style.curriculum
        return (self.crop(start + i).text for i in range(CAPTIONS))

    def digest(self) -> str:
        """See ``Source.digest``: the settings, the words, and the bytes of the faces."""
        faces = sorted(face.digest for face in self.faces)
        style = [VERSION, self.seed, self.held_out, self.style, self.image_size, self.strings.words_digest]
        tall = ["tall"] if self.style.heights[1] > _TALL else []
        return digest_of([*style, *faces, *([self.style.wear] if self.style.wear else []), *tall])


def _angle(r: Random) -> float:
    return (1 if r.random() < 0.5 else -1) * (0.5 + 2.0 * r.random())


def _place(
    height: float, width: float, image_size: int, slack: float, neighbors: Sequence[tuple[str, str, float]], r: Random
) -> tuple[tuple[int, int], float, float]:
    """Size of the crop ``(h, w)``, left and top of the ink box in it: margins at random, wider beside a neighbour."""
    margins, gaps = dict[str, float](), {side: gap for side, _, gap in neighbors}
    for side, least, most in (("left", MARGIN, 8), ("right", MARGIN, 8), ("above", 0.5, 4), ("below", 0.5, 4)):
        seen = height * (0.1 + 0.25 * r.random())  # of the neighbour
        margins[side] = gaps[side] + seen if side in gaps else least + slack * most * r.random()
    size = list[int]()
    for sides, ink in ((("above", "below"), height), (("left", "right"), width)):
        excess = margins[sides[0]] + margins[sides[1]] - (image_size - ink)
        for side in sorted(sides, key=gaps.__contains__):  # a neighbour stays in sight as long as it can
            kept = 0.0 if side in gaps else min(MARGIN, margins[side])
            taken = max(0.0, min(excess, margins[side] - kept))
            margins[side], excess = margins[side] - taken, excess - taken
        size.append(min(image_size, math.ceil(ink + margins[sides[0]] + margins[sides[1]] - 1e-9)))
    return (size[0], size[1]), margins["left"], margins["above"]


def _colors(contrast: float, r: Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ink and paper whose luma differs by ``contrast * 255``: dark on light, two times of three."""
    low = 255 * (1 - contrast) * r.random()
    chroma = (0.0, 12.0, 40.0, 160.0)[int(r.random() * 4)]  # levels by which colours may leave grey: mostly few
    pair = _tinted(low, chroma, r), _tinted(low + 255 * contrast, chroma, r)
    return pair if r.random() < 0.65 else pair[::-1]


def _tinted(luma: float, chroma: float, r: Random) -> tuple[int, int, int]:
    """A colour of a given luma, as far from grey as asked for where the range of levels allows."""
    if not chroma:
        return (round(luma),) * 3
    offset = [chroma * (2 * r.random() - 1) for _ in range(3)]
    mean = sum(weight * value for weight, value in zip(_LUMA, offset, strict=True))
    offset = [value - mean for value in offset]
    room = [(255 - luma) / o if o > 0 else luma / -o for o in offset if o]
    scale = min([1.0, *room])
    red, green, blue = (min(255, max(0, round(luma + scale * value))) for value in offset)
    return red, green, blue


def _damage(share: float, height: float, r: Random) -> dict[str, Any]:
    """Noise and its place, blur and JPEG of `Looks`."""
    noise = 1 + 8 * r.random() if r.random() < 0.4 * share else 0.0
    place = int(r.random() * NOISE)
    blur = min(0.8, 0.06 * height) * (0.4 + 0.6 * r.random()) if r.random() < 0.15 * share else 0.0
    jpeg = between(r, 50, 95) if r.random() < 0.08 * share else 0
    return {"noise": noise, "noise_at": place, "blur": blur, "jpeg": jpeg}
