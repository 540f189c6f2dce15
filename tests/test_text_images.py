"""Built-in small text: seeded, split by string and by family of faces, at the height asked for, never scaled."""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.data import MORE_TEXT_KINDS, TEXT_KINDS, DataArgs
from mlx_pixword.data import strings
from mlx_pixword.data.base import Picture, Source
from mlx_pixword.data.fonts import CHARACTERS, EM, HELD_OUT, MARKS, Face, bundled_faces, family_of, find_faces
from mlx_pixword.data.open import data_notes, open_split
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.strings import Strings, reserved
from mlx_pixword.data.text_images import TextCrop, TextSource, TextStyle
from mlx_pixword.data.text_pixels import KERNELS, Looks, draw_text, em_for

CLEAN = TextStyle(contrast=(1.0, 1.0), clutter=0.0, distort=0.0)
LUMA = np.array([0.299, 0.587, 0.114])


def crops(source: TextSource, count: int) -> list[TextCrop]:
    return [source.crop(index) for index in range(count)]


def coverage(crop: TextCrop) -> np.ndarray:
    """How much of each pixel is ink, 0..1 ``[h, w]``, read off the colours of a clean crop."""
    ink, paper = np.array(crop.looks.ink), np.array(crop.looks.paper)
    return (crop.draw() - paper.astype(float)) @ (ink - paper) / ((ink - paper) @ (ink - paper))


def families(held: Sequence[TextCrop]) -> set[str]:
    return {crop.face.family for crop in held}


# --- faces ------------------------------------------------------------------------------------------------------------


def test_bundled_faces_have_every_character_and_are_split() -> None:
    faces = bundled_faces()
    assert len(faces) >= 19 and len({face.digest for face in faces}) == len(faces)
    trained = {face.family for face in faces if not face.held_out}
    assert {face.family for face in faces if face.held_out} == set(HELD_OUT) and len(HELD_OUT) >= 3
    assert len(trained) >= 5 and not trained & HELD_OUT
    for face in faces:
        shapes = {face.glyph(c, EM[0]).mask.tobytes() for c in CHARACTERS}
        assert len(shapes) > 0.9 * len(CHARACTERS), face.name


def test_composed_glyphs_are_what_pillow_draws_of_each() -> None:
    """One character alone has nothing to kern: its mask is Pillow's, wherever Pillow puts it."""
    for face in bundled_faces()[:6]:
        canvas = Image.new("L", (200, 200))
        ImageDraw.Draw(canvas).text((60, 60), "8", 255, face.font.font_variant(size=64))
        box = canvas.getbbox()
        assert box is not None
        mask = face.mask("8", 64)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        trimmed = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(trimmed, np.asarray(canvas.crop(box)))


def test_a_mask_is_as_large_as_its_extent_and_in_the_order_of_its_text() -> None:
    face = bundled_faces()[0]
    assert face.mask("1.-:9", 64).shape[::-1] == face.extent("1.-:9", 64)
    one, other = face.mask("1m", 64), face.mask("m1", 64)
    third = one.shape[1] // 3
    assert one[:, :third].mean() < other[:, :third].mean()


def test_faces_of_folders_are_added_and_what_is_no_text_is_named(tmp_path: Path) -> None:
    fonts = next(Path(face.font.path) for face in bundled_faces() if face.family == "stixgeneral").parent
    (tmp_path / "DejaVuSans.ttf").write_bytes((fonts / "DejaVuSans.ttf").read_bytes())  # one that is there already
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    for name in ("cmex10.ttf", "STIXNonUni.ttf", "LastResortHE-Regular.ttf", "cmti10.ttf"):
        (tmp_path / name).write_bytes((fonts / name).read_bytes())
    faces, unusable = find_faces([tmp_path])
    assert [face.name for face in faces[len(bundled_faces()) :]] == ["cmti10 Regular"]
    reasons = {Path(name).name: reason for name, reason in unusable}
    assert set(reasons) == {"broken.ttf", "STIXNonUni.ttf", "LastResortHE-Regular.ttf", "cmex10.ttf"}
    assert "one shape for many" in reasons["LastResortHE-Regular.ttf"] and "has no" in reasons["STIXNonUni.ttf"]


