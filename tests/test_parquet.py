"""Parquet with images inside: right rows in any order, class names, damaged files, and what to install."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from source_files import BLUE, RED, png, refused, shown, write

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import parquet
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source


def table(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_images_as_hugging_face_keeps_them(tmp_path):
    write(tmp_path / "a.png")
    rows = [
        {"image": {"bytes": png(), "path": "x.png"}, "text": "red", "id": 1},
        {"image": {"bytes": None, "path": "a.png"}, "text": "beside", "id": 2},
        {"image": None, "text": "words alone", "id": 3},
        {"image": {"bytes": png("blue"), "path": None}, "text": None, "id": 4},
    ]
    source = open_source(table(tmp_path / "t.parquet", rows, row_group_size=2))
    assert [shown(source.parts(n)) for n in range(4)] == [[RED, "red"], [RED, "beside"], ["words alone"], [BLUE]]
    assert list(source.texts()) == ["red", "beside", "words alone"] and source.captioned
    keys = {source.parts(n)[0].cache_key for n in (0, 1, 3)}
    assert len(keys) == 3 and None not in keys


def test_bare_bytes_and_lists_of_images(tmp_path):
    source = open_source(table(tmp_path / "b.parquet", [{"image": png("blue"), "caption": "b"}]))
    assert shown(source.parts(0)) == [BLUE, "b"]
    rows = [{"images": [{"bytes": png()}, {"bytes": png("blue")}], "text": "<image> then <image>"}]
    source = open_source(table(tmp_path / "l.parquet", rows))
    assert shown(source.parts(0)) == [RED, " then ", BLUE] and list(source.texts()) == [" then "]


def test_class_numbers_are_read_as_their_names(tmp_path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    data = pa.Table.from_pylist([{"image": {"bytes": png()}, "label": n} for n in (1, 0)])
    noted = data.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(noted, tmp_path / "t.parquet")
    assert list(open_source(tmp_path / "t.parquet").texts()) == ["dog", "cat"]
    pq.write_table(data, tmp_path / "u.parquet")
    assert list(open_source(tmp_path / "u.parquet").texts()) == ["1", "0"]


TEXTS = {  # as pandas, Polars and others write text
    "large": lambda: pa.array(["red", "blue"], pa.large_string()),
    "view": lambda: pa.array(["red", "blue"], pa.string_view()),
    "dictionary": lambda: pa.array(["red", "blue"]).dictionary_encode(),
    "large dictionary": lambda: pa.array(["red", "blue"], pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("key", ["text", "caption", "label"])
def test_text_of_any_width_is_text(tmp_path, kind, key):
    columns = {"image": pa.array([{"bytes": png()}, {"bytes": png("blue")}]), key: TEXTS[kind]()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert [shown(source.parts(n)) for n in (0, 1)] == [[RED, "red"], [BLUE, "blue"]]
    assert source.captioned and not source.unusable


@pytest.mark.parametrize("names", [("file_name", "image"), ("image", "path"), ("path", "images")])
def test_bytes_are_preferred_to_the_path_that_they_had_elsewhere(tmp_path, names):
    values = {"image": {"bytes": png()}, "images": [{"bytes": png()}]}
    row = {name: values.get(name, "elsewhere/1.png") for name in names} | {"text": "t"}
    assert shown(open_source(table(tmp_path / "t.parquet", [row])).parts(0)) == [RED, "t"]


def test_conversations_stand_around_their_images(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    rows = [{"image": {"bytes": png()}, "conversations": turns}, {"image": None, "conversations": [turns[1]] * 2}]
    source = open_source(table(tmp_path / "t.parquet", rows))
    assert [shown(source.parts(n)) for n in (0, 1)] == [[RED, "\nWhat?\nRed."], ["Red.\nRed."]]
    assert list(source.texts()) == ["\nWhat?\nRed.", "Red.\nRed."] and source.captioned


def test_conversations_of_texts_and_images_in_turn(tmp_path):
    image = {"bytes": png(), "path": None}
    content = [{"type": "image", "text": None}, {"type": "text", "text": "and?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    rows = [{"images": [image], "messages": [{"role": "user", "content": content}, answer]}]
    assert shown(open_source(table(tmp_path / "t.parquet", rows)).parts(0)) == [RED, "and?\nred"]
    rows = [{"images": [image], "texts": [{"user": "q", "assistant": "a", "source": "x"}]}]
    assert shown(open_source(table(tmp_path / "u.parquet", rows)).parts(0)) == [RED, "q\na"]
    rows = [{"image": image, "qa": [{"q": "q", "a": "a"}]}]
    assert left_out([open_source(table(tmp_path / "v.parquet", rows))]) == "; left out: 1 column qa"


def test_columns_of_text_that_nobody_reads_are_named(tmp_path):
    rows = [{"image": {"bytes": png()}, "question": "What?", "answers": ["Red.", "A red one."], "score": 0.5}]
    source = open_source(table(tmp_path / "vqa.parquet", rows))
    assert shown(source.parts(0)) == [RED]
    assert source.unusable == [
        (f"{tmp_path / 'vqa.parquet'}:{name}", "a column that is not read") for name in ("question", "answers")
    ]
    assert left_out([source]) == "; left out: 1 column question, 1 column answers"
    assert not open_source(table(tmp_path / "c.parquet", [rows[0] | {"text": "t"}])).unusable


def test_names_that_webdatasets_become_on_the_hub(tmp_path):
    rows = [{"jpg": {"bytes": png(), "path": None}, "txt": "t", "json": {"a": 1}, "__key__": "0", "__url__": "x.tar"}]
    source = open_source(table(tmp_path / "t.parquet", rows))
    assert shown(source.parts(0)) == [RED, "t"] and source.captioned
    rows = [{"description": "long", "label": 1, "image": {"bytes": png(), "path": None}, "img_path": "a.png"}]
    assert shown(open_source(table(tmp_path / "u.parquet", rows)).parts(0)) == [RED, "1"]  # as in other records


@pytest.mark.parametrize("key", ["captions", "caption", "text"])
def test_each_of_several_captions_is_a_document(tmp_path, key):
    rows = [(["red", "ruby"], "red"), ([], "red"), (["sea"], "blue"), (None, "blue"), (["", "sky"], "blue")]
    rows = [{"image": {"bytes": png(color), "path": None}, key: captions} for captions, color in rows]
    source = open_source(table(tmp_path / "t.parquet", rows, row_group_size=2))
    expected = [[RED, "red"], [RED, "ruby"], [RED], [BLUE, "sea"], [BLUE], [BLUE, "sky"]]
    assert [shown(source.parts(n)) for n in range(len(source))] == expected and source.captioned
    assert list(source.texts()) == ["red", "ruby", "sea", "sky"] and source.label(3) == "record 2 of t.parquet"
    objects = [{"image": {"bytes": png(), "path": None}, "sentences": [{"raw": "one", "id": 1}, {"raw": "two"}]}]
    assert list(open_source(table(tmp_path / "u.parquet", objects)).texts()) == ["one", "two"]
    refused("there are no images", open_source, table(tmp_path / "v.parquet", [{"text": ["a", "b"]}]))


def test_rows_can_be_read_from_threads_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUPS", 2)
    rows = [{"image": {"bytes": png((n, 0, 0))}, "text": str(n)} for n in range(40)]
    source = open_source(table(tmp_path / "t.parquet", rows, row_group_size=7))
    order = np.random.default_rng(0).permutation(np.tile(np.arange(40), 3)).tolist()
    with Decoders() as decoders, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: (source.parts(n)[1], decoders.rgb(source.parts(n)[0], 8)[0, 0, 0]), order))
    assert found == [(str(n), n) for n in order]
    assert len(source._held) <= 2


def test_bad_images_inside_are_bad_images(tmp_path):
    source = open_source(table(tmp_path / "t.parquet", [{"image": {"bytes": b"nothing"}, "text": "t"}]))
    with pytest.raises(BadImage, match="not an image of a known format"):
        source.parts(0)[0].rgb(8)
    assert source.parts(0)[0].name == f"{tmp_path / 't.parquet'}:record 0"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"photo": {"bytes": b"x", "path": "y"}, "text": "t"}], "the column 'photo' looks like an image"),
        ([{"photos": [{"bytes": b"x", "path": "y"}], "text": "t"}], "the column 'photos' looks like an image"),
        ([{"img_url": "a.png", "text": "t"}], "the column 'img_url' looks like images; they are read from"),
        ([{"image": {"bytes": b"x"}, "caption": [{"a": 1}]}], "the column 'caption' holds list.* a text is needed"),
        ([{"image": {"bytes": b"x"}, "words": ["a", "b"]}], "the column 'words' holds list"),
        ([{"image": {"bytes": b"x"}, "images": [{"bytes": b"x"}]}], "images in the columns image and images; keep one"),
        ([{"a": 1, "b": 2}], "has no column of images"),
        ([{"image": b"x", "text": "a", "caption": "b"}], "text in the columns text and caption"),
    ],
)
def test_columns_that_are_refused(tmp_path, rows, message):
    refused(message, open_source, table(tmp_path / "t.parquet", rows))


def test_damaged_files_and_huge_groups_are_one_line(tmp_path, monkeypatch):
    refused("cannot be read as Parquet", open_source, write(tmp_path / "x.parquet", b"PAR1 nonsense PAR1"))
    path = table(tmp_path / "t.parquet", [{"image": png(), "text": "t"}] * 50, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:30] = bytes(26)  # the head of the first page
    refused("group of rows 0: damaged", open_source(write(tmp_path / "u.parquet", bytes(data))).parts, 0)
    monkeypatch.setattr(parquet, "MAX_GROUP", 10)
    refused("a group of rows unpacks to .* the limit is 10", open_source, path)


def test_files_that_lie_about_their_rows_and_texts_that_are_no_utf8(tmp_path, monkeypatch):
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    refused("group of rows 0: damaged: 'utf-8' codec", open_source(tmp_path / "t.parquet").parts, 0)
    path = table(tmp_path / "u.parquet", [{"text": "t"}] * 3)
    source = open_source(path)
    monkeypatch.setattr(
        source, "_file", SimpleNamespace(metadata=_claims(4), read_row_group=source._file.read_row_group)
    )
    refused("group of rows 0: damaged: it has 3 rows", source.parts, 0)
    for rows in (-1, 10**9):
        monkeypatch.setattr(
            parquet, "_open", lambda _, rows=rows: SimpleNamespace(metadata=_claims(rows), num_row_groups=1)
        )
        refused(f"a group of {rows:,} rows, the limit is 100,000,000", open_source, path)


def _claims(rows):
    return SimpleNamespace(row_group=lambda _: SimpleNamespace(num_rows=rows, total_byte_size=9))


def test_what_to_install_is_said(tmp_path, monkeypatch):
    path = table(tmp_path / "t.parquet", [{"text": "t"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused("t.parquet needs pyarrow: python -m pip install pyarrow", open_source, path)
