"""What lies in a folder besides images: shards, metadata, labels, captions; and what is said of the rest."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from source_files import BLUE, RED, REFERENCE, png, refused, shown, write, write_tar, write_zip

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import listing
from mlx_pixword.data.base import texts_of
from mlx_pixword.data.known import Names, take_inventory
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_a_folder_of_shards_is_read_one_after_the_other(tmp_path):
    write_tar(tmp_path / "1.tar", {"a.png": png(), "a.txt": b"one"})
    write_zip(tmp_path / "2.zip", {"a.png": png("blue")})
    write(tmp_path / "3.jsonl", '{"text": "three"}')
    write(tmp_path / "read.me", "x")
    source = open_source(tmp_path)
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, "one"], [BLUE], ["three"]]
    assert list(source.texts()) == ["one", "three"] and source.captioned
    assert [texts_of(source, n) for n in range(3)] == [["one"], [], ["three"]]
    assert source.unusable == [(str(tmp_path / "read.me"), "not an image")]
    write(tmp_path / "3.jsonl", '{"text": "four"}')
    assert open_source(tmp_path).digest() != source.digest()


def parquet_of(*rows):
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def documents(source):
    return [shown(source.parts(n)) for n in range(len(source))]


def test_parquet_and_shards_beside_a_picture_are_read(tmp_path):
    """A picture of the README must not take the place of the data."""
    write(tmp_path / "assets/example.png")
    inside = parquet_of({"image": {"bytes": png("blue")}, "text": "inside"})
    write(tmp_path / "data/train-00000-of-00001.parquet", inside)
    write_tar(tmp_path / "0.tar", {"a.png": png(), "a.txt": b"packed"})
    write_zip(tmp_path / "1.zip", {"p/train.parquet": parquet_of({"image": {"bytes": png()}, "text": "in a zip"})})
    write_zip(tmp_path / "assets.zip", {"assets/example.png": png()})
    write_zip(tmp_path / "code.zip", {"a.py": b""})
    os.mkfifo(tmp_path / "pipe.tar")  # who opens it waits for ever
    source = open_source(tmp_path)
    assert documents(source) == [[BLUE, "inside"], [RED], [RED, "packed"], [RED, "in a zip"]]
    assert sorted(source.unusable) == [
        (str(tmp_path / "assets.zip"), "an archive whose images lie beside it, unpacked"),
        (str(tmp_path / "code.zip"), "not an image"),
        (str(tmp_path / "pipe.tar"), "not an image"),
    ]
    assert len(take_inventory(source, Names(tmp_path)).documents) == 4  # as a run notes it
    write(tmp_path / "data/train-00001-of-00001.parquet", inside[:-9])
    refused("train-00001-of-00001.parquet cannot be read as Parquet", open_source, tmp_path)
    assert len({part.cache_key for n in range(4) for part in source.parts(n) if not isinstance(part, str)}) == 4


def test_parquet_and_texts_alone_in_an_archive(tmp_path):
    row = {"image": {"bytes": png()}, "text": "t"}
    assert documents(open_source(write_zip(tmp_path / "p.zip", {"p.parquet": parquet_of(row)}))) == [[RED, "t"]]
    assert documents(open_source(write_tar(tmp_path / "t.tar", {"t.jsonl": b'{"text": "t"}'}))) == [["t"]]
    refused("p.parquet cannot be read as Parquet", open_source, write_zip(tmp_path / "q.zip", {"p.parquet": b"x"}))


@pytest.mark.parametrize("name", ["labels.csv", "images.csv", "sub/gt.txt"])
def test_records_beside_the_archive_of_their_images(tmp_path, name):
    write_zip(tmp_path / "images.zip", {"images/a.png": png(), "images/b.png": png("blue"), "images/z.png": png()})
    write_tar(tmp_path / "other.tar", {"o.png": png("blue")})
    write(tmp_path / name, "image,label\na.png,red\nb.png,blue\n")
    if name.endswith(".txt"):
        refused("is a table of images", open_source, tmp_path)
        return
    source = open_source(tmp_path)
    assert documents(source) == [[RED, "red"], [BLUE, "blue"], [RED], [BLUE]] and source.captioned
    assert len(take_inventory(source, Names(tmp_path)).documents) == 4


def test_tables_of_downloads_beside_their_shards_are_left_out(tmp_path):
    write_tar(tmp_path / "00000.tar", {"0.png": png(), "0.txt": b"red"})
    write(tmp_path / "00000.parquet", parquet_of({"url": "http://x/a.jpg", "caption": "red", "key": "0"}))
    source = open_source(tmp_path)
    assert documents(source) == [[RED, "red"]] and left_out([source]) == "; left out: 1 .parquet"
    (tmp_path / "00000.parquet").rename(tmp_path / "urls.parquet")
    refused("the column 'url' looks like images", open_source, tmp_path)


def test_archives_with_records_in_a_folder(tmp_path):
    for n in (1, 2):
        write_zip(
            tmp_path / f"{n}.zip", {"images/a.png": png(), "b.png": png("blue"), "l.csv": b"image,label\na.png,t\n"}
        )
    source = open_source(tmp_path)
    assert documents(source) == [[RED, "t"], [BLUE]] * 2
    assert len(take_inventory(source, Names(tmp_path)).documents) == 4


@pytest.mark.parametrize("place", ["", "train/"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_of_hugging_faces_image_folders(tmp_path, place, kind):
    folder = tmp_path / "d" / place
    for name, color in (("a.png", "red"), ("b/c.png", "blue"), ("z.png", "red")):
        write(folder / name, png(color))
    rows = [{"file_name": "b/c.png", "text": "blue one"}, {"file_name": "a.png", "text": "red, one"}]
    if kind == "jsonl":
        write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        write(folder / "metadata.csv", 'file_name,text\nb/c.png,blue one\na.png,"red, one"\n')
    else:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    source = open_source(tmp_path / "d")
    documents = [shown(source.parts(n)) for n in range(len(source))]
    assert documents == [[BLUE, "blue one"], [RED, "red, one"], [RED]]  # one has no caption, and is no less an image
    assert source.unusable == []


ZIPPED = {
    "metadata.jsonl": '{"file_name": "b/c.png", "text": "blue one"}\n{"file_name": "a.png", "text": "red one"}\n',
    "metadata.csv": "file_name,text\nb\\c.png,blue one\na.png,red one\n",
    "labels.tsv": "b/c.png\tblue one\na.png\tred one\n",
    "all.json": '{"images": [{"id": 1, "file_name": "b/c.png"}, {"id": 2, "file_name": "a.png"}], "annotations": '
    '[{"image_id": 1, "caption": "blue one"}, {"image_id": 2, "caption": "red one"}]}',
    "list.json": '[{"image": "b/c.png", "text": "blue one"}, {"image": "a.png", "text": "red one"}]',
}


@pytest.mark.parametrize("name", ZIPPED)
@pytest.mark.parametrize("pack", [write_zip, write_tar])
@pytest.mark.parametrize("place", ["", "train/"])
def test_records_inside_an_archive_name_its_images(tmp_path, name, pack, place):
    if place and name.endswith(".json"):
        place = ""  # of these only the ones at the top are looked at
    members = {
        place + "a.png": png(),
        place + "b/c.png": png("blue"),
        place + "z.png": png(),
        "prices.csv": b"a,b\n1,2\n",
    }
    path = pack(tmp_path / f"d.{pack.__name__[-3:]}", {**members, place + name: ZIPPED[name].encode()})
    source = open_source(path)
    documents = [shown(source.parts(n)) for n in range(len(source))]
    assert documents == [[BLUE, "blue one"], [RED, "red one"], [RED]] and source.captioned
    assert list(source.texts()) == ["blue one", "red one"]
    ((left, reason),) = source.unusable
    assert left == f"{path}:prices.csv" and reason.startswith("no records of images: line 2: expected")
    pack(path, {**members, place + name: ZIPPED[name].encode().replace(b"red", b"blue")})
    assert open_source(path).digest() != source.digest()


def test_records_inside_a_damaged_archive(tmp_path):
    data = write_zip(tmp_path / "d.zip", {"a.png": png(), "metadata.jsonl": b"x" * 1000}).read_bytes()
    start = data.index(b"metadata.jsonl") + len("metadata.jsonl")
    write(tmp_path / "d.zip", data[:start] + b"\xff" + data[start + 1 :])
    refused(r"d\.zip:metadata\.jsonl: damaged archive member", open_source, tmp_path / "d.zip")


@pytest.mark.parametrize("pack", [write_zip, None])
def test_labels_that_are_malformed_behind_good_ones_are_refused(tmp_path, pack):
    """They are no table of another kind, and all captions would be missing."""
    files = {"a.png": png(), "b.png": png(), "labels.csv": b'file_name,text\na.png,one\nb.png,"two\n'}
    for name, content in files.items():
        write(tmp_path / "d" / name, content)
    path = pack(tmp_path / "d.zip", files) if pack else tmp_path / "d"
    refused("labels.csv, line 3: unexpected end of data; quotes may be missing", open_source, path)


def test_metadata_that_is_malformed_is_no_reason_to_go_on_without(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "metadata.jsonl", '{"file_name": "a.png"}')
    refused("metadata.jsonl, line 1: expected", open_source, tmp_path)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "other.jsonl")
    told = f"; left out: 1 .jsonl; {tmp_path / 'other.jsonl'} names images, and is not read: line 1: expected "
    assert left_out([open_source(tmp_path)]).startswith(told)
    write(tmp_path / "other.jsonl", '{"file_name": "elsewhere/b.png", "text": "t"}')
    told = f"; left out: 1 .jsonl; {tmp_path / 'other.jsonl'} names images that do not lie here, such as 'elsewhere/b"
    assert left_out([open_source(tmp_path)]).startswith(told)


@pytest.mark.parametrize(
    "name, content",
    [
        ("labels.csv", "a.png,red\n"),
        ("train.jsonl", '{"image": "a.png", "text": "red"}'),
        ("sub/gt.tsv", "../a.png\tred\n"),
        (
            "captions.json",
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "red"}]}',
        ),
        ("data.json", '[{"image": "a.png", "conversations": [{"from": "gpt", "value": "red"}]}]'),
    ],
)
def test_records_that_name_images_of_their_folder_are_used(tmp_path, name, content):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", png("blue"))
    write(tmp_path / name, content)
    write(tmp_path / "prices.csv", "item,price\nx,3\n")
    write(tmp_path / "config.json", '{"a": 1}')
    write(tmp_path / "b.json", '{"text": "of one image"}')
    source = open_source(tmp_path, None, name.startswith("sub"))
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, "red"], [BLUE, "of one image"]]
    assert left_out([source]) == "; left out: 1 .json, 1 .csv"


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    write(tmp_path / "a.png")
    for name in ("1.PDF", "2.pdf", "b.mov", "plain", "x.tar.gz"):
        write(tmp_path / name, "x")
    (tmp_path / "there").symlink_to(tmp_path)
    source = open_source(tmp_path)
    kinds = "; left out: 2 .pdf, 1 links to folders, 1 .gz, 1 .mov, 1 without a suffix"
    assert left_out([source]).startswith(f"{kinds}; {tmp_path / 'x.tar.gz'} is not read: it cannot be read as an")
    assert left_out([open_source(tmp_path / "a.png")]) == ""
    many = [(f"a.{n}x", "not an image") for n in range(12)]
    source.unusable, source.unreadable = many, [("d", "Permission denied")]
    assert left_out([source]).endswith(", 4 of other kinds; 1 could not be read")


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    write(tmp_path / "a.png")
    write(tmp_path / "closed/b.png")
    scan = listing.os.scandir

    def scandir(path):
        if str(path).endswith("closed/") or str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    source = open_source(tmp_path)
    assert len(source) == 1 and [reason for _, reason in source.unreadable] == ["Permission denied"]


def test_home_in_paths_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "d/a.png")
    write(tmp_path / "t.jsonl", '{"image": "~/d/a.png", "caption": "c"}')
    assert shown(open_source(Path("~/d")).parts(0)) == [RED]
    assert shown(open_source(Path("~/t.jsonl")).parts(0)) == [RED, "c"]


def test_husks_of_heic_files_are_left_out_and_said(tmp_path):
    write(tmp_path / "a.png")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "blue")).save(file, quality=95)
    write(tmp_path / "b.HEIC", file.getvalue())
    for n in range(3):
        write(tmp_path / f"IMG_{n}.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300))
    source = open_source(tmp_path)
    assert len(source) == 2 and left_out([source]) == "; left out: 3 .heic"
    assert np.abs(np.subtract(shown(source.parts(1))[0], BLUE)).max() < 8


LABELS = {  # as PaddleOCR, ICDAR, Kaggle's Flickr8k and its first edition, and TRDG have them
    "rec_gt.txt": 'a.png\tred\nb/c.png\t"blue\n',
    "gt.txt": '\ufeffa.png, "red"\r\nb/c.png, "\\"blue"\r\n',
    "captions.txt": 'image,caption\na.png,red\nb/c.png,"""blue"\n',
    "Flickr8k.token.txt": 'a.png#0\tred\nb/c.png#3\t"blue\n',
    "labels.txt": 'a.png red\nb/c.png "blue\n',
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("place", ["file", "folder", "zip"])
def test_labels_in_texts(tmp_path, name, place):
    """They would be one document of words, or left out."""
    write(tmp_path / "d/read.txt", "a.png is one of the pictures")
    files = {"a.png": png(), "b/c.png": png("blue"), name: LABELS[name].encode()}
    path = write_zip(tmp_path / "d.zip", files) if place == "zip" else tmp_path / "d"
    if place != "zip":
        for file, content in files.items():
            write(path / file, content)
    source = open_source(path / name if place == "file" else path)
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, "red"], [BLUE, '"blue']] and source.captioned
    assert left_out([source]) == ("; left out: 1 .txt" if place == "folder" else "")


