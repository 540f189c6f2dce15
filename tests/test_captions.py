"""Captions beside images, in folders and archives, and WebDataset's keys."""

import json

import pytest
from source_files import BLUE, RED, png, refused, shown, write, write_tar, write_zip

from mlx_pixword.data.captions import ELSEWHERE, FURTHER, pair
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source


@pytest.fixture(params=["folder", "zip", "tar"])
def place(request, tmp_path):
    """Puts files into a folder or an archive, and opens it."""

    def put(members):
        members = {name: m if isinstance(m, bytes) else m.encode() for name, m in members.items()}
        if request.param == "folder":
            for name, content in members.items():
                write(tmp_path / "d" / name, content)
            return open_source(tmp_path / "d")
        path = tmp_path / f"a.{request.param}"
        return open_source((write_zip if request.param == "zip" else write_tar)(path, members))

    return put


def test_captions_beside_images(place):
    source = place(
        {
            "00.png": png(), "00.txt": "zero\n", "b/01.PNG": png("blue"), "b/01.TXT": "\ufeffone é",
            "02.png": png(), "03.png": png(), "03.png.txt": "three", "notes.txt": "words",
            "04.png": png(), "04.caption": "4",
        }
    )  # fmt: skip
    documents = [shown(source.parts(n)) for n in range(len(source))]
    assert documents == [[RED, "zero"], [RED], [RED, "three"], [RED, "4"], [BLUE, "one é"]]
    assert source.captioned and list(source.texts()) == ["zero", "three", "4", "one é"]
    assert [(name.rpartition("/")[2].rpartition(":")[2], why) for name, why in source.unusable] == [
        ("notes.txt", "not an image")
    ]


def test_webdataset(place):
    members = {}
    for n, color in enumerate(("red", "blue")):
        members |= {f"s/{n:03}.jpg": png(color), f"s/{n:03}.seg.png": png(), f"s/{n:03}.txt": f"caption {n}"}
        members |= {f"s/{n:03}.json": json.dumps({"n": n}), f"s/{n:03}.cls": str(n)}
    source = place(members)
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, "caption 0"], [BLUE, "caption 1"]]
    assert sorted(why for _, why in source.unusable) == [FURTHER] * 2 + ["not an image"] * 4


@pytest.mark.parametrize(
    "sidecars, captions",
    [
        ({"0.json": '{"caption": "zero"}', "1.json": '{"text": "one "}'}, ["zero", "one"]),
        ({"0.cls": "7\n", "1.cls": "8"}, ["7", "8"]),
        ({"0.json": '{"caption": "json"}', "0.txt": "text", "1.cls": "1", "1.txt": "one"}, ["text", "one"]),
        ({"0.json": '{"id": 3}', "1.json": "[]"}, []),
        ({"0.gt.txt": "truth\n", "0.txt": "what was read", "1.gt.txt": "one"}, ["truth", "one"]),
        ({"0.json": '{"captions": ["zero"]}', "1.json": '{"caption": ["one"]}'}, ["zero", "one"]),
        ({"0.json": '{"caption": ["a", "b"]}', "0.txt": "zero", "1.txt": "one"}, ["zero", "one"]),
        ({"0.txt": "zer\u00f6".encode("utf-16"), "1.txt": "one"}, ["zer\u00f6", "one"]),
    ],
)
def test_which_file_holds_the_caption(place, sidecars, captions):
    source = place({"0.png": png(), "1.png": png()} | sidecars)
    assert list(source.texts()) == captions and len(source) == 2
    assert source.captioned == bool(captions)


def test_ground_truth_of_binarised_lines(place):
    source = place({"0.bin.png": png(), "0.gt.txt": "zero", "1.nrm.png": png("blue"), "1.gt.txt": "one"})
    assert [shown(source.parts(n)) for n in range(2)] == [[RED, "zero"], [BLUE, "one"]] and not source.unusable


def test_conversations_beside_images(place):
    turns = [{"from": "human", "value": "See <image>?"}, {"from": "gpt", "value": "yes"}]
    source = place({"0.png": png(), "0.json": json.dumps({"conversations": turns})})
    assert shown(source.parts(0)) == ["See ", RED, "?\nyes"] and list(source.texts()) == ["See ", "?\nyes"]


def test_several_captions_in_a_file_are_refused_where_they_would_be_lost(tmp_path):
    members = {"0.png": png(), "0.json": json.dumps({"captions": ["a", "b"]}).encode()}
    refused("0.json holds several captions, and", open_source, write_tar(tmp_path / "a.tar", members))


