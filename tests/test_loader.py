"""The loader: (seed, group) decide what a batch holds, bad files are named once, and the cache saves decoding."""

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shots import TOKENIZER, Shot, Shots, shape

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.data import DataArgs
from mlx_pixword.data.base import Picture, Source
from mlx_pixword.data.loader import Encoder, Loader
from mlx_pixword.data.open import open_split
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.sources import open_source
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, WINDOW, Document


def loader(*sources: Source, skips: SkipLog | None = None, **options: Any) -> Loader:
    encoder = Encoder(shape(), TOKENIZER, skips or SkipLog())
    return Loader(sources, encoder, **{"batch_tokens": 30, "group_size": 10} | options)


def says(document: Document) -> str:
    return TOKENIZER.decode([e for e in document.elements if e != WINDOW])


def drawn(batches: Loader, count: int, *start: int) -> list[Any]:
    """The first batches: group, number, and of each document what it says and shows."""
    stream = batches.batches(*start)
    taken = [
        (group, number, [[(says(d), d.images[0].windows.tolist()) for d in row] for row in rows])
        for group, number, rows in itertools.islice(stream, count)
    ]
    stream.close()  # type: ignore[attr-defined]
    return taken


def told(batches: Loader, groups: int) -> list[list[str]]:
    """What the documents of each of the first groups say."""
    texts: list[list[str]] = [[] for _ in range(groups)]
    for group, _, rows in itertools.takewhile(lambda batch: batch[0] < groups, batches.batches()):
        texts[group] += [says(document) for row in rows for document in row]
    return texts


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
def test_batches_do_not_depend_on_threads(pack: bool) -> None:
    one, two, seven = (drawn(loader(Shots(range(25)), seed=3, pack=pack, threads=n), 15) for n in (1, 2, 7))
    assert one == two == seven
    assert drawn(loader(Shots(range(25)), seed=4, pack=pack), 15) != one


def test_reading_can_begin_at_any_batch() -> None:
    everything = drawn(loader(Shots(range(25)), seed=3), 16)
    assert everything[1][1] == 1 and everything[-1][0] > 1  # several batches a group, several groups
    for start, (group, number, _) in enumerate(everything[:12]):
        assert drawn(loader(Shots(range(25)), seed=3), 4, group, number) == everything[start : start + 4]


def test_after_the_last_batch_of_a_group_comes_the_next_group() -> None:
    everything = drawn(loader(Shots(range(25))), 12)
    first = sum(group == 0 for group, _, _ in everything)
    assert drawn(loader(Shots(range(25))), 3, 0, first) == everything[first : first + 3]


