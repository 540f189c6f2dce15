"""Archives are read without unpacking, from many threads; bad members are bad images."""

import gc
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from source_files import BLUE, RED, names, open_descriptors, png, refused, shown, write, write_tar, write_zip

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import archives, index, tar_scan
from mlx_pixword.data.archives import open_archive
from mlx_pixword.data.base import Picture
from mlx_pixword.data.pictures import ArchivePicture
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source


@pytest.fixture(params=["zip", "tar"])
def archive_path(request, tmp_path):
    members = {"b/2.png": png("blue"), "a.png": png(), "read.me": b"x", ".hidden.png": b"x", "__MACOSX/a.png": b"x"}
    members["broken.png"] = png()[:40]
    return (write_zip if request.param == "zip" else write_tar)(tmp_path / f"images.{request.param}", members)


def test_archive_of_images(archive_path):
    source = open_source(archive_path)
    assert names(source) == [f"{archive_path}:{name}" for name in ("a.png", "b/2.png", "broken.png")]
    assert [shown(source.parts(i)) for i in range(2)] == [[RED], [BLUE]]
    assert source.unusable == [(f"{archive_path}:read.me", "not an image")]
    assert list(source.texts()) == [] and not source.captioned
    with pytest.raises(BadImage):
        source.parts(2)[0].rgb(8)


def test_archive_picture(archive_path):
    archive = open_archive(archive_path)
    one, two = ArchivePicture(archive, "a.png"), ArchivePicture(archive, "b/2.png")
    assert isinstance(one, Picture) and one.cache_key and one.cache_key != two.cache_key
    with pytest.raises(BadImage, match="not in the archive"):
        ArchivePicture(archive, "no.png").rgb(8)


def test_members_that_are_too_large(archive_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(BadImage, match="the limit is 10"):
        open_source(archive_path).parts(0)[0].rgb(8)


def test_members_that_unpack_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 10_000)
    path = write_zip(tmp_path / "a.zip", {"bomb.png": bytes(50_000), "good.png": png()})
    source = open_source(path)
    with pytest.raises(BadImage, match=r"^\d+ bytes that unpack to 50,000, as no image does$"):
        source.parts(0)[0].rgb(8)
    assert shown(source.parts(1)) == [RED]


def test_archives_whose_members_share_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    path = write_zip(tmp_path / "a.zip", {f"{n}.png": bytes(50_000) for n in range(4)})
    refused(r"a\.zip has \d+ bytes that unpack to 200,000, as no collection", open_source, path)


def test_names_that_leave_the_archive_are_names_and_nothing_is_unpacked(tmp_path):
    members = {"../up.png": png(), "/abs.png": png("blue"), "a/../../b.png": png()}
    before = {"zip", "tar"}
    for kind, write_archive in (("zip", write_zip), ("tar", write_tar)):
        source = open_source(write_archive(tmp_path / f"in/a.{kind}", members))
        assert len(source) == 3 and all(source.parts(n)[0].rgb(8).shape for n in range(3))
    assert {path.name for path in tmp_path.rglob("*")} == {"in", *(f"a.{kind}" for kind in before)}


def test_threads_read_one_archive_without_leaking(tmp_path):
    members = {f"{i:03}.png": png((i, 0, 0), (40, 40)) for i in range(100)}
    for path in (write_zip(tmp_path / "a.zip", members), write_tar(tmp_path / "a.tar", members)):
        source = open_source(path)
        gc.collect()  # archives of other tests close when they are collected
        before = open_descriptors()
        with ThreadPoolExecutor(8) as pool:
            pixels = list(pool.map(lambda i, source=source: source.parts(i % 100)[0].rgb(40), range(400)))
        assert open_descriptors() == before
        assert [int(rgb[0, 0, 0]) for rgb in pixels] == [i % 100 for i in range(400)]


def test_encrypted_and_corrupt_members(tmp_path):
    data = bytearray(write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png("blue", (50, 50))}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag of encryption, in the directory entry of a.png
    start = data.index(b"b.png") + len(b"b.png")
    data[start : start + 20] = bytes(20)
    source = open_source(write(tmp_path / "a.zip", bytes(data)))
    for place, reason in enumerate(("encrypted", "damaged archive member")):
        with pytest.raises(BadImage, match=reason):
            source.parts(place)[0].rgb(8)


def test_tar_truncated_after_opening(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": png()})
    source = open_source(path)
    write(path, path.read_bytes()[:520])
    with pytest.raises(BadImage, match="truncated"):
        source.parts(0)[0].rgb(8)


def unmarked(path):
    """Take the mark of UTF-8 from all names of a zip, as macOS and the program zip write them."""
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + place] &= ~8
    return write(path, bytes(data))


