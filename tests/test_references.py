"""Pictures and the references that name them: none leaves its folder unasked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_files import RED, png, refused, shown, write, write_zip

from mlx_pixword.common.errors import BadImage, PixWordError
from mlx_pixword.data.base import Picture
from mlx_pixword.data.pictures import FilePicture
from mlx_pixword.data.references import image_opener, parse_references, resolve_reference

ROOT = Path(__file__).parents[1]


def test_file_picture(tmp_path):
    picture = FilePicture(write(tmp_path / "a.png"))
    assert isinstance(picture, Picture)
    assert picture.name == str(tmp_path / "a.png")
    assert picture.rgb(3).shape == (2, 3, 3)


def test_cache_key_follows_path_size_and_time(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png")
    key = FilePicture(path).cache_key
    monkeypatch.chdir(tmp_path)
    assert FilePicture(path.relative_to(tmp_path)).cache_key == key
    os.utime(path, ns=(1, 1))
    touched = FilePicture(path).cache_key
    write(path, png(size=(60, 40)))
    os.utime(path, ns=(1, 1))
    assert len({key, touched, FilePicture(path).cache_key, FilePicture(write(tmp_path / "b.png")).cache_key}) == 4


@pytest.mark.parametrize(
    "name, reason", [("no.png", "file not found"), ("x" * 300, "cannot be read"), (".", "cannot be")]
)
def test_file_picture_that_cannot_be_read(tmp_path, name, reason):
    picture = FilePicture(tmp_path / name)
    assert name == "." or picture.cache_key is None
    with pytest.raises(BadImage, match=reason):
        picture.rgb(8)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", []),
        ("only text\n", ["only text\n"]),
        (" a <|image|> 1.png <|/image|>\nb", [" a ", ["1.png"], "\nb"]),
        ("<|image|>1<|/image|><|image|>2<|/image|>", [["1"], ["2"]]),
        ("<|text|><s>", ["<|text|><s>"]),
    ],
)
def test_parse_references(text, parts):
    assert parse_references(text, lambda reference: [reference]) == parts


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\n<|image|>1.png", r"line 2: <\|image\|> without <\|/image\|> after it"),
        ("a\n\n1.png<|/image|>", r"line 3: <\|/image\|> without <\|image\|> before it"),
        ("<|image|>a\n<|image|>b<|/image|>", r"line 2: <\|image\|> inside another"),
        ("<|image|> <|/image|>", "line 1: nothing between"),
    ],
)
def test_malformed_marks(text, message):
    refused(message, parse_references, text, str)


@pytest.mark.parametrize("reference", ["a.png", "./a.png", "sub/../a.png", "sub/link.png", "{root}/a.png"])
def test_references_inside_the_root(tmp_path, reference):
    write(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "link.png").symlink_to(tmp_path / "a.png")
    assert shown([resolve_reference(reference.format(root=tmp_path), tmp_path, False)]) == [RED]


@pytest.mark.parametrize("reference", ["../a.png", "sub/../../a.png", "{outside}/a.png", "link.png", "folder/a.png"])
def test_references_that_leave_the_root(tmp_path, reference):
    write(tmp_path / "a.png")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link.png").symlink_to(tmp_path / "a.png")
    (root / "folder").symlink_to(tmp_path)
    reference = reference.format(outside=tmp_path)
    refused(f"{reference}.*--allow-outside", resolve_reference, reference, root, False)
    assert shown([resolve_reference(reference, root, True)]) == [RED]


def test_reference_that_is_no_path(tmp_path):
    for allow_outside in (False, True):
        with pytest.raises(BadImage, match=r"^cannot be read: File name too long$"):
            resolve_reference("b" * 4000, tmp_path, allow_outside).rgb(8)
        refused("no usable path", resolve_reference, "a\0.png", tmp_path, allow_outside)
        refused("no usable path", resolve_reference, "\ud800.png", tmp_path, allow_outside)


def test_an_endless_reference_is_refused_at_once(tmp_path):
    text = "<|image|>" + "a/" * 2**22 + "<|/image|>"
    refused("8,388,608 characters is no usable path", parse_references, text, image_opener(tmp_path, False))
    archive = write_zip(tmp_path / "a.zip", {"a.png": png()})
    refused("8,388,608 characters is no usable path", parse_references, text, image_opener(archive, False))


# --- names as people have them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "sub\\a.png",
        ".\\sub\\a.png",
        "images/sub/a.png",
        "set/images/sub/a.png",
        "C:\\Users\\me\\set\\images\\sub\\a.png",
        "/elsewhere/images/sub/a.png",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_references_in_other_spellings(tmp_path, reference, kind):
    root = tmp_path / "set/images"
    write(root / "sub/a.png")
    archive = write_zip(tmp_path / "images.zip", {"sub/a.png": png()})
    assert shown([image_opener(root if kind == "folder" else archive, False)(reference)]) == [RED]


def test_images_beside_a_list_may_lie_in_images(tmp_path):
    write(tmp_path / "images/a.png")
    assert shown([resolve_reference("a.png", tmp_path, False)]) == [RED]
    archive = write_zip(tmp_path / "photos.zip", {"images/a.png": png(), "photos/b.png": png(), "c\\d.png": png()})
    assert shown([image_opener(archive, False)(name) for name in ("a.png", "b.png", "c/d.png")]) == [RED] * 3


@pytest.mark.parametrize(("stored", "written"), [("\xe9", "e\u0301"), ("e\u0301", "\xe9")])
def test_accents_are_found_either_way(tmp_path, stored, written):
    write(tmp_path / f"{stored}/{stored}.png")
    assert shown([resolve_reference(f"{written}/{written}.png", tmp_path, False)]) == [RED]
    archive = write_zip(tmp_path / "a.zip", {f"{stored}/{stored}.png": png()})
    assert shown([image_opener(archive, False)(f"{written}/{written}.png")]) == [RED]


def test_a_name_that_is_there_is_taken_as_it_is(tmp_path):
    write(tmp_path / "images/a\\b.png")
    write(tmp_path / "images/a/b.png", png("blue"))
    write(tmp_path / "images/images/c.png")
    write(tmp_path / "images/c.png", png("blue"))
    for name in ("a\\b.png", "images/c.png"):
        assert shown([resolve_reference(name, tmp_path / "images", False)]) == [RED]


@pytest.mark.parametrize(
    "reference", ["..\\a.png", "images/../../a.png", "images/link.png", "~/a.png", "x\\..\\..\\a.png"]
)
def test_no_spelling_leaves_the_root(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.png")
    root = tmp_path / "images"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "a.png")
    try:
        picture = resolve_reference(reference, root, False)
    except PixWordError as error:
        assert "--allow-outside" in str(error)
    else:
        with pytest.raises(BadImage, match="not found"):
            picture.rgb(8)
    archive = write_zip(tmp_path / "i.zip", {"a.png": png(), "x/a.png": png()})
    try:
        picture = image_opener(archive, False)("../" + reference)
    except PixWordError as error:
        assert "leaves" in str(error)
    else:
        with pytest.raises(BadImage, match="not in the archive"):
            picture.rgb(8)


ASCII = """
import sys
from pathlib import Path
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.data.sources import open_source
assert sys.getfilesystemencoding() == "ascii"
with Decoders() as decoders:
    for place in sys.argv[2:]:
        source = open_source(Path(sys.argv[1]) / place)
        for picture, text in map(source.parts, range(len(source))):
            print(ascii(text), decoders.rgb(picture, 64).shape)
"""


def test_a_locale_that_knows_no_accents(tmp_path):
    """As in a job that a timer starts: what lists say in UTF-8 is found on the disk."""
    for place in ("folder", "list"):
        write(tmp_path / place / "größe.png")
    write(tmp_path / "folder/metadata.jsonl", '{"file_name": "größe.png", "text": "é"}')
    write(tmp_path / "list/l.csv", "file_name,text\ngröße.png,é\n")
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", ASCII, str(tmp_path), "folder", "list/l.csv"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "'\\xe9' (4, 6, 3)\n" * 2, done.stderr
