"""Rows of new words in a model's tables, and what is said of characters that a tokenizer lacks."""

import mlx.core as mx
import numpy as np
import pytest
from test_new_words import KINDS

from mlx_pixword.training.vocabulary import add_rows, missing_notes


@pytest.mark.parametrize("unused", [0, 1, 5])
def test_new_rows_are_means_and_old_ones_stay(unused: int) -> None:
    """``unused``: rows behind the words of a language model, which new words take first."""
    tokenizer, pixels = KINDS["sentencepiece"](), 4
    size = tokenizer.vocab_size
    count = size + unused
    before = {name: mx.random.normal((rows, 3)) for name, rows in
              (("embed_words.weight", count), ("head.weight", count + pixels), ("norm.weight", 9))}  # fmt: skip
    after = dict(before)
    add_rows(after, count, tokenizer, ["blue", "bl", "ß"])
    for name, table in before.items():
        old, new = np.array(table), np.array(after[name])
        if name == "norm.weight":
            assert (new == old).all()
            continue
        words, end = max(count, size + 3), len(old) - count
        assert len(new) == words + end
        assert (new[:size] == old[:size]).all() and (new[size + 3 : count] == old[size + 3 : count]).all()
        assert (new[words:] == old[count:]).all()  # pixels
        for number, word in enumerate(["blue", "bl"], size):
            assert new[number] == pytest.approx(old[tokenizer.encode(word)].mean(axis=0), abs=1e-6)
        assert new[size + 2] == pytest.approx(old[6:count].mean(axis=0), abs=1e-6)  # it could not be spelled


def test_notes_say_what_to_do() -> None:
    lost, spelled = (missing_notes(KINDS[kind](), ["red 1", "1 ß$ß"]) for kind in ("words", "ours"))
    assert lost == ["words    the tokenizer loses 2 of the data's characters; to make them words: --new-words 'ß $'"]
    assert spelled == [
        "words    the tokenizer spells in pieces 1 of the data's characters; to make them words: --new-words 'ß'"
    ]
    (many,) = missing_notes(KINDS["ours"](), [" ".join(map(chr, range(0x4E00, 0x4E40)))])
    assert "spells in pieces 64 of the data's characters; " in many and many.endswith(" ...") and len(many) < 150
    assert missing_notes(KINDS["ours"](), ["red 12"]) == []
