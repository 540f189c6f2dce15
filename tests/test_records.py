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
    write_zip,
)

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import base, records
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
    assert not source.captioned
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
        ('{"image": "a"}', "no JSON array of records"),
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