def test_a_design_under_two_names_stays_on_one_side() -> None:
    face = bundled_faces()[0]
    assert family_of("Arimo") == family_of("Liberation Sans Narrow") == family_of("Liberation Sans")
    assert family_of("DejaVu Sans Condensed") == face.family and family_of("Hack") == "dejavu sans mono"
    sides = {name: replace(face, family=name).held_out for name in ("lato", "open sans", "roboto", "inconsolata", "x")}
    assert {name for name, side in sides.items() if side} == {"roboto", "inconsolata"}  # for ever


def test_glyphs_are_drawn_larger_than_they_are_seen() -> None:
    assert [em_for(height) for height in (3, 4, 10.6, 10.7, 32, 33, 256)] == [32, 32, 32, 64, 96, 192, 768]


@pytest.mark.parametrize(("name", "problem"), [("nowhere", "no such folder"), ("empty", "no .ttf or .otf file")])
def test_a_folder_without_faces_is_refused(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PixWordError, match=rf"^--fonts .*{name}: .*{re.escape(problem)}"):
        find_faces([tmp_path / name])


# --- strings ----------------------------------------------------------------------------------------------------------

PATTERNS = {
    "numbers": r"\d{1,8}",
    "prices": r"\$?\d{1,3}(,?\d{3})*\.\d\d",
    "dates": r"\d{1,4}([/.-])\d\d?(\1\d{2,4})?",
    "times": r"\d{1,2}[:.]\d\d(:\d\d|am|pm)?",
    "codes": r"[A-Z0-9-]{3,9}",
    "words": r"[A-Za-z]{2,10}",
    "figures": r"[-:]?\d*([-./:,]\d{1,7})*-?",
    "prose": r"[A-Za-z]{1,11}([,.:-]|-[a-z]{1,10})",
    "common": r"[A-Za-z]{2,10}",
    "registrations": r"[A-Z][A-Z0-9]{4,6}",
    "marks": r"\S{1,10}",
}


@pytest.mark.parametrize("kind", [*TEXT_KINDS, *MORE_TEXT_KINDS])
@pytest.mark.parametrize("held_out", [False, True])
def test_strings_of_a_kind_look_like_it(kind: str, held_out: bool) -> None:
    drawn, r = Strings([kind], held_out), Random(1)
    for limit in (2, 4, 5, 8, 10):
        texts = {drawn.draw(kind, limit, r) for _ in range(200)}
        assert all(re.fullmatch(PATTERNS[kind], text) for text in texts), texts
        assert all(reserved(text) == held_out for text in texts)
        assert max(map(len, texts)) <= max(limit, len(drawn.shortest(kind)))
        assert set("".join(texts)) <= set(CHARACTERS) | (set(MARKS) if kind == "marks" else set())
        assert kind in ("words", "prose", "codes", "common", "registrations", "marks") or all(
            re.search(r"\d", text) for text in texts
        )


def test_words_stay_on_one_side_in_every_case(tmp_path: Path) -> None:
    assert len(strings.built_in_words()) > 900
    r = Random(2)
    drawn = [Strings(["words"], held_out) for held_out in (False, True)]
    sides = [{side.draw("words", 10, r).lower() for _ in range(4000)} for side in drawn]
    assert not sides[0] & sides[1] and len(sides[0]) > 700 and len(sides[1]) > 50
    (tmp_path / "own.txt").write_text("Zebra\n\nnaïve\nzoo's\nyak\n")
    assert strings.read_words(tmp_path / "own.txt") == (["Zebra", "yak"], 2)


# --- crops ------------------------------------------------------------------------------------------------------------


