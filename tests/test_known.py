"""A run that is resumed goes on with the data that it knows; what appeared and what vanished is named."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_files import train, untimed
from source_files import png, refused, shown, write, write_tar, write_zip

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.data import DataArgs
from mlx_pixword.data.known import Inventory, Names, Vanished, as_known, find_places, take_inventory
from mlx_pixword.data.listing import APPEARED
from mlx_pixword.data.open import open_split
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source
from mlx_pixword.training.run_folder import LISTING, read_listing, write_listing

COLORS = ("red", "blue", "lime", "black", "white", "cyan", "gold", "navy")


def known_of(path: Path) -> Inventory:
    names = Names(path)
    return take_inventory(open_source(path, names=names), names)


def again(path: Path, known: Inventory):
    names = Names(path, known.names)
    return as_known(open_source(path, names=names), names, known)


def pictures(folder: Path, count: int = 8, captions: bool = False) -> Path:
    for n in range(count):
        write(folder / f"{n}.png", png(COLORS[n]))
        if captions:
            write(folder / f"{n}.txt", f"caption {n}")
    return folder


def test_equal_documents_keep_their_order() -> None:
    def places(known: list[int], now: list[int]) -> list[int]:
        return find_places(np.array(known, np.uint64), np.array(now, np.uint64)).tolist()

    assert places([7, 5, 7, 2**64 - 1], [7, 2**64 - 1, 7, 7, 5]) == [0, 4, 2, 1]
    assert places([7, 7, 7], [7, 3]) == [0, -1, -1] and places([1, 9], [3]) == [-1, -1]
    rng = np.random.default_rng(0)
    for _ in range(50):
        known, now = rng.integers(0, 6, 20).tolist(), rng.integers(0, 6, 20).tolist()
        left, expected = list(enumerate(now)), []
        for value in known:
            place = next((n for n, other in left if other == value), -1)
            left = [pair for pair in left if pair[0] != place]
            expected.append(place)
        assert places(known, now) == expected


@pytest.mark.parametrize("captions", [False, True])
def test_files_that_appear_are_named_and_not_used(tmp_path: Path, captions: bool) -> None:
    folder = pictures(tmp_path / "d", captions=captions)
    known = known_of(folder)
    before = [shown(open_source(folder).parts(n)) for n in range(8)]
    for n in range(5):
        write(folder / f"0{n}.png")  # they sort before all others
    write(folder / "notes.jsonl", json.dumps({"image": "1.png", "text": "another caption"}))
    source, notes = again(folder, known)
    assert [shown(source.parts(n)) for n in range(8)] == before and len(source) == 8
    assert notes == [
        f"{folder}: 6 files appeared since the run began, not used: 00.png, 01.png, 02.png, 03.png and 2 more"
    ]
    assert left_out([source]) == "; left out: 5 .png (new since the run began), 1 .jsonl (new since the run began)"
    assert (str(folder / "00.png"), APPEARED) in source.unusable and source.digest() == known.digest
    assert again(pictures(tmp_path / "other", captions=captions), known)[1] == []  # equal data elsewhere


def test_documents_that_vanish_are_named_and_passed_over(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "d", captions=True)
    known = known_of(folder)
    (folder / "3.png").unlink()
    (folder / "5.txt").unlink()
    write(folder / "35.png")
    write(folder / "6.png.txt", "a caption that is new")
    source, notes = again(folder, known)
    assert [note.removeprefix(f"{folder}: ") for note in notes] == [
        "2 files appeared since the run began, not used: 35.png, 6.png.txt",
        "2 files vanished since the run began: 3.png, 5.txt",
        "2 documents vanished since the run began: document 3, document 5",
    ]
    assert len(source) == 8 and source.captioned and source.digest() == known.digest
    for n in (3, 5):
        with pytest.raises(Vanished, match="vanished since the run began"):
            source.parts(n)
    assert shown(source.parts(6))[1] == "caption 6"
    assert list(source.texts()) == [f"caption {n}" for n in (0, 1, 2, 4, 6, 7)]


@pytest.mark.parametrize("pack", [write_zip, write_tar])
def test_archives_and_shards(tmp_path: Path, pack) -> None:
    suffix = pack.__name__[-3:]
    for shard in "abc":
        (tmp_path / "d").mkdir(exist_ok=True)
        pack(tmp_path / f"d/{shard}.{suffix}", {f"{n}.png": png(COLORS[n]) for n in range(4)})
    known = known_of(tmp_path / "d")
    (tmp_path / f"d/b.{suffix}").unlink()
    pack(tmp_path / f"d/a.{suffix}", {f"{n}.png": png(COLORS[n]) for n in (0, 3, 5)})
    pack(tmp_path / f"d/0.{suffix}", {"9.png": png()})
    source, notes = again(tmp_path / "d", known)
    assert [note.removeprefix(f"{tmp_path / 'd'}: ") for note in notes] == [
        f"2 files appeared since the run began, not used: 0.{suffix}, a.{suffix}:5.png",
        f"3 files vanished since the run began: a.{suffix}:1.png, a.{suffix}:2.png, b.{suffix}",
        "6 documents vanished since the run began: document 1, document 2, document 4, document 5 and 2 more",
    ]
    there = [n for n in range(12) if n not in (1, 2, 4, 5, 6, 7)]
    assert [source.parts(n)[0].name[-11:] for n in there] == [
        f"{shard}.{suffix}:{n}.png" for shard, n in (("a", 0), ("a", 3), *(("c", n) for n in range(4)))
    ]


def test_lines_of_records_that_appear_or_vanish(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {n}"}) for n in (0, 1, 1, 2, 3)]
    path = write(tmp_path / "t.jsonl", "\n".join(lines))
    known = known_of(path)
    write(path, "\n".join(["", json.dumps({"text": "new"}), *lines]))
    source, notes = again(path, known)
    assert notes == [f"{path}: 1 document new since the run began, not used: line 2 of t.jsonl"]
    assert [source.parts(n) for n in range(5)] == [[f"text {n}"] for n in (0, 1, 1, 2, 3)]
    write(path, "\n".join([lines[0], lines[1], lines[4]]))
    source, notes = again(path, known)
    assert notes == [f"{path}: 2 documents vanished since the run began: document 2, document 3"]
    assert source.parts(4) == ["text 3"] and source.digest() == known.digest
    write(path, "\n".join([*lines[:4], json.dumps({"text": "edited"})]))  # not the data of the run any more
    source, notes = again(path, known)
    assert len(notes) == 2 and source.digest() != known.digest and source.parts(4) == ["edited"]


def test_texts_that_were_edited_and_data_that_is_mostly_gone_are_other_data(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "d", captions=True)
    known = known_of(folder)
    write(folder / "2.txt", "longer than it was")
    source, notes = again(folder, known)
    assert notes == [f"{folder}: 1 document with a text of another size: 2.png"]
    assert source.digest() != known.digest
    write(folder / "2.txt", "caption 2")
    for n in range(5):
        (folder / f"{n}.png").unlink()
    assert again(folder, known)[0].digest() != known.digest


@pytest.mark.parametrize(
    "content",
    [
        {"a.png": "one", "b.png": "two", "c.png": "three"},
        {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
            "annotations": [{"image_id": n, "caption": f"c{n}"} for n in range(3)],
        },
    ],
)
def test_captions_in_one_object(tmp_path: Path, content: dict) -> None:
    path = write(tmp_path / "c.json", json.dumps(content))
    known = known_of(path)
    if "images" in content:
        content["annotations"].insert(0, {"image_id": 2, "caption": "one more"})
    else:
        content = {"0.png": "new", **content}
    write(path, json.dumps(content))
    source, notes = again(path, known)
    assert len(notes) == 1 and re.search("1 document new .*: a caption of [02].png", notes[0])
    assert [source.parts(n)[1] for n in range(3)] in (["one", "two", "three"], ["c0", "c1", "c2"])


def test_what_is_kept_comes_back_and_what_is_damaged_does_not(tmp_path: Path) -> None:
    name = "caf\u00e9 \udcff.png"  # a name that is not UTF-8
    folder = pictures(tmp_path / "d", captions=True)
    write(folder / name)
    known = known_of(folder)
    write_listing(tmp_path, [known])
    content = (tmp_path / LISTING).read_bytes()
    (back,) = read_listing(content, [known.digest]) or []
    assert back.names == known.names == {".": sorted(path.name for path in folder.iterdir())}
    assert (back.documents == known.documents).all() and (back.sizes == known.sizes).all()
    assert (back.captioned, back.digest) == (True, known.digest) and again(folder, back)[1] == []
    assert read_listing(content, ["x"]) is read_listing(content, [known.digest] * 2) is None
    for damaged in (
        b"",
        b"{",
        content[:-9],
        b"[" * 9999,
        b'{"version": 1, "sources": [3]}',
        b'{"version": 9}',
        b"\xff",
    ):
        assert read_listing(damaged, [known.digest]) is None
    values = json.loads(content)
    for key, value in (("documents", "zz"), ("documents", "00"), ("sizes", ""), ("names", []), ("names", None)):
        broken = {**values, "sources": [{**values["sources"][0], key: value}]}
        assert read_listing(json.dumps(broken).encode(), [known.digest]) is None


def test_a_split_is_that_of_the_known_documents(tmp_path: Path) -> None:
    folder, line = pictures(tmp_path / "d"), write(tmp_path / "t.jsonl", '{"text": "x"}\n{"text": "y"}')
    args = DataArgs(data=[str(folder), str(line)])
    split = open_split(args, 3, 2)
    known = split.inventories()
    write(folder / "0a.png")
    later = open_split(args, 3, 2, known=known)
    assert np.array_equal(later.train_indices, split.train_indices) and len(later.differences) == 1
    assert [source.digest() for source in later.train] == [one.digest for one in known]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_data_that_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What appears changes nothing that is learnt; what vanishes is left out, and costs the run nothing else."""
    folder = pictures(tmp_path / "d", captions=True)
    flags = ["--data", folder, "--max-bad", 0, "--eval-every", 2, "--threads", 1]
    train(tmp_path / "whole", *flags, "--save-every", 2, steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    capsys.readouterr()
    write(folder / "00.png")
    write(folder / "00.txt", "new")
    train(tmp_path / "run", *flags, "--resume", steps=4)
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    error = capsys.readouterr().err
    assert f"--resume: {folder}: 2 files appeared since the run began, not used: 00.png, 00.txt\n" in error
    assert "8 documents, 1 document held out; left out: 1 .png (new since the run began), 1 .txt (new" in error
    (folder / "4.png").unlink()
    train(tmp_path / "run", *flags, "--resume", steps=10)
    error = capsys.readouterr().err
    assert (
        "1 file vanished since the run began: 4.png\n" in error
        and "1 document vanished since the run began: document 4" in error
    )
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert {"file": f"{folder}, document 4", "reason": "vanished since the run began", "bad": False} in lines
    write(folder / "4.png")  # it is back
    train(tmp_path / "run", *flags, "--resume", steps=11)
    assert "vanished" not in capsys.readouterr().err


def test_other_data_is_refused_and_the_difference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "d")
    train(tmp_path / "run", "--data", folder, steps=1)
    for n in range(6):
        (folder / f"{n}.png").rename(folder / f"new-{n}.png")
    with pytest.raises(PixWordError, match=r"is of another run: data .*8 documents, .* now .*2 documents"):
        train(tmp_path / "run", "--data", folder, "--resume", steps=2)
    assert "6 files vanished since the run began: 0.png, 1.png, 2.png, 3.png and 2 more" in capsys.readouterr().err


def test_runs_without_a_listing_and_with_a_damaged_one_go_by_the_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = pictures(tmp_path / "d"), tmp_path / "run"
    train(run, "--threads", 1, "--data", folder, steps=1)
    whole = (run / LISTING).read_bytes()
    (run / LISTING).unlink()  # as an older version leaves it
    train(run, "--threads", 1, "--data", folder, "--resume", steps=2)
    assert (run / LISTING).read_bytes() == whole
    (run / LISTING).write_bytes(whole[:-5])
    capsys.readouterr()
    train(run, "--threads", 1, "--data", folder, "--resume", steps=3)
    assert "listing.json is damaged or of other data" in capsys.readouterr().err
    assert (run / LISTING).read_bytes() == whole
    (run / LISTING).unlink()
    write(folder / "new.png")
    refused("another run", train, run, "--threads", 1, "--data", folder, "--resume", steps=4)
    assert not (run / LISTING).exists()


def test_built_in_data_has_no_listing(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=1)
    train(tmp_path / "run", "--resume", steps=2)
    assert not (tmp_path / "run" / LISTING).exists()