@pytest.mark.parametrize("text", ["a.png is a picture", "Look, a.png", REFERENCE.format("a.png") + ", red", "a.png"])
def test_texts_that_are_no_labels(tmp_path, text):
    assert open_source(write(tmp_path / "text.txt", text)).captioned is False
    write(tmp_path / "gt.txt", "a.png\tred\n")
    refused("gt.txt is a table of images and texts; give that file itself", open_source, tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("file_name,text\na.png,caf\u00e9\n".encode("cp1252"), "line 2: not valid UTF-8"),
        (b"picture,text\na.png,one\n", "the key 'picture' looks like an image"),
        (b"file_name,text,caption\na.png,one,two\n", "got the keys text and caption; keep one of them"),
    ],
)
def test_captions_that_cannot_be_read_are_no_reason_to_go_on_without(tmp_path, content, message):
    write(tmp_path / "a.png")
    write(tmp_path / "l.csv", content)
    refused(message, open_source, tmp_path)


def test_addresses_are_said_not_to_be_fetched():
    refused("no file or folder s3:/x/y.tar; addresses are not fetched, download it", open_source, Path("s3://x/y.tar"))


@pytest.mark.parametrize("pack", [write_zip, None])
@pytest.mark.parametrize(
    "reference", ["sub/b%20c.png", " sub/b c.png", "../images/sub/b c.png", "file:///x/images/sub/b%20c.png"]
)
def test_references_as_other_programs_write_them(tmp_path, reference, pack):
    record = json.dumps({"image": reference, "text": "t"}).encode()
    files = {"images/a.png": png("blue"), "images/sub/b c.png": png(), "images/l.jsonl": record}
    for name, content in files.items():
        write(tmp_path / name, content)
    path = pack(tmp_path / "d.zip", files) if pack else tmp_path
    source = open_source(path)
    assert documents(source) == [[RED, "t"], [BLUE]]
    if not pack:
        assert documents(open_source(tmp_path / "images/l.jsonl")) == [[RED, "t"]]
        write(tmp_path / "images/l.jsonl", '{"image": "%2e%2e/x.png", "text": "t"}')
        write(tmp_path / "x.png")
        with pytest.raises(BadImage, match="not found"):  # and not what lies outside
            open_source(tmp_path / "images/l.jsonl").parts(0)[0].rgb(8)