def test_a_crop_is_a_function_of_seed_and_index() -> None:
    first = [TextSource(5).render(n) for n in range(40)]
    again = TextSource(5)
    for n in reversed(range(40)):
        pixels, text, facts = again.render(n)
        assert (text, facts) == first[n][1:]
        np.testing.assert_array_equal(pixels, first[n][0])
    assert [TextSource(6).crop(n).text for n in range(40)] != [text for _, text, _ in first]


def test_threads_draw_the_same_crops() -> None:
    faces = tuple(Face(f.name, f.family, f.digest, f.font) for f in bundled_faces())  # whose glyphs are not drawn yet
    source, alone = TextSource(7, faces=faces), TextSource(7)
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda n: source.crop(n).draw(), range(200)))
    assert all(np.array_equal(pixels, alone.crop(n).draw()) for n, pixels in enumerate(drawn))


def test_sides_share_neither_strings_nor_families() -> None:
    sides = [crops(TextSource(1, held_out), 1500) for held_out in (False, True)]
    texts = [{crop.text.lower() for crop in side} for side in sides]
    assert not texts[0] & texts[1] and min(map(len, texts)) > 700
    assert not families(sides[0]) & families(sides[1]) and families(sides[1]) == HELD_OUT
    assert all(reserved(text) for text in texts[1]) and not any(map(reserved, texts[0]))


def test_all_kinds_faces_and_looks_occur() -> None:
    drawn = crops(TextSource(2, image_size=160), 1500)
    assert set(Counter(crop.kind for crop in drawn)) == set(TEXT_KINDS)
    assert len({crop.face.name for crop in drawn}) == sum(not face.held_out for face in bundled_faces())
    assert {crop.looks.kernel for crop in drawn} == set(KERNELS)
    for name in ("angle", "noise", "blur", "jpeg", "neighbors"):
        share = np.mean([bool(getattr(crop.looks, name)) for crop in drawn])
        assert 0.03 < share < 0.5, name
    heights = np.log2([crop.looks.height for crop in drawn])
    counts, _ = np.histogram(heights, bins=3, range=(2, 5))
    assert counts.sum() == len(drawn) and counts.min() > 0.28 * len(drawn)
    for place in ("left", "top"):
        phases, _ = np.histogram([getattr(crop.looks, place) % 4 for crop in drawn], 8, (0, 4))
        assert phases.min() > 0.07 * len(drawn), place


@pytest.mark.parametrize("height", [4, 5, 6, 7, 8, 10, 12, 16, 24, 32])
@pytest.mark.parametrize("turned", [False, True])
def test_ink_is_as_high_as_asked_for(height: int, turned: bool) -> None:
    source = TextSource(3, style=replace(CLEAN, heights=(height, height)), image_size=400)
    for crop in crops(source, 60):
        crop = replace(crop, looks=replace(crop.looks, angle=2.0 * turned))
        ink = coverage(crop)
        rows = np.flatnonzero(ink.max(1) > 0.3 * ink.max())
        assert abs(rows[-1] - rows[0] + 1 - height) <= 1, (crop.text, crop.face.name)
        assert rows[0] == pytest.approx(crop.looks.top, abs=1.01)
        columns = np.flatnonzero(ink.max(0) > 0.3 * ink.max())
        assert abs(columns[-1] - columns[0] + 1 - crop.looks.width) <= 2, (crop.text, crop.face.name)


def test_a_shift_of_the_phase_shifts_the_ink() -> None:
    face = bundled_faces()[0]
    looks = Looks(8.0, 30.0, (14, 44), 3.0, 2.0, kernel="bilinear")
    centres = []
    for shift in (0.0, 0.25, 0.5, 1.0):
        ink = 255.0 - draw_text(face, "4096", replace(looks, left=3.0 + shift, top=2.0 + shift))[..., 0]
        centres.append([(ink.sum(axis) @ np.arange(ink.shape[1 - axis])) / ink.sum() for axis in (0, 1)])
    moved = np.array(centres) - centres[0]
    np.testing.assert_allclose(moved, np.array([0.0, 0.25, 0.5, 1.0])[:, None].repeat(2, 1), atol=0.03)