def test_texts_in_a_folder_of_their_own_are_said_to_be_no_captions(place):
    source = place({"images/0.png": png(), "images/1.png": png(), "labels/0.txt": "zero", "labels/1.txt": "one"})
    assert list(source.texts()) == [] and len(source) == 2
    assert left_out([source]).startswith("; left out: 2 .txt; ") and left_out([source]).count(ELSEWHERE) == 1


def test_several_images_of_a_key_without_one_of_its_own(place):
    source = place({"7.left.png": png(), "7.right.png": png("blue"), "7.txt": "a pair", "8.v2.png": png()})
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, BLUE, "a pair"], [RED]]


def test_names_with_dots_are_images_of_their_own_where_nothing_says_otherwise(tmp_path):
    members = {"a.png": png(), "a.b.png": png(), "v1.2.png": png()}
    source = open_source(write_zip(tmp_path / "a.zip", members))
    assert len(source) == 3 and source.unusable == []
    source = open_source(write_tar(tmp_path / "a.tar", members))  # WebDataset's rule
    assert len(source) == 2 and [why for _, why in source.unusable] == [FURTHER]


def test_accents_written_in_two_ways_belong_together(place):
    source = place({"u\u0308.png": png(), "\xfc.txt": "umlaut"})
    assert shown(source.parts(0)) == [RED, "umlaut"]


def test_windows_separators_in_archives(tmp_path):
    source = open_source(
        write_zip(tmp_path / "a.zip", {"b\\0.png": png(), "b\\0.txt": b"zero", "b\\.hidden.png": png()})
    )
    assert shown(source.parts(0)) == [RED, "zero"] and len(source) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("1.txt", b"caf\xe9", "caption 1.txt: not valid UTF-8 at byte 3"),
        ("1.txt", "one".encode("utf-16-le"), "caption 1.txt: not valid UTF-8 at byte 1, a zero"),
        ("1.json", b"{", "caption 1.json: not valid JSON"),
        ("1.json", b'{"x": 1}', "caption 1.json: holds no text or caption"),
    ],
)
def test_captions_that_cannot_be_read_are_named(place, name, content, message):
    other = {"0.json": '{"text": "zero"}'} if name == "1.json" else {"0.txt": "zero"}
    source = place({"0.png": png(), "1.png": png(), name: content} | other)
    assert shown(source.parts(0)) == [RED, "zero"]
    refused(message, source.parts, 1)


def test_digests_follow_captions(tmp_path):
    def digest(**texts):
        for name, text in texts.items():
            write(tmp_path / f"{name}.txt", text)
        return open_source(tmp_path).digest()

    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    without, one, longer, two = digest(), digest(a="x"), digest(a="xx"), digest(b="y")
    assert len({without, one, longer, two}) == 4


def test_texts_with_references_are_documents_and_no_captions(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "a.txt", "see <|image|>a.png<|/image|>")
    source = open_source(tmp_path)
    assert shown(source.parts(0)) == ["see ", RED] and len(source) == 1


@pytest.mark.parametrize("document", ["b.txt", "notes/c.txt"])
def test_captions_and_texts_with_references_in_one_folder_are_refused(tmp_path, document):
    """As texts the captions would lose their images, as captions the texts would lose theirs, both in silence."""
    for name in ("a.png", "b.png"):
        write(tmp_path / name)
    write(tmp_path / "a.txt", "a caption")
    write(tmp_path / document, "see <|image|>b.png<|/image|>")
    refused(f"both captions beside images, such as a.txt, and texts .* such as {document}; give", open_source, tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "other.txt")  # the name of no image
    assert len(open_source(tmp_path)) == 2


def test_the_only_text_of_a_key_is_its_caption_in_webdatasets(tmp_path):
    members = {
        "1.image.png": png(), "1.caption.txt": b"one", "2.png": png("blue"), "2.text.txt": b"two",
        "3.png": png(), "3.good.txt": b"yes", "3.bad.txt": b"no", "4.png": png(), "4.txt": b"four", "4.note.txt": b"-",
    }  # fmt: skip
    source = open_source(write_tar(tmp_path / "w.tar", members))
    assert [shown(source.parts(n)) for n in range(4)] == [[RED, "one"], [BLUE, "two"], [RED], [RED, "four"]]
    left = [name.rpartition(":")[2] for name, _ in source.unusable]
    assert left == ["3.bad.txt", "3.good.txt", "4.note.txt"]


def test_only_looked_for_beside_images():
    read = dict.fromkeys(["a.txt", "b/a.txt"], b"x")
    samples = pair(["a.txt", "b/a.png", "b/a.txt"], read.__getitem__)
    assert (samples.images, samples.captions) == (["b/a.png"], {"b/a.png": "b/a.txt"})
    assert [name for name, _ in samples.unusable] == ["a.txt"]
