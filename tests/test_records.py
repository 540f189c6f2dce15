"""JSON records: every line or element is a document, and a malformed one is named."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from source_files import (
    BLUE,
    RED,
    REFERENCE,
    png,
    refused,
    shown,
    write,
    write_chat,
    write_tar,
    write_zip,
)

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import base, records
from mlx_pixword.data.base import is_captioned
from mlx_pixword.data.sources import open_source


def test_json_lines_of_captions(tmp_path):
    write(tmp_path / "img/a.png")
    lines = [
        '{"image": "img/a.png", "caption": "a <|image|> é"}',
        "",
        '{"caption": "b", "image": "img/a.png", "id": 1}',
    ]
    source = open_source(write(tmp_path / "c.jsonl", "\n".join(lines)))
    assert source.captioned and len(source) == 2
    assert [shown(source.parts(i)) for i in range(2)] == [[RED, "a <|image|> é"], [RED, "b"]]
    assert list(source.texts()) == ["a <|image|> é", "b"]


def test_json_lines_of_texts_and_captions(tmp_path):
    write(tmp_path / "img/a.png")
    lines = [{"text": "é " + REFERENCE.format("a.png")}, {"image": "a.png", "caption": "c"}, {"text": "plain"}]
    path = write(tmp_path / "c.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\n")
    source = open_source(path, tmp_path / "img")
    assert [is_captioned(source, source.parts(i)) for i in range(3)] == [False, True, False]
    assert [shown(source.parts(i)) for i in range(3)] == [["é ", RED], [RED, "c"], ["plain"]]
    assert source.parts(-1) == ["plain"]
    with pytest.raises(IndexError):
        source.parts(3)


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'["text"]', "expected a JSON object"),
        (b'{"text": 3}', "expected .*got {'text': int}"),
        (b'{"image": "a.png"}', "expected"),
        (b'{"image": "a.png", "caption": "b", "text": "c"}', "expected"),
        (b'{"text": "<|image|>a"}', "line 1: .*without"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply|got"),
        (b'{"text": ' + b"1" * 5000 + b"}", "a number in the JSON is too long"),
    ],
)
def test_malformed_line(tmp_path, line, message):
    path = write(tmp_path / "c.jsonl", b'{"text": "a"}\n\n' + line + b"\n")
    refused(f"c.jsonl, line 3: .*{message}", open_source, path)


def test_json_line_that_leaves_the_root(tmp_path):
    path = write(tmp_path / "c.jsonl", '\n{"image": "../a.png", "caption": "b"}')
    refused(r"c.jsonl, line 2: .*'\.\./a.png'.*--allow-outside", open_source(path).parts, 0)
    with pytest.raises(BadImage, match="not found"):
        open_source(path, None, True).parts(0)[0].rgb(8)


@pytest.mark.parametrize(
    "place", ["images.zip", "folder in images.zip", "images", "beside", "argument", "zip argument"]
)
@pytest.mark.parametrize("file", ["chat.json", ""])
def test_llava(tmp_path, place, file):
    folder, images = tmp_path / "llava", None
    write_chat(folder / "chat.json", [("a.png", "olive é", "oil"), ("b.png", 'a "quoted" ]}, brace')])
    if "zip" in place:
        prefix = "images/" if "folder" in place else ""
        images = write_zip(folder / "images.zip", {f"{prefix}a.png": png(), f"{prefix}b.png": png("blue")})
    else:
        images = {"images": folder / "images", "beside": folder, "argument": tmp_path / "other"}[place]
        write(images / "a.png")
        write(images / "b.png", png("blue"))
    source = open_source(folder / file, images if "argument" in place else None)
    assert source.captioned and len(source) == 2
    assert [shown(source.parts(i)) for i in range(2)] == [[RED, "olive é oil"], [BLUE, 'a "quoted" ]}, brace']]
    assert list(source.texts()) == ["olive é oil", 'a "quoted" ]}, brace']


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_llava_in_small_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    documents = [(f"{i}.png", f'é {i} \\ " [{{' * i) for i in range(1, 30)]
    path = write_chat(tmp_path / "chat.json", documents)
    write(path, b"\xef\xbb\xbf \n" + json.dumps(json.loads(path.read_bytes()), indent=1, ensure_ascii=False).encode())
    assert list(open_source(path).texts()) == [caption for _, caption in documents]


@pytest.mark.parametrize("reference", ["../a.png", "/a.png"])
def test_llava_reference_that_leaves_the_archive(tmp_path, reference):
    write_zip(tmp_path / "images.zip", {"a.png": png()})
    source = open_source(write_chat(tmp_path / "chat.json", [("a.png", "x"), (reference, "y")]))
    refused(f"chat.json, record 2: .*{reference}.*leaves", source.parts, 1)


def test_llava_image_that_is_missing(tmp_path):
    write_zip(tmp_path / "images.zip", {"a.png": png()})
    picture = open_source(write_chat(tmp_path / "chat.json", [("b.png", "x")])).parts(0)[0]
    assert picture.name.endswith("images.zip:b.png")
    with pytest.raises(BadImage, match="not in the archive"):
        picture.rgb(8)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "chat.json holds no documents"),
        ("", "no JSON array of records: record 1"),
        ('{"image": "a"}', "expected an array of records, COCO's .*got an object of 'image'"),
        ('[{"image": "a.png", "conver', "record 1, after byte 0, is malformed or cut short"),
        ('[{"image": "a.png"}]', "record 1: expected"),
        ('[{"image": "a.png", "conversations": [{"from": "human", "value": "x"}]}]', "record 1: expected"),
        ('[{"image": 1, "conversations": [{"from": "gpt", "value": "x"}]}]', "record 1: expected"),
        ("[1, 2]", "record 1: expected a JSON object"),
    ],
)
def test_malformed_chat(tmp_path, content, message):
    refused(message, open_source, write(tmp_path / "chat.json", content))


def test_search_for_the_end_of_a_record_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 10)
    monkeypatch.setattr(records, "_LONGEST", 50)
    refused("record 1.*malformed", open_source, write(tmp_path / "chat.json", '[{"image" ' + "x" * 10_000))


def test_sources_can_be_read_from_threads(tmp_path):
    lines = [{"image": f"{i}.png", "caption": str(i)} for i in range(50)]
    for i in range(50):
        write(tmp_path / f"{i}.png", png((i, 0, 0)))
    source = open_source(write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    with ThreadPoolExecutor(8) as pool:
        documents = list(pool.map(lambda i: shown(source.parts(i)), np.tile(np.arange(50), 4)))
    assert documents == [[(i, 0, 0), str(i)] for i in range(50)] * 4


def test_a_line_that_is_too_long_is_named_and_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(base, "MAX_TEXT_BYTES", 100)
    lines = ['{"text": "short"}', '{"text": "' + "long " * 100_000 + '"}']
    path = write(tmp_path / "c.jsonl", "\n".join(lines))
    refused(r"c\.jsonl, line 2: 101 bytes are too many for one document, the limit is 100; split it", open_source, path)


# --- keys as people name them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"image": "a.png", "text": "t"}, [RED, "t"]),
        ({"file_name": "a.png", "caption": "t", "width": 3, "url": "http://x/a.jpg"}, [RED, "t"]),
        ({"images": ["a.png", "b.png"], "text": "t"}, [RED, BLUE, "t"]),
        ({"images": ["a.png", "b.png"], "text": "<image> and <image>."}, [RED, " and ", BLUE, "."]),
        ({"image": ["a.png"], "caption": "see <image> here"}, ["see ", RED, " here"]),
        ({"image": {"path": "a.png", "bytes": None}, "text": "t"}, [RED, "t"]),
        ({"image": "a.png", "label": 7}, [RED, "7"]),
        ({"image": "a.png", "text": 47}, [RED, "47"]),
        ({"img_path": "a.png", "transcript": "t", "url": "http://x/a.jpg"}, [RED, "t"]),
        ({"image": " a.png", "text": "t"}, [RED, "t"]),
        ({"image": "%61.png", "text": "t"}, [RED, "t"]),
        ({"image": "a.png", "words": "w", "text": "t"}, [RED, "t"]),
        ({"image": None, "text": "no image"}, ["no image"]),
        ({"images": [], "text": "no image"}, ["no image"]),
        ({"image": "a.png", "text": ""}, [RED]),
        ({"image": "a.png", "file_name": "a.png", "text": "t"}, [RED, "t"]),
    ],
)
def test_keys_that_are_known(tmp_path, record, expected):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", png("blue"))
    source = open_source(write(tmp_path / "c.jsonl", json.dumps(record)))
    assert shown(source.parts(0)) == expected
    assert list(source.texts()) == [part for part in expected if isinstance(part, str)]


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"picture": "a.png", "text": "t"},
            "the key 'picture' looks like an image, 'a.png'; images are read from image,",
        ),
        ({"image": "a.png", "mask": "b.png", "text": "t"}, "the key 'mask' looks like an image"),
        ({"url": "http://x/a.jpg", "caption": "t"}, "the key 'url' looks like an image"),
        ({"photo": {"bytes": "x", "path": "y"}, "text": "t"}, "the key 'photo' looks like an image"),
        ({"image": "a.png", "file_name": "b.png", "text": "t"}, "image and file_name name different images"),
        ({"images": ["a.png", "b.png"], "text": "one <image>"}, "1 <image> marks for 2 images"),
        ({"images": ["a.png", 3], "text": "t"}, "expected paths of images"),
    ],
)
def test_keys_that_are_refused(tmp_path, record, message):
    refused(f"c.jsonl, line 1: .*{message}", open_source, write(tmp_path / "c.jsonl", json.dumps(record)))


def turns(*texts):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def test_conversations_with_no_image_one_and_several(tmp_path):
    write(tmp_path / "images/a.png")
    write(tmp_path / "images/b.png", png("blue"))
    records = [
        {"image": "a.png", "conversations": turns("<image>\nWhat?", "red")},
        {"conversations": turns("hi", "hello")},
        {"image": ["a.png", "b.png"], "conversations": turns("First <image>, then <image>?", "red and blue")},
        {"image": "a.png", "conversations": turns("<image>\nWhat?", "red", "And?", "no more")},
        {"images": ["b.png"], "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "blue"}]},
        {"image": "a.png", "text": "a caption among them"},
    ]
    expected = [
        [RED, "red"],
        ["hi\nhello"],
        ["First ", RED, ", then ", BLUE, "?\nred and blue"],
        [RED, "\nWhat?\nred\nAnd?\nno more"],
        [BLUE, "blue"],
        [RED, "a caption among them"],
    ]
    source = open_source(write(tmp_path / "chat.json", json.dumps(records)))
    assert [shown(source.parts(n)) for n in range(6)] == expected
    kept = open_source(write(tmp_path / "mix.json", json.dumps(records)))  # questions matter outside LLaVA-CC3M
    assert shown(kept.parts(0)) == [RED, "\nWhat?\nred"] and shown(kept.parts(4)) == [BLUE, "?\nblue"]
    assert [shown(kept.parts(n)) for n in (1, 2, 3, 5)] == [expected[n] for n in (1, 2, 3, 5)]
    lines = open_source(write(tmp_path / "images/chat.jsonl", "\n".join(map(json.dumps, records))))
    assert [shown(lines.parts(n)) for n in range(6)] == [shown(kept.parts(n)) for n in range(6)]


def test_conversations_of_texts_and_images_in_turn(tmp_path):
    """As chat templates have them, and as Idefics' data (``texts``)."""
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", png("blue"))
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    ask = {"type": "text", "text": "and?"}
    records = [
        {"messages": [{"role": "user", "content": [{"type": "image"}, ask]}, answer], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": [ask, {"type": "image", "image": "b.png"}]}, answer]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}, answer]},
        {"image": "b.png", "texts": [{"user": "q", "assistant": "a"}, {"user": "r", "assistant": "b"}]},
    ]
    source = open_source(write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, records))))
    expected = [[RED, "and?\nred"], ["and?", BLUE, "\nred"], [RED, "\nred"], [BLUE, "q\na\nr\nb"]]
    assert [shown(source.parts(n)) for n in range(4)] == expected
    records[0]["messages"][0]["content"][1] = {"type": "video", "video": "a.mp4"}
    refused('line 1: expected "image" and', open_source, write(tmp_path / "d.jsonl", json.dumps(records[0])))


