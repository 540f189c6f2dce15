"""Sources: what lies at a path is recognised, read in order, or refused in one line that says what would work."""

import os

import pytest
from source_files import BLUE, RED, REFERENCE, names, png, refused, shown, write, write_tar, write_zip

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data import texts
from mlx_pixword.data.listing import LEADS_OUT
from mlx_pixword.data.skips import left_out
from mlx_pixword.data.sources import open_source

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_folder_of_images(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/10.png", "c.webp"):
        write(tmp_path / name)
    for name in (".hidden.png", ".git/a.png", "notes.txt", "b/table.csv"):
        write(tmp_path / name, "x")
    source = open_source(tmp_path)
    assert names(source) == [str(tmp_path / name) for name in ("a.jpg", "b/10.png", "b/2.PNG", "c.webp")]
    assert shown(source.parts(0)) == [RED] and list(source.texts()) == []
    reasons = dict(source.unusable)
    assert reasons.pop(str(tmp_path / "b/table.csv")).startswith("no records of images: holds no documents;")
    assert reasons == {str(tmp_path / "notes.txt"): "not an image"}
    assert (source.endless, source.captioned, source.name) == (False, False, str(tmp_path))


def test_linked_folder_is_named_and_not_entered(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "circle").symlink_to(tmp_path)
    source = open_source(tmp_path)
    assert len(source) == 1 and source.unusable[0][0] == str(tmp_path / "circle")


def test_runs_in_a_folder_of_data_are_no_data(tmp_path):
    """As where somebody trains on the folder that they are in."""
    write(tmp_path / "a.png")
    for name in ("config.yaml", ".lock", "samples/step-1.png", "loss.png"):
        write(tmp_path / "runs/one" / name)
    source = open_source(tmp_path)
    assert names(source) == [str(tmp_path / "a.png")]
    assert source.unusable == [(f"{tmp_path}/runs/one", "the folder of a run, whose samples are no data")]
    assert left_out([source]) == "; left out: 1 folders of runs"
    assert len(open_source(tmp_path / "runs/one")) == 2  # who gives it means it


def test_broken_image_is_found_when_it_is_read(tmp_path):
    write(tmp_path / "a.png", "no image")
    with pytest.raises(BadImage, match="known format"):
        open_source(tmp_path).parts(0)[0].rgb(8)


def test_single_image(tmp_path):
    source = open_source(write(tmp_path / "a.png"))
    assert len(source) == 1 and shown(source.parts(0)) == [RED]


def test_folder_of_texts(tmp_path):
    write(tmp_path / "2.txt", "second")
    write(tmp_path / "1.txt", "\ufeffsee " + REFERENCE.format("img/a.png") + " é\n")
    write(tmp_path / "img/a.png")
    write(tmp_path / "other.pdf", "x")
    source = open_source(tmp_path)
    assert [shown(source.parts(i)) for i in range(len(source))] == [["see ", RED, " é\n"], ["second"]]
    assert list(source.texts()) == ["see ", " é\n", "second"]
    assert source.unusable == [(str(tmp_path / "other.pdf"), "neither text nor image")]
    assert not source.captioned


def test_references_are_relative_to_the_text_file(tmp_path):
    write(tmp_path / "deep/1.txt", REFERENCE.format("a.png"))
    write(tmp_path / "deep/a.png")
    assert shown(open_source(tmp_path).parts(0)) == [RED]


def test_texts_with_images_elsewhere(tmp_path):
    write(tmp_path / "texts/1.txt", "no mark")
    write(tmp_path / "texts/2.txt", REFERENCE.format("a.png"))
    write(tmp_path / "texts/stray.png")
    write(tmp_path / "images/a.png", png("blue"))
    archive = write_zip(tmp_path / "images.zip", {"a.png": png("blue")})
    for images in (tmp_path / "images", archive):
        source = open_source(tmp_path / "texts", images)
        assert [shown(source.parts(i)) for i in range(2)] == [["no mark"], [BLUE]]


def test_single_text(tmp_path):
    assert open_source(write(tmp_path / "1.txt", "one document")).parts(0) == ["one document"]


def test_texts_do_not_open_images(tmp_path):
    write(tmp_path / "1.txt", "a " + REFERENCE.format("../missing.png"))
    assert list(open_source(tmp_path).texts()) == ["a "]


@pytest.mark.parametrize(
    "content, message",
    [
        ("ok\n<|image|>a.png", "1.txt, text line 2: .*without"),
        ("\n\n<|image|>../a.png<|/image|>", r"1.txt, text line 3: .*'\.\./a.png'.*--allow-outside"),
        (b"caf\xe9", "1.txt is not valid UTF-8 at byte 3"),
    ],
)
def test_malformed_text_file(tmp_path, content, message):
    refused(message, open_source(write(tmp_path / "1.txt", content).parent).parts, 0)


def test_malformed_text_is_found_without_images_too(tmp_path):
    refused("1.txt, text line 1", list, open_source(write(tmp_path / "1.txt", "<|/image|>")).texts())


def test_text_file_that_went_away(tmp_path):
    source = open_source(write(tmp_path / "1.txt", "x"))
    (tmp_path / "1.txt").unlink()
    refused("1.txt cannot be read: No such file", source.parts, 0)


def test_allow_outside(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "texts/1.txt", REFERENCE.format("../a.png"))
    assert shown(open_source(tmp_path / "texts", None, True).parts(0)) == [RED]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing", None, "no file or folder .*missing; give a folder"),
        ("*.tar", None, r"no file or folder .*; a shell fills in names only outside of quotes; give"),
        ("p.parquet", LFS, "p.parquet is a pointer of Git LFS in place of the file; run git lfs pull"),
        ("p.tar", LFS, "p.tar is a pointer of Git LFS"),
        ("p.zip", LFS, "p.zip is a pointer of Git LFS"),
        ("p.jsonl", LFS, "p.jsonl is a pointer of Git LFS"),
        ("empty/", None, "empty holds no images, it is empty; give"),
        ("a.pdf", "x", r"unknown kind \(.pdf\); give"),
        ("plain", "x", r"unknown kind \(no suffix\); give"),
        ("c.jsonl.gz", "x", r"c.jsonl.gz is compressed \(.gz\), and cannot be read in place; unpack it"),
        ("c.jsonl", "\n \n", "c.jsonl holds no documents; give"),
    ],
)
def test_nothing_usable(tmp_path, name, content, message):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    elif content:
        write(tmp_path / name, content)
    refused(message, open_source, tmp_path / name)


