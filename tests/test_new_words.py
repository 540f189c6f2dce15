"""New words of tokenizers: one id each behind the old ones, in texts of all kinds, kept in the file."""

import io
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from test_tokenizer import byte_level
from tokenizers import decoders, models, pre_tokenizers

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.new_words import add_words, missing_characters
from mlx_pixword.inputs.tokenizer import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from mlx_pixword.model.document import SPECIAL_WORDS


def unigram() -> bytes:
    """A sentencepiece model of others: normalised text, a mark before the first word, no bytes."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red green blue 12", "twelve 34"] * 5), model_writer=made, model_type="unigram",
        vocab_size=30, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def word_level() -> bytes:
    plain = ["red", "green", *"0123456789"]
    words = ["[UNK]", "\u2581", *plain, *(f"\u2581{word}" for word in plain)]
    made = tokenizers.Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    return made.to_str().encode()


KINDS = {
    "ours": lambda: train_tokenizer(["red 12 caf\u00e9", "green 34"], 300),
    "sentencepiece": lambda: SentencePieceTokenizer(unigram()),
    "bytes": lambda: HuggingFaceTokenizer(byte_level()),
    "bytes, with special words": lambda: HuggingFaceTokenizer(byte_level(SPECIAL_WORDS)),
    "words": lambda: HuggingFaceTokenizer(word_level()),
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return KINDS[request.param]()


def test_new_words_follow_the_old_ones_and_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    old = {text: tokenizer.encode(text) for text in ("red", "green 3", "3 red 0")}
    size, contents = tokenizer.vocab_size, tokenizer.contents
    words = ["\u20ac12", "\u65e5\u672c", "\u00bd\u2122", "\u20ac12"]  # normalised, \u00bd would be another text
    made, new = add_words(tokenizer, words)
    assert new == {"\u20ac12": size, "\u65e5\u672c": size + 1, "\u00bd\u2122": size + 2}
    assert made.vocab_size == size + 3
    assert (tokenizer.vocab_size, tokenizer.contents) == (size, contents)
    assert {text: made.encode(text) for text in old} == old
    text = "red \u20ac12 3\u65e5\u672c\u20ac12 \u00bd\u2122"
    ids = made.encode(text)
    assert [i for i in ids if i >= size] == [size, size + 1, size, size + 2]
    assert made.decode(ids) == text
    (tmp_path / made.filename).write_bytes(made.contents)
    again, none = add_words(load_tokenizer(tmp_path / made.filename), words)
    assert none == {} and again.contents == made.contents and again.encode(text) == ids


def test_words_that_are_there_are_passed_over() -> None:
    tokenizer = KINDS["ours"]()
    made, new = add_words(tokenizer, ["red", "\u00e9", "1", "\u00df"])
    assert list(new) == ["\u00df"] and made.encode("red") == tokenizer.encode("red")


def test_rows_of_no_word_are_the_first_to_be_used() -> None:
    """A language model's table may have more rows than there are words."""
    tokenizer = KINDS["ours"]()
    size = tokenizer.vocab_size
    tokenizer.vocab_size += 5
    assert add_words(tokenizer, ["\u00df"])[1] == {"\u00df": size}


@pytest.mark.parametrize(
    ("kind", "word"),
    [("ours", "<s>"), ("ours", "<0x41>"), ("bytes", "\u00e9"), ("bytes", "\u00e9a"),
     ("bytes, with special words", "<|image|>")],
)  # fmt: skip
def test_words_that_stand_for_something_else_are_refused(kind: str, word: str) -> None:
    with pytest.raises(PixWordError, match=r"the tokenizer (takes not all of the new words|does not take) ") as error:
        add_words(KINDS[kind](), ["\u20ac12", word])
    assert word in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "lost", "spelled"),
    [("ours", [], ["\u00df", "\u65e5"]), ("sentencepiece", ["\u00df", "\u00e9", "\u65e5"], []),
     ("bytes", [], ["\u00df", "\u65e5"]), ("words", ["\u00df", "\u00e9", "\u65e5"], [])],
)  # fmt: skip
def test_characters_that_are_missing(kind: str, lost: list[str], spelled: list[str]) -> None:
    texts = ["red 1", "3 \u00df\u00df\u00df", "\u00df\u00e9\t1\u00e9", "1 \u65e5"]
    found = missing_characters(KINDS[kind](), texts)
    assert [sorted(part) for part in found] == [sorted(lost), sorted(spelled)]
    assert not lost or found[0][0] == "\u00df"  # the most frequent
