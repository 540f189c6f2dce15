"""Worn text: what it looks like, what it leaves alone, and the kinds of strings that come with it."""

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.data import MORE_TEXT_KINDS, TEXT_KINDS, DataArgs
from mlx_pixword.data.fonts import MARKS, RAISED_DOT, bundled_faces
from mlx_pixword.data.strings import Strings
from mlx_pixword.data.text_images import TextCrop, TextSource, TextStyle
from mlx_pixword.data.text_pixels import Looks, draw_text
from mlx_pixword.data.text_wear import cut, worn_surface

STYLE = TextStyle((*TEXT_KINDS, *MORE_TEXT_KINDS), (3.0, 16.0), length=12, wear=1.0)


def crops(style: TextStyle, count: int, held_out: bool = False) -> list[TextCrop]:
    source = TextSource(1, held_out, style, 160)
    return [source.crop(n) for n in range(count)]


def test_text_is_as_before_where_nothing_is_worn() -> None:
    clean = replace(STYLE, wear=0.0)
    assert repr(clean) == repr(STYLE)  # the digest of older runs is made of it
    some = TextSource(1, style=replace(STYLE, wear=0.4), image_size=160)
    without, worn = TextSource(1, style=clean, image_size=160), TextSource(1, style=STYLE, image_size=160)
    assert len({some.digest(), without.digest(), worn.digest()}) == 3
    marks = [crop for crop in crops(clean, 400) if crop.looks.tracking or crop.looks.mottle or any(crop.looks.shade)]
    assert not marks and min(min(c.looks.left, c.looks.top) for c in crops(clean, 400)) > 0


def test_every_sort_of_wear_occurs_and_no_crop_is_longer_than_the_image_size() -> None:
    drawn = crops(STYLE, 1200)
    for name in ("tracking", "weight", "dot", "mottle", "angle", "blur", "noise", "jpeg", "neighbors"):
        share = np.mean([bool(getattr(crop.looks, name)) for crop in drawn])
        assert 0.02 < share < 0.6, name
    assert 0.2 < np.mean([any(crop.looks.shade) for crop in drawn]) < 0.4
    assert {crop.kind for crop in drawn} == set(STYLE.kinds)
    for crop in drawn[:400]:
        pixels = crop.rgb(160)
        assert pixels.shape == (*crop.looks.size, 3) and max(pixels.shape) <= 160 and min(pixels.shape[:2]) >= 2


def test_boxes_cut_close_and_into_the_ink_but_never_far() -> None:
    drawn = [crop.looks for crop in crops(replace(STYLE, clutter=0.0), 800) if not crop.looks.neighbors]
    right = [looks.size[1] - looks.left - looks.width for looks in drawn]
    margins = np.array([[looks.left, looks.top] for looks in drawn])
    assert 0.15 < np.mean(margins < 0) < 0.4  # a side in four cuts the ink
    assert 0.15 < np.mean(np.array(right) < 0) < 0.4
    assert margins.min() > -0.1 * 16 - 1e-6 and np.median(margins) < 4


def test_a_side_that_has_no_room_is_cut_to_the_image_size() -> None:
    for n in range(300):
        r = Random(n)
        ink = (12 * r.random() + 3, 60 * r.random() + 2)
        size, left, top = cut(10.0, ink, 64, (), r)
        assert max(size) <= 64 and left >= -1.0 and top >= -1.0
        assert left + ink[1] <= size[1] + 1.0 + 0.51 and top + ink[0] <= size[0] + 1.0 + 0.51


def test_heights_are_those_of_capitals() -> None:
    drawn = crops(replace(STYLE, heights=(10.0, 10.0), kinds=("common",)), 300)
    plain = [crop for crop in drawn if not (crop.looks.angle or crop.looks.weight)]
    low = [c.looks.height for c in plain if re.fullmatch(r"[acemnorsuvwxz]+", c.text)]
    tall = [c.looks.height for c in plain if re.fullmatch(r"[A-PR-Z]+", c.text)]
    assert low and tall and max(low) < 8.9 and abs(np.mean(tall) - 10) < 0.5


def test_a_raised_dot_stands_between_characters_and_is_no_part_of_the_text() -> None:
    face = bundled_faces()[0]
    looks = Looks(12.0, 60.0, (16, 64), 2.0, 2.0)
    ink = 255 - draw_text(face, "AW088A", replace(looks, dot=1))[..., 0]
    assert face.extent(f"A{RAISED_DOT}W088A", 64)[0] > face.extent("AW088A", 64)[0]
    stop, dot = face.glyph(".", 64), face.glyph(RAISED_DOT, 64)
    assert np.array_equal(stop.mask, dot.mask) and dot.top < stop.top and dot.advance == stop.advance
    assert not np.array_equal(ink, 255 - draw_text(face, "AW088A", looks)[..., 0])
    dotted = [crop for crop in crops(replace(STYLE, kinds=("registrations",)), 60) if crop.looks.dot]
    assert dotted and all(re.fullmatch(r"[A-Z][A-Z0-9]{4,6}", crop.text) for crop in dotted)


def test_light_tracking_weight_and_missing_ink_do_what_they_say() -> None:
    face, looks = bundled_faces()[0], Looks(12.0, 60.0, (16, 64), 2.0, 2.0, paper=(128, 128, 128))
    plain = draw_text(face, "7041", looks).astype(int)
    lit = draw_text(face, "7041", replace(looks, shade=(40.0, 0.0))).astype(int)
    assert (lit - plain)[:, 0].mean() < -15 and (lit - plain)[:, -1].mean() > 15
    broken = draw_text(face, "7041", replace(looks, mottle=0.7)).astype(int)
    assert (broken >= plain).all() and broken.mean() > plain.mean() + 1
    thick = draw_text(face, "7041", replace(looks, weight=0.06)).astype(int)
    assert thick.mean() < plain.mean() - 1
    assert face.extent("7041", 64, 5)[0] == face.extent("7041", 64)[0] + 15
    assert not any(worn_surface(8.0, 0.0, Random(1))[name] for name in ("mottle", "blur", "noise", "jpeg"))


def test_a_curriculum_begins_without_wear() -> None:
    source = TextSource(7, style=replace(STYLE, curriculum=1000), image_size=160)
    assert [source.style_at(n).wear for n in (0, 500, 1000)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("held_out", [False, True])
def test_marks_are_drawn_in_faces_that_have_them(held_out: bool) -> None:
    drawn = crops(replace(STYLE, kinds=("marks",)), 300, held_out)
    assert all(crop.face.has_marks for crop in drawn)
    assert set("".join(crop.text for crop in drawn)) & set(MARKS) >= set("()'%")
    lacking = [face for face in bundled_faces() if not face.has_marks and face.held_out == held_out]
    assert {face.name for face in lacking} == ({"cmss10 Regular"} if held_out else {"cmb10 Regular", "cmr10 Regular"})
    with pytest.raises(PixWordError, match="no face here has all of"):
        TextSource(1, held_out, replace(STYLE, kinds=("marks",)), 160, lacking)


def test_common_words_are_the_built_in_ones_whatever_list_is_given() -> None:
    drawn, r = Strings(["words", "common"], False, ["zyzzyva", "qwerty"]), Random(1)
    assert {drawn.draw("words", 10, r).lower() for _ in range(50)} <= {"zyzzyva", "qwerty"}
    assert "the" in {drawn.draw("common", 3, r).lower() for _ in range(500)}


def test_a_share_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(PixWordError, match=r"text_wear must lie in 0\.\.1, got 1.5"):
        DataArgs(text_wear=1.5)