def test_folder_of_foreign_files(tmp_path):
    write(tmp_path / "a.pdf", "x")
    refused(r"holds no images but 1 other files, such as .*a.pdf \(not an image\)", open_source, tmp_path)


@pytest.mark.parametrize("members", [{}, {"a.txt": b"x"}])
def test_archive_without_images(tmp_path, members):
    refused("a.zip holds no images", open_source, write_zip(tmp_path / "a.zip", members))
    refused("a.tar holds no images", open_source, write_tar(tmp_path / "a.tar", members))


@pytest.mark.parametrize("images", ["missing", "file.png"])
def test_images_that_are_no_folder(tmp_path, images):
    write(tmp_path / "file.png")
    path = write(tmp_path / "c.jsonl", '{"text": "x"}')
    for place in (path, tmp_path / "file.png", tmp_path):  # of these only the first refers to images
        refused("images must be a folder, a .zip or a .tar, got .*" + images, open_source, place, tmp_path / images)


def test_digests_tell_collections_apart_wherever_they_lie(tmp_path):
    def made(place, captions="a", extra=False):
        folder = tmp_path / place
        for name in ["1.png", "2.png", *(["3.png"] if extra else [])]:
            write(folder / "images" / name)
            write(folder / "texts" / name.replace("png", "txt"), f"{captions} {REFERENCE.format(name)}")
        write(folder / "c.jsonl", "".join(f'{{"text": "{captions}{n}"}}\n' for n in range(2 + extra)))
        write_zip(folder / "i.zip", {f"{n}.png": png() for n in range(2 + extra)})
        sources = [open_source(folder / name) for name in ("images", "c.jsonl", "i.zip")]
        return [source.digest() for source in [*sources, open_source(folder / "texts", folder / "images")]]

    first = made("one")
    assert first == made("elsewhere") and len(set(first)) == 4
    assert all(one != two for one, two in zip(first, made("more", extra=True), strict=True))
    assert [one != two for one, two in zip(first, made("words", "longer"), strict=True)] == [False, True, False, True]