@pytest.mark.parametrize("key", ["text", "caption", "label"])
def test_an_image_whose_text_is_null_has_none(tmp_path, key):
    write(tmp_path / "a.png")
    lines = [{"image": "a.png", key: None}, {"image": "a.png", key: "one"}]
    source = open_source(write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines))))
    assert [shown(source.parts(n)) for n in (0, 1)] == [[RED], [RED, "one"]]
    refused("line 1: expected", open_source, write(tmp_path / "d.jsonl", json.dumps({key: None})))


def test_marks_that_do_not_match_the_images(tmp_path):
    record = {"image": ["a.png", "b.png"], "conversations": turns("<image>", "x")}
    refused("record 1: the text has 1 <image> marks", open_source, write(tmp_path / "c.json", json.dumps([record])))


def test_arrays_under_the_name_of_lines(tmp_path):
    write(tmp_path / "a.png")
    for content in ('[{"image": "a.png", "text": "one"}]', '\ufeff[\n{"image": "a.png", "text": "one"}\n]\n'):
        assert list(open_source(write(tmp_path / "c.jsonl", content)).texts()) == ["one"]
    refused("line 1: expected a JSON object", open_source, write(tmp_path / "d.jsonl", '["text"]'))


def test_the_only_list_of_records_in_an_object(tmp_path):
    write(tmp_path / "a.png")
    value = {
        "info": {"year": 1},
        "data": [{"image": "a.png", "captions": ["one", "two"]}, {"image": "a.png", "text": ""}],
    }
    source = open_source(write(tmp_path / "c.json", json.dumps(value, indent=1)))
    assert [shown(source.parts(n)) for n in range(3)] == [[RED, "one"], [RED, "two"], [RED]]
    value["data"][1] = {"image": ["a.png", "a.png"], "text": "t"}
    refused("c.json: expected records of one image", open_source, write(tmp_path / "c.json", json.dumps(value)))
    value["data"][1] = "a.png"
    refused("c.json: expected an array of records", open_source, write(tmp_path / "c.json", json.dumps(value)))
    value["more"] = value["data"] = value["data"][:1]
    refused("c.json: expected an array of records", open_source, write(tmp_path / "c.json", json.dumps(value)))