@pytest.mark.parametrize("image_size", [64, 96, 200])
def test_no_crop_is_longer_than_the_image_size_and_the_ink_lies_inside(image_size: int) -> None:
    for held_out in (False, True):
        for crop in crops(TextSource(4, held_out, image_size=image_size), 500):
            pixels, looks = crop.rgb(image_size), crop.looks
            assert pixels.shape == (*looks.size, 3) and pixels.dtype == np.uint8 and max(looks.size) <= image_size
            assert looks.left >= 0 and looks.left + looks.width <= looks.size[1] + 1e-6
            assert looks.top >= 0 and looks.top + looks.height <= looks.size[0] + 1e-6
    with pytest.raises(PixWordError, match="laid out for a larger image_size"):
        crop.rgb(8)


@pytest.mark.parametrize("contrast", [0.1, 0.3, 1.0])
def test_contrast_is_honoured(contrast: float) -> None:
    drawn = crops(TextSource(5, style=replace(CLEAN, contrast=(contrast, contrast), heights=(16, 16))), 100)
    for crop in drawn:
        difference = abs((np.array(crop.looks.ink) - np.array(crop.looks.paper)) @ LUMA)
        assert difference == pytest.approx(255 * contrast, abs=1.2)
        levels = crop.draw() @ LUMA
        assert np.ptp(levels) > 0.7 * 255 * contrast
    dark = np.mean([sum(crop.looks.ink) < sum(crop.looks.paper) for crop in drawn])
    assert 0.5 < dark < 0.85


def test_neighbours_are_cut_by_the_edge_and_leave_the_text_alone() -> None:
    style = replace(CLEAN, heights=(10, 10))
    for crop in crops(TextSource(6, style=replace(style, clutter=1.0), image_size=120), 150):
        alone = replace(crop, looks=replace(crop.looks, neighbors=()))
        added = coverage(crop) - coverage(alone)
        assert added.max() > 0.1, crop
        looks = crop.looks
        rows = slice(round(looks.top), round(looks.top + looks.height))
        columns = slice(round(looks.left), round(looks.left + looks.width))
        assert np.abs(added[rows, columns]).max() < 0.2, crop
        border = np.concatenate([added[0], added[-1], added[:, 0], added[:, -1]])
        assert border.max() > 0.1, crop


def test_a_curriculum_goes_from_one_plain_face_to_everything() -> None:
    style = TextStyle(curriculum=1000, length=8)
    source = TextSource(7, style=style, image_size=300)
    lengths = [source.style_at(n).length for n in (0, 83, 84, 500, 999, 1000, 10**9)]
    assert lengths == [2, 2, 3, 5, 8, 8, 8] and source.style_at(1000) == style
    assert max(len(source.crop(n).text) for n in range(80)) == 2
    assert max(len(source.crop(n).text) for n in range(1000, 1100)) == 8
    only_dates = TextSource(7, style=replace(style, kinds=("dates",)), image_size=300)
    assert {len(only_dates.crop(n).text) for n in range(50)} == {5}
    first, half = ([source.crop(n) for n in range(start, start + 60)] for start in (0, 500))
    everything = [source.crop(n) for n in range(1000, 1400)]
    assert {crop.face.name for crop in first} == {source.families["dejavu sans"][0].name}
    assert min(crop.contrast for crop in first) > 0.93 and min(crop.looks.height for crop in first) > 16
    assert not any(crop.looks.noise or crop.looks.neighbors for crop in first[:5])
    faces = [len({crop.face.name for crop in some}) for some in (half, everything)]
    assert 3 < faces[0] < faces[1] and faces[1] == sum(len(family) for family in source.families.values())
    assert min(crop.looks.height for crop in half) > 6 > min(crop.looks.height for crop in everything)