def test_a_text_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 100)
    source = open_source(write(tmp_path / "a.txt", "x" * 101))
    refused(r"a\.txt, 101 bytes are too many for one document", source.parts, 0)
    refused(r"a\.txt, 101 bytes", list, source.texts())


def test_names_in_messages_stay_on_one_line(tmp_path):
    refused(
        r"holds no images but 1 other files, such as '.*a\\nb.html' \(not an image\)",
        open_source,
        write(tmp_path / "a\nb.html").parent,
    )


def test_pipes_among_texts_are_named_and_never_opened(tmp_path):
    write(tmp_path / "a.txt", "words")
    os.mkfifo(tmp_path / "b.txt")
    source = open_source(tmp_path)
    assert list(source.texts()) == ["words"] and source.unusable == [(str(tmp_path / "b.txt"), "not a regular file")]


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_that_lead_out_are_refused_for_texts_as_for_images(tmp_path):
    write(tmp_path / "secret.txt", "secret")
    write(tmp_path / "other.png")
    for name in ("a.png", "b.png"):
        write(tmp_path / "d" / name)
    (tmp_path / "d/a.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "d/c.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "d/d.png").symlink_to(tmp_path / "d/b.png")
    source = open_source(tmp_path / "d")
    assert names(source) == [str(tmp_path / "d" / name) for name in ("a.png", "b.png", "d.png")]
    assert list(source.texts()) == []
    assert source.unusable == [(str(tmp_path / "d" / name), LEADS_OUT) for name in ("a.txt", "c.png")]
    assert left_out([source]) == "; left out: 1 .txt (links that lead out), 1 .png (links that lead out)"
    assert list(open_source(tmp_path / "d", None, True).texts()) == ["secret"]


def test_links_of_hugging_faces_cache_are_its_own(tmp_path):
    repository = tmp_path / "hub/datasets--a--b"
    snapshot = repository / "snapshots/abc"
    for name, content in (("1", png()), ("2", "a caption"), ("3", '{"image": "images/a.png", "caption": "c"}')):
        write(repository / "blobs" / name, content)
    (snapshot / "images").mkdir(parents=True)
    (snapshot / "images/a.png").symlink_to("../../../blobs/1")
    (snapshot / "images/a.txt").symlink_to("../../../blobs/2")
    (snapshot / "train.jsonl").symlink_to("../../blobs/3")
    assert shown(open_source(snapshot / "images").parts(0)) == [RED, "a caption"]
    assert shown(open_source(snapshot / "train.jsonl").parts(0)) == [RED, "c"]
    write(tmp_path / "secret.png")
    (repository / "blobs/4").symlink_to(tmp_path / "secret.png")  # a blob is no way out
    (snapshot / "images/b.png").symlink_to("../../../blobs/4")
    (snapshot / "images/c.png").symlink_to(tmp_path / "secret.png")
    assert len(open_source(snapshot / "images")) == 1
    (repository / "blobs").rename(tmp_path / "blobs")  # nor are blobs that lie elsewhere
    (repository / "blobs").symlink_to(tmp_path / "blobs")
    refused("holds no images", open_source, snapshot / "images")