@pytest.mark.parametrize("count", [1, 3, 10, 25, 64])
def test_epochs_are_permutations_across_group_boundaries(count: int) -> None:
    batches = loader(Shots(range(count)))
    groups = -(-4 * count // batches.group_size)
    indices = [index for group in range(groups) for index in batches.indices(group)]
    epochs = [indices[n * count : (n + 1) * count] for n in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 10 or len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own


def test_the_seed_decides_the_order() -> None:
    one, again, other = (loader(Shots(range(25)), seed=seed).indices(0) for seed in (1, 1, 2))
    assert one == again != other


def test_groups_may_be_asked_for_in_any_order() -> None:
    groups = [5, 0, 3, 3, 1]
    batches, fresh = loader(Shots(range(25))), [loader(Shots(range(25))) for _ in groups]
    assert [batches.indices(n) for n in groups] == [one.indices(n) for one, n in zip(fresh, groups, strict=True)]


def test_a_group_is_an_epoch_at_most() -> None:
    assert [loader(Shots(range(count))).group_size for count in (1, 9, 10, 11)] == [1, 9, 10, 10]


def test_groups_know_their_epoch() -> None:
    batches = loader(Shots(range(25)))
    assert len(batches) == 25
    assert [batches.epoch(group) for group in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_a_group_holds_the_documents_of_its_indices() -> None:
    batches = loader(Shots(range(25)))
    for group, texts in enumerate(told(batches, 5)):
        assert sorted(texts) == sorted(str(index) for index in batches.indices(group))


def test_sources_follow_one_another() -> None:
    batches = loader(Shots([0, 1, 2]), Shots([3]), Shots([4, 5]))
    assert [says(batches.read(index)[0]) for index in range(6)] == list("012345")


def test_other_indices_than_those_to_keep_never_appear() -> None:
    keep = np.array([1, 4, 5, 12, 20])
    batches = loader(Shots(range(12)), Shots(range(12, 23)), keep=keep)
    assert len(batches) == 5
    assert [sorted(map(int, texts)) for texts in told(batches, 4)] == [keep.tolist()] * 4


@pytest.mark.parametrize("wanted", [5, 1000])
def test_held_out_documents_are_never_trained_on(tmp_path: Path, wanted: int) -> None:
    for n in range(31):
        Image.new("RGB", (4, 4), (n * 8, 0, 0)).save(tmp_path / f"{n}.png")
    split = open_split(DataArgs(data=[str(tmp_path)]), seed=1, heldout=wanted)
    assert split.train_indices is not None and split.heldout_indices is not None
    everything = [*split.train_indices, *split.heldout_indices]
    assert len(split.heldout_indices) == min(wanted, 4) and sorted(everything) == list(range(31))
    batches = loader(*split.train, keep=split.train_indices)
    trained = {index for group in range(20) for index in batches.indices(group)}
    assert trained == set(split.train_indices.tolist())


def test_endless_sources_are_read_index_by_index() -> None:
    batches = loader(PlateSource(1))
    assert (batches.indices(0), batches.indices(3)) == (list(range(10)), list(range(30, 40)))
    assert batches.epoch(99) == 0
    with pytest.raises(TypeError, match="no length"):
        len(batches)
    with pytest.raises(PixWordError, match="endless source cannot be mixed"):
        loader(PlateSource(1), Shots([1]))


def test_closing_ends_the_threads() -> None:
    drawn(loader(Shots(range(25)), threads=4), 2)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


# --- documents --------------------------------------------------------------------------------------------------------


def encode(*parts: str | Picture, captioned: bool = False, skips: SkipLog | None = None) -> list[Document]:
    return Encoder(shape(), TOKENIZER, skips or SkipLog())(parts, captioned)


def test_documents_are_marked_and_closed() -> None:
    (document,) = encode("12", Shot(0), "3")
    one, two, three = TOKENIZER.encode("123")
    assert document.elements.tolist() == [BOS, one, two, IMAGE, *[WINDOW] * 4, END_IMAGE, three]
    assert document.closed


def test_a_caption_is_dropped_with_its_bad_image_and_running_text_keeps_its_words() -> None:
    bad = Shot(1, bad="torn")
    assert encode(bad, "1", captioned=True) == []
    (document,) = encode("2", bad, "3", Shot(4), "5")
    assert says(document) == "235" and len(document.images) == 1
    assert [says(one) for one in encode("2", bad)] == ["2"]


@pytest.mark.parametrize("parts", [[], [""], ["", ""], [Shot(1, bad="torn")]])
def test_nothing_to_learn_from_is_no_document(parts: list[str | Picture]) -> None:
    assert encode(*parts) == []


def test_texts_are_left_out_without_a_tokenizer() -> None:
    (document,) = Encoder(shape(vocab_size=6), None, SkipLog())(["12", Shot(0)])
    assert document.elements.tolist() == [BOS, IMAGE, *[WINDOW] * 4, END_IMAGE]


def test_long_documents_are_split() -> None:
    pieces = encode("1" * 35, Shot(0), "2" * 60)
    assert "".join(map(says, pieces)) == "1" * 35 + "2" * 60
    assert max(map(len, pieces)) <= 40 and [len(piece.images) for piece in pieces] == [0, 1, 0]


# --- files that are left out ------------------------------------------------------------------------------------------


def test_bad_files_are_named_once_with_their_reason(tmp_path: Path) -> None:
    skips = SkipLog(tmp_path / "skipped.jsonl")
    batches = loader(Shots(range(12), bad=[3, 8]), skips=skips)
    texts = {text for group in told(batches, 6) for text in group}
    assert texts == {str(n) for n in range(12) if n not in (3, 8)}
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(lines, key=str) == [{"file": f"{n}.png", "reason": "torn"} for n in (3, 8)]
    assert skips.count == 2


def test_too_many_bad_images_are_an_error(tmp_path: Path) -> None:
    skips = SkipLog(tmp_path / "skipped.jsonl")
    for _ in range(20):
        skips.tried()
    skips.skip("3.png", "torn")
    skips.check(0.05)
    skips.skip("4.png", "empty")
    with pytest.raises(PixWordError, match=r"^2 of 20 images are bad, .*0\.05: the first is 3\.png: torn; .*skipped"):
        skips.check(0.05)
    skips.check(0.1)


def test_files_that_never_were_images_do_not_count_as_bad(tmp_path: Path) -> None:
    skips = SkipLog(tmp_path / "skipped.jsonl")
    for _ in range(2):
        skips.skip("notes.pdf", "not an image", bad=False)
    assert skips.count == 0 and skips.first() == ""
    skips.check(0.0)
    assert (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").count("notes.pdf") == 1


@pytest.mark.parametrize("count", [1, 9, 30])
def test_data_without_a_single_good_document_is_an_error(count: int) -> None:
    with pytest.raises(PixWordError, match=rf"^none of the {count} documents can be used: the first is \d+.png: torn$"):
        next(loader(Shots(range(count), bad=range(count)), threads=1).batches())


def test_a_single_good_document_is_enough() -> None:
    stream = loader(Shots(range(60), bad=range(59))).batches()
    assert {says(rows[0][0]) for _, _, rows in itertools.islice(stream, 4)} == {"59"}


def counted(skips: SkipLog, count: int, *start: int, **options: Any) -> list[tuple[int, int]]:
    """Images tried and bad, batch by batch."""
    stream = loader(Shots(range(25), bad=[3, 8]), skips=skips, **options).batches(*start)
    return [(skips.tries, skips.count) for _ in itertools.islice(stream, count)]


def test_what_is_counted_depends_on_the_batch_alone_and_on_no_thread() -> None:
    one, five = counted(SkipLog(), 20), counted(SkipLog(), 20, threads=5)
    assert one == five and one[0] == (10, one[0][1]) and one[-1] == (25, 2)  # a second epoch counts nothing twice


def test_counting_goes_on_where_a_resumed_run_stood(tmp_path: Path) -> None:
    skips = SkipLog(tmp_path / "skipped.jsonl")
    skips.skip("notes.pdf", "not an image", bad=False)
    everything = counted(skips, 20)
    content = (tmp_path / "skipped.jsonl").read_bytes()
    again = SkipLog(tmp_path / "again.jsonl")
    again.skip("notes.pdf", "not an image", bad=False)
    group, number = drawn(loader(Shots(range(25), bad=[3, 8])), 6)[-1][:2]
    counted(again, 6)
    size, tries = again.size, again.tries
    counted(again, 14, group, number + 1)  # what a crash loses
    with (tmp_path / "again.jsonl").open("ab") as file:
        file.write(b'{"file": "torn')
    resumed = SkipLog(tmp_path / "again.jsonl", size)
    resumed.skip("notes.pdf", "not an image", bad=False)
    resumed.restore(tries)
    assert 0 < size < len(content)
    assert counted(resumed, 14, group, number + 1) == everything[6:]
    assert (tmp_path / "again.jsonl").read_bytes() == content


def test_documents_are_named_for_messages() -> None:
    assert loader(Shots([7]), Shots([8, 9])).read(2)[0].name == "shots, document 1 (9.png)"


def test_a_malformed_document_costs_itself_and_not_the_run(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "1.txt").write_text("<|image|>a.png")
    (tmp_path / "2.txt").write_text("<|image|>../../../etc/passwd<|/image|>")
    (tmp_path / "3.txt").write_bytes(b"\xff")
    skips = SkipLog(tmp_path / "skipped.jsonl")
    batches = loader(open_source(tmp_path), skips=skips)
    assert [len(batches.read(n)) for n in range(4)] == [1, 0, 0, 0]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    for reason, words in zip(reasons, ("without <|/image|>", "--allow-outside", "not valid UTF-8"), strict=True):
        assert words in reason
    assert (skips.count, skips.tries) == (3, 3)


@pytest.mark.parametrize("text", ["a\0b", "\0", "\0" * 1000, "\ud800", "\u202e\ufeff", "<|image|" * 50])
def test_odd_text_is_learnt_and_read_back(text: str) -> None:
    tokenizer = train_tokenizer([text, "plain words"], 300)
    ids = tokenizer.encode(text)
    assert all(6 <= i < tokenizer.vocab_size or i == 0 for i in ids)
    assert tokenizer.decode(ids) == text.replace("\ud800", "\ufffd")