# --- mistakes, and what a run knows of its text -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"text_kinds": "numbers,poems"}, "text_kinds must be some of numbers.*got 'numbers,poems'"),
        ({"text_kinds": ""}, "text_kinds must be some of"),
        ({"text_heights": "12-4"}, "text_heights must lie in 3..256, the lower first, got 12-4"),
        ({"text_heights": "tall"}, "text_heights must be two numbers such as 4-32"),
        ({"text_heights": "nan"}, "text_heights must lie in"),
        ({"text_heights": "4-"}, "text_heights must be two numbers"),
        ({"text_contrast": "0-1"}, "text_contrast must lie in"),
        ({"text_length": 1}, "text_length must be at least 2"),
        ({"text_curriculum": -1}, "text_curriculum not negative"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict[str, object], problem: str) -> None:
    with pytest.raises(PixWordError, match=problem):
        DataArgs(**wrong)  # type: ignore[arg-type]


def test_an_image_size_too_small_for_the_heights_is_refused_with_what_is_needed() -> None:
    style = TextStyle(kinds=("dates",), heights=(4, 32))
    with pytest.raises(PixWordError, match="needs an image_size of at least") as error:
        TextSource(0, style=style, image_size=64)
    need = int(re.findall(r"least (\d+)", str(error.value))[0])
    source = TextSource(0, style=replace(style, heights=(32, 32)), image_size=need)
    assert all(max(crop.looks.size) <= need for crop in crops(source, 100))


def test_the_identity_depends_on_everything_that_is_drawn(tmp_path: Path) -> None:
    fonts = Path(bundled_faces()[0].font.path).parent
    (tmp_path / "cmti10.ttf").write_bytes((fonts / "cmti10.ttf").read_bytes())
    (tmp_path / "words.txt").write_text("\n".join(f"word{n}" for n in range(50)))

    def digest(seed: int = 1, image_size: int = 64, **settings: object) -> str:
        args = DataArgs(data=["text"], **settings)  # type: ignore[arg-type]
        return open_split(args, seed, 8, image_size).train[0].digest()

    digests = [
        digest(), digest(2), digest(image_size=96), digest(text_kinds="numbers"), digest(text_heights="4-16"),
        digest(text_contrast="0.5-1"), digest(text_wear=0.5), digest(text_length=6), digest(text_curriculum=9),
        digest(fonts=[str(tmp_path)]), digest(text_words=tmp_path / "words.txt"),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests) and digest() == digests[0]


def test_built_in_sources_take_turns() -> None:
    split = open_split(DataArgs(data=["plates", "text"]), 3, 10)
    (mixed,), (held,) = split.train, split.heldout
    assert mixed.name == "built-in plates and built-in text" and mixed.endless and mixed.captioned
    plate, text = mixed.parts(8)
    assert isinstance(plate, Picture) and plate == PlateSource(3).plate(4) and text == plate.text
    assert mixed.parts(9)[1] == TextSource(3).crop(4).text and reserved(str(held.parts(9)[1]))
    assert mixed.digest() != open_split(DataArgs(data=["text", "plates"]), 3, 10).train[0].digest()
    assert len(list(mixed.texts())) > 2000
    (note,) = data_notes(split.train)
    trained, held_out = note.split("; held out: ")
    assert trained.startswith("fonts    ") and "dejavu serif (4)" in trained and "stix" not in trained
    assert held_out == "computer modern sans, computer modern typewriter, stixgeneral"
    with pytest.raises(PixWordError, match=r"text is built in and endless.*\./text for a folder"):
        open_split(DataArgs(data=["text", "photos"]), 3, 10)


def test_text_is_a_source_of_images_with_what_they_say() -> None:
    source: Source = TextSource(0)
    picture, text = source.parts(7)
    assert isinstance(picture, Picture) and isinstance(text, str) and picture.cache_key is None
    assert text == TextSource(0).crop(7).text and len(list(source.texts())) == 2000
    with pytest.raises(TypeError, match="endless"):
        len(source)