def test_lines_of_records_under_the_name_of_json(tmp_path):
    write(tmp_path / "a.png")
    lines = '{"image": "a.png", "text": "one"}\n{"text": "two"}\n'
    assert list(open_source(write(tmp_path / "c.json", lines)).texts()) == ["one", "two"]


@pytest.mark.parametrize(
    "record, captions",
    [
        ({"captions": ["one", " two "]}, ["one", "two"]),
        ({"caption": ["one", "", None, "two"]}, ["one", "two"]),
        ({"text": ["one", "two"], "split": "train"}, ["one", "two"]),
        ({"sentences": [{"raw": "one", "tokens": ["one"]}, {"raw": "two"}]}, ["one", "two"]),
        ({"captions": "one"}, ["one"]),
        ({"captions": []}, [None]),
    ],
)
def test_each_of_several_captions_is_a_document(tmp_path, record, captions):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", png("blue"))
    lines = [{"image": "a.png", **record}, {"image": "b.png", "caption": "last"}]
    expected = [*([RED, caption] if caption else [RED] for caption in captions), [BLUE, "last"]]
    for name, content in (
        ("c.jsonl", "\n".join(map(json.dumps, lines))), ("c.json", json.dumps(lines)),
        ("l.json", "\n".join(map(json.dumps, lines))),
    ):  # fmt: skip
        source = open_source(write(tmp_path / name, content))
        assert [shown(source.parts(n)) for n in range(len(source))] == expected
        assert len({key for key, _ in source.entries()}) == len(source)
        (tmp_path / name).unlink()
    folder = open_source(write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, lines))).parent)
    assert [shown(folder.parts(n)) for n in range(len(folder))] == expected


