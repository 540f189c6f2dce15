"""What a tokenizer learns from: every part of every source, whatever its length, and the same for a seed."""

import numpy as np
from source_files import write

from mlx_pixword.data import text_sample
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.sources import open_source
from mlx_pixword.data.text_sample import has_text, sample_texts


def limit(monkeypatch, **limits):
    for name, value in limits.items():
        monkeypatch.setattr(text_sample, name, value)


def test_small_data_is_taken_whole_and_in_order(tmp_path):
    write(tmp_path / "1.jsonl", "".join(f'{{"text": "line {n}"}}\n' for n in range(20)))
    write(tmp_path / "2.txt", "x" * 2500 + "end")
    sources = [open_source(tmp_path / name) for name in ("1.jsonl", "2.txt")]
    expected = [f"line {n}" for n in range(20)] + ["x" * 1000, "x" * 1000, "x" * 500 + "end"]
    assert sample_texts(sources, 0) == sample_texts(sources, 1) == expected


def test_characters_are_counted_and_not_pieces(tmp_path, monkeypatch):
    limit(monkeypatch, CHARACTERS=1000)
    write(tmp_path / "1.jsonl", "".join(f'{{"text": "{n:04}"}}\n' for n in range(2000)))
    source = open_source(tmp_path / "1.jsonl")
    sample = sample_texts([source], 3)
    assert len(sample) == 250 and sample == sample_texts([source], 3) != sample_texts([source], 4)
    assert sample == sorted(sample)  # in their order
    assert 800 < np.mean([int(text) for text in sample]) < 1200  # over all of the length


def test_all_sources_and_all_of_a_long_text_have_their_share(tmp_path, monkeypatch):
    limit(monkeypatch, CHARACTERS=20_000, PIECE=100)
    write(tmp_path / "long.txt", "".join(f"{n:09} " for n in range(20_000)))  # 200,000 characters
    write(tmp_path / "other.jsonl", "".join('{"text": "' + "é" * 100 + '"}\n' for _ in range(2000)))
    sample = sample_texts([open_source(tmp_path / name) for name in ("long.txt", "other.jsonl")], 0)
    assert sum(map(len, sample)) == 20_000
    numbers = [int(text[:9]) for text in sample if text[0] != "é"]
    assert 60 < len(numbers) < 140 and 7_000 < np.mean(numbers) < 13_000


def test_reading_ends_and_still_covers_what_is_there(tmp_path, monkeypatch):
    limit(monkeypatch, DOCUMENTS=50)
    write(tmp_path / "1.jsonl", "".join(f'{{"text": "{n:04}"}}\n' for n in range(2000)))
    sample = sample_texts([open_source(tmp_path / "1.jsonl")], 0)
    assert len(sample) == 50 and 600 < np.mean([int(text) for text in sample]) < 1400
    limit(monkeypatch, READ_CHARACTERS=20)
    assert len(sample_texts([open_source(tmp_path / "1.jsonl")], 0)) == 6


def test_a_malformed_document_is_passed_over(tmp_path):
    write(tmp_path / "1.txt", "good")
    write(tmp_path / "2.txt", b"caf\xe9")
    source = open_source(tmp_path)
    assert sample_texts([source], 0) == ["good"] and has_text([source])
    (tmp_path / "1.txt").unlink()
    assert not has_text([open_source(tmp_path)])


def test_endless_sources_offer_their_texts():
    assert len(sample_texts([PlateSource(1)], 0)) == 200 and has_text([PlateSource(1)])