@pytest.mark.parametrize("keep", [False, True])
def test_names_of_a_zip_in_utf8_without_its_mark(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(index, "LEAST", 1 if keep else 100)
    monkeypatch.setenv(index.FOLDER, str(tmp_path / "index"))
    members = {"größe.png": png(), "größe.txt": b"large", "日本/1.png": png("blue"), "a.png": png("blue")}
    path = unmarked(write_zip(tmp_path / "mac.zip", members))
    write(tmp_path / "l.jsonl", '{"image": "größe.png", "text": "one"}\n{"image": "日本/1.png", "text": "two"}\n')
    for _ in range(2):  # the second time from the list that was kept
        source = open_source(path)
        assert names(source) == [f"{path}:{name}" for name in ("a.png", "größe.png", "日本/1.png")]
        assert [shown(source.parts(n)) for n in range(3)] == [[BLUE], [RED, "large"], [BLUE]]
        records = open_source(tmp_path / "l.jsonl", path)
        assert [shown(records.parts(n)) for n in (0, 1)] == [[RED, "one"], [BLUE, "two"]]


def test_names_of_a_zip_in_code_page_437_stay(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("?-one.png", png())
    path.write_bytes(path.read_bytes().replace(b"?-one.png", b"\x81-one.png"))
    source = open_source(path)
    assert names(source) == [f"{path}:ü-one.png"] and shown(source.parts(0)) == [RED]


def test_hard_links_of_a_tar_are_the_files_that_were_packed_before(tmp_path):
    one, two = write(tmp_path / "d/1.png"), tmp_path / "d/2.png"
    write(tmp_path / "d/1.txt", "caption")
    two.hardlink_to(one)
    (tmp_path / "d/2.txt").hardlink_to(tmp_path / "d/1.txt")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "d", arcname="./d")
        lost = tarfile.TarInfo("d/3.png")
        lost.type, lost.linkname = tarfile.LNKTYPE, "elsewhere.png"
        archive.addfile(lost)
    source = open_source(tmp_path / "a.tar")
    assert [shown(source.parts(n)) for n in range(len(source))] == [[RED, "caption"]] * 2
    assert source.unusable == [(f"{tmp_path / 'a.tar'}:d/3.png", "not a regular file")]


def test_tar_with_links(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"./a.png": png()})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = open_source(path)
    assert names(source) == [f"{path}:a.png"] and source.unusable == [(f"{path}:link.png", "not a regular file")]


@pytest.mark.parametrize(
    "name, mode", [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar", "w:bz2")]
)
def test_compressed_tar(tmp_path, name, mode):
    refused("compressed tar.*unpack", open_source, write_tar(tmp_path / name, {"a.png": png()}, mode))


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_damaged_archive(tmp_path, name):
    refused("cannot be read as an archive", open_source, write(tmp_path / name, "nonsense"))


def test_a_member_without_a_name_is_left_out(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"b.png": png(), "a.png": png()})
    data = path.read_bytes()
    start = data.index(b"PK\1\2") + 46  # the name of the first member, in the directory at the end
    assert data[start : start + 5] == b"b.png"
    path.write_bytes(data[:start] + b"\0" + data[start + 1 :])  # a name ends at a zero byte
    assert names(open_source(path)) == [f"{path}:a.png"]


def test_a_member_whose_names_do_not_agree_is_damaged(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"ü.png": png()})  # the name is marked as UTF-8
    data = path.read_bytes()
    assert data[30:36] == "ü.png".encode()
    path.write_bytes(data[:31] + b"a" + data[32:])
    with pytest.raises(BadImage, match=r"^damaged archive member: 'utf-8' codec"):
        open_archive(path).read("ü.png")


# --- damaged tars -----------------------------------------------------------------------------------------------------


def tar_of(tmp_path, count=12, first=0):
    """A tar of small images: each has a block of header and one of data."""
    members = {f"{n:03}.png": png((n, 0, 0)) for n in range(first, first + count)}
    return write_tar(tmp_path / "w.tar", members).read_bytes()


def opened(tmp_path, data):
    source = open_source(write(tmp_path / "w.tar", data))
    return [int(source.parts(n)[0].rgb(8)[0, 0, 0]) for n in range(len(source))], source