@pytest.mark.parametrize("record", [{"text": ["a", "b"]}, {"images": ["a.png", "b.png"], "text": ["a", "b"]}])
def test_lists_of_texts_that_are_no_captions_are_refused(tmp_path, record):
    refused("line 1: expected", open_source, write(tmp_path / "c.jsonl", json.dumps(record)))


# --- COCO, and names with captions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["images", "val2017", "."])
def test_coco_captions(tmp_path, place):
    folder = tmp_path / "annotations" if place == "val2017" else tmp_path
    root = tmp_path / place
    for name, color in (("1.png", "red"), ("2.png", "blue"), ("3.png", "red")):
        write(root / name, png(color))
    value = {
        "info": {},
        "images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)],
        "annotations": [{"image_id": n, "caption": text} for n, text in ((2, "blue "), (1, "red"), (2, "sea"))],
    }
    path = write(folder / "captions_val2017.json", json.dumps(value))
    members = {str(file.relative_to(tmp_path)): file.read_bytes() for file in tmp_path.rglob("*.*")}
    kinds = ((write_zip, ".zip"), (write_tar, ".tar"))
    packed = [pack(tmp_path.with_suffix(suffix), members) for pack, suffix in kinds]
    for source in map(open_source, (path, tmp_path, *packed)):
        documents = [shown(source.parts(n)) for n in range(len(source))]
        assert documents == [[BLUE, "blue"], [RED, "red"], [BLUE, "sea"], [RED]]
        assert source.captioned and list(source.texts()) == ["blue", "red", "sea"] and not source.unusable
    value["annotations"][0]["image_id"] = 9
    refused("belongs to image 9", open_source, write(folder / "x.json", json.dumps(value)))
    value["annotations"][0]["image_id"] = [1]  # no key of anything
    refused('"image_id" and "caption"', open_source, write(folder / "x.json", json.dumps(value)))
    value["annotations"][0] = {"image_id": 1, "bbox": []}
    refused('"image_id" and "caption"', open_source, write(folder / "x.json", json.dumps(value)))


def test_names_with_captions(tmp_path):
    write(tmp_path / "a.png")
    source = open_source(write(tmp_path / "c.json", json.dumps({"a.png": "one", "b.jpg": "two"}, indent=1)))
    assert shown(source.parts(0)) == [RED, "one"] and list(source.texts()) == ["one", "two"]


def test_names_with_several_captions_and_karpathys_splits(tmp_path):
    write(tmp_path / "val/a.png")
    write(tmp_path / "val/b.png", png("blue"))
    names = {"a.png": ["one", {"caption": "two"}], "b.png": {"caption": "three", "tags": "x"}}
    sentences = {"a.png": [{"raw": "one"}, {"raw": "two"}], "b.png": [{"raw": "three"}]}
    images = [{"filename": name, "filepath": "val", "sentences": told} for name, told in sentences.items()]
    for path in (
        write(tmp_path / "val/c.json", json.dumps(names)),
        write(tmp_path / "dataset.json", json.dumps({"images": images, "dataset": "coco"})),
    ):
        for source in map(open_source, (path, path.parent)):
            assert [shown(source.parts(n)) for n in range(3)] == [[RED, "one"], [RED, "two"], [BLUE, "three"]]
        path.unlink()
    images[0]["sentences"] = 3
    refused('"filename" and "sentences"', open_source, write(tmp_path / "d.json", json.dumps({"images": images})))