def test_a_bad_header_costs_its_member_alone_and_is_named(tmp_path):
    data = bytearray(tar_of(tmp_path))
    data[1024 * 3 + 10] ^= 255
    shades, source = opened(tmp_path, bytes(data))
    assert shades == [n for n in range(12) if n != 3]
    assert source.unreadable == [(f"{tmp_path / 'w.tar'} at byte 3,072", tar_scan.DAMAGED)]


@pytest.mark.parametrize("size", [1024 * 5 + 520, 1024 * 5 + 512, 1024 * 5 + 200])
def test_a_cut_tar_is_read_as_far_as_it_goes_and_named(tmp_path, size):
    shades, source = opened(tmp_path, tar_of(tmp_path)[:size])
    assert shades == list(range(5))
    ((name, reason),) = source.unreadable
    assert name.endswith("at byte 5,120") and reason.startswith(tar_scan.CUT)


def test_a_tar_cut_between_members_is_named(tmp_path):
    shades, source = opened(tmp_path, tar_of(tmp_path)[: 1024 * 5])
    assert shades == list(range(5)) and [why for _, why in source.unreadable] == [tar_scan.NO_END]


def test_joined_tars_are_read_to_their_end(tmp_path):
    one, two = tar_of(tmp_path), tar_of(tmp_path, 3, 100)
    shades, source = opened(tmp_path, one + two)
    assert shades == [*range(12), 100, 101, 102] and source.unreadable == []
    assert source.unusable == [(f"{tmp_path / 'w.tar'} at byte {len(one):,}", tar_scan.JOINED)]
    shades, source = opened(tmp_path, two + two)  # equal names are different members
    assert shades == [100, 101, 102] * 2
    assert names(source)[3].endswith("w.tar:joined-2/100.png")


def test_a_whole_tar_has_no_damage(tmp_path):
    assert open_source(write(tmp_path / "w.tar", tar_of(tmp_path))).unreadable == []


def test_damage_counts_as_bad(tmp_path):
    _, source = opened(tmp_path, tar_of(tmp_path)[: 1024 * 5])
    assert left_out([source]) == "; 1 could not be read"


# --- lists that are kept ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Lists of small archives are kept too, in a folder of their own."""
    monkeypatch.setattr(index, "LEAST", 1)
    monkeypatch.setenv(index.FOLDER, str(tmp_path / "index"))
    return tmp_path / "index"


def forbid_listing(monkeypatch):
    for kind in (archives.ZipArchive, archives.TarArchive):
        monkeypatch.setattr(kind, "_list", None)


def told(source):
    documents = [shown(source.parts(n)) for n in range(len(source))]
    return documents, source.unusable, source.unreadable, source.digest(), names(source)


def test_a_kept_list_gives_the_same_archive(kept, tmp_path, monkeypatch):
    members = {"\xfc/1.png": png("blue"), "0.png": png(), "0.txt": b"zero", "\udcff.png": png(), "n.md": b""}
    tar = write_tar(tmp_path / "a.tar", members)
    tar.write_bytes(tar.read_bytes()[:-10240] + tar_of(tmp_path)[:1300])
    paths = [write_zip(tmp_path / "a.zip", {n: m for n, m in members.items() if n.isprintable()}), tar]
    fresh = [told(open_source(path)) for path in paths]
    assert len(list(kept.iterdir())) == 2 and fresh[1][2]
    forbid_listing(monkeypatch)
    assert [told(open_source(path)) for path in paths] == fresh


def test_another_archive_of_the_name_has_another_list(kept, tmp_path):
    path = write_zip(tmp_path / "a.zip", {"0.png": png()})
    open_source(path)
    write_zip(path, {"1.png": png(), "2.png": png("blue")})
    assert [name[-5:] for name in names(open_source(path))] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-30], lambda b: b"", lambda b: b"x" * len(b), lambda b: b.replace(b"0.png", b"1.png")]
)
def test_a_damaged_list_is_made_anew(kept, tmp_path, damage):
    path = write_zip(tmp_path / "a.zip", {"0.png": png()})
    fresh = told(open_source(path))
    (list_file,) = kept.iterdir()
    list_file.write_bytes(damage(list_file.read_bytes()))
    assert told(open_source(path)) == fresh


def test_no_list_is_kept_where_none_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "LEAST", 1)
    path = write_zip(tmp_path / "a.zip", {"0.png": png()})
    monkeypatch.setenv(index.FOLDER, "")
    assert len(open_source(path)) == 1
    monkeypatch.setenv(index.FOLDER, str(path))  # a file
    assert len(open_source(path)) == 1
    monkeypatch.delenv(index.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(open_source(path)) == 1 and len(list((tmp_path / "cache/mlx-pixword/index").iterdir())) == 1
