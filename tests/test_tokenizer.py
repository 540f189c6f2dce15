"""Tokenizers: every text comes back as it was, special words are never found in it, and bad files are named."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs import tokenizer as tokenizer_module
from mlx_pixword.inputs.tokenizer import (
    LEAST_VOCAB_SIZE,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from mlx_pixword.model.document import SPECIAL_WORDS

CORPUS = ["seven red plates, 1207", "two blue plates\tand a tab", "Grüße, naïve café", "line\nbreak", "日本語 日本"]
TEXTS = [
    "",
    " ",
    "  two  spaces   each  ",
    "\t\n\r\n\n\t tabs and lines \n",
    "seven red plates",
    "never seen: ÄÖÜ ßæøå čšž",
    "日本語と中文和한국어",
    "family 👩‍👩‍👧‍👦, flag 🇯🇵, skin 👍🏽",
    "\x00 NUL \x00\x01\x7f",
    "e\u0301 is not \u00e9, \ufb01 is not fi, \u2460 is not 1",
    "\ufeffmark \u200b zero \u00a0 width \u3000 wide \u2028 line",
    "العربية עברית हिन्दी",
    "\U0010ffff\uffff\U00020000",
    "0123456789 3.14 -1e5",
    "<0x41> [UNK] ## </w> Ġ",
    "x" * 5000,
]
SPECIAL_TEXTS = ["<|image|>", "a<|image|>b.png<|/image|>c", "".join(SPECIAL_WORDS), "<s> </s><unk> <pad>"]


def byte_level(special: Sequence[str] = (), **changes: Any) -> bytes:
    """A small byte-level BPE tokenizer.json with ``special`` first, and top-level keys replaced by ``changes``."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    return json.dumps(json.loads(model.to_str()) | changes).encode()


def foreign_sentencepiece() -> bytes:
    """A sentencepiece model as others make them: three special words, other places."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_writer=model, model_type="bpe", vocab_size=320, minloglevel=2,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    return model.getvalue()


TOKENIZERS: dict[str, Tokenizer] = {
    "tiny sentencepiece": train_tokenizer(["a"], 300),
    "sentencepiece": train_tokenizer(CORPUS * 3, 400),
    "foreign sentencepiece": SentencePieceTokenizer(foreign_sentencepiece()),
    "ours in tokenizer.json": HuggingFaceTokenizer(byte_level(SPECIAL_WORDS)),
    "foreign tokenizer.json": HuggingFaceTokenizer(byte_level(["<|endoftext|>"])),
    "bare tokenizer.json": HuggingFaceTokenizer(byte_level()),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=list(TOKENIZERS))


# --- what holds for all -----------------------------------------------------------------------------------------------


@every_tokenizer
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]))
def test_texts_come_back_as_they_were(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(6 <= i < tokenizer.vocab_size for i in ids) and all(type(i) is int for i in ids)


@every_tokenizer
@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_special_words_in_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert min(ids) >= 6
    assert tokenizer.decode(ids) == text


@every_tokenizer
def test_special_ids_are_left_out_of_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(range(6)) == ""
    word = tokenizer.encode("plates")
    assert tokenizer.decode([1, *word, 4, 5, *word, 2, 3]) == "platesplates"


@every_tokenizer
def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    text = json.loads('"cut \\ud83d off, whole \\ud83d\\ude00"')  # JSON may hold what UTF-8 cannot
    assert tokenizer.decode(tokenizer.encode(text)) == "cut \ufffd off, whole 😀"


@every_tokenizer
def test_contents_load_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / tokenizer.filename
    path.write_bytes(tokenizer.contents)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer)
    assert (again.contents, again.vocab_size) == (tokenizer.contents, tokenizer.vocab_size)
    for text in (*CORPUS, *TEXTS):
        assert again.encode(text) == tokenizer.encode(text)


# --- training ---------------------------------------------------------------------------------------------------------


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("texts", [["a"], [" "], ["", "a", ""], ["<|image|>"], ["1"], ["line\nbreak"], ["日"]])
def test_tiny_corpora_are_enough(texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, 512)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in [*texts, *TEXTS])


def test_special_words_come_first() -> None:
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(TOKENIZERS["sentencepiece"].contents)
    assert tuple(model.IdToPiece(i) for i in range(6)) == SPECIAL_WORDS
    assert model.GetPieceSize() == TOKENIZERS["sentencepiece"].vocab_size  # so nothing is shifted


@pytest.mark.parametrize("vocab_size", [264, 300, 4096, 100_000])
def test_a_small_corpus_gives_a_small_vocabulary(vocab_size: int) -> None:
    tokenizer = train_tokenizer(["ab"] * 3, vocab_size) if vocab_size > 264 else train_tokenizer(["a"], vocab_size)
    assert 262 < tokenizer.vocab_size < 270


def test_a_large_corpus_fills_the_vocabulary_and_shortens_texts() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.isascii()]
    small, large = train_tokenizer(lines, 400), train_tokenizer(lines, 700)
    assert (small.vocab_size, large.vocab_size) == (400, 700)
    assert len(large.encode(text)) < len(small.encode(text)) < len(text.encode())
    assert large.decode(large.encode(text)) == text


def test_training_gives_the_same_model_again() -> None:
    assert train_tokenizer(CORPUS, 300).contents == train_tokenizer(iter(CORPUS), 300).contents


def test_digits_are_words_of_their_own() -> None:
    tokenizer = train_tokenizer(["12 1234 1234 12"] * 50, 400)
    assert pieces(tokenizer, "1234") == ["1", "2", "3", "4"]
    assert pieces(tokenizer, "a12 2")[-4:] == ["1", "2", " ", "2"]


def test_frequent_words_become_one() -> None:
    tokenizer = train_tokenizer(["red plates red plates"] * 50, 400)
    assert len(tokenizer.encode(" plates")) == 1


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["\n"]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(PixWordError, match=r"no tokenizer could be trained on this text"):
        train_tokenizer(texts, 300)


# --- files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("special", "shift"), [((), 6), (["<|endoftext|>"], 6), (SPECIAL_WORDS, 0)])
def test_ids_are_shifted_by_six_unless_the_special_words_are_there(special: Sequence[str], shift: int) -> None:
    contents = byte_level(special)
    plain = tokenizers.Tokenizer.from_str(contents.decode())
    tokenizer = HuggingFaceTokenizer(contents)
    assert tokenizer.vocab_size == plain.get_vocab_size() + shift
    assert tokenizer.encode("red plates") == [i + shift for i in plain.encode("red plates").ids]


def test_sentencepiece_ids_are_shifted_by_six_unless_the_special_words_are_there() -> None:
    for name, shift in {"foreign sentencepiece": 6, "sentencepiece": 0}.items():
        tokenizer, plain = TOKENIZERS[name], sentencepiece.SentencePieceProcessor()
        plain.LoadFromSerializedProto(tokenizer.contents)
        assert tokenizer.vocab_size == plain.GetPieceSize() + shift
        assert tokenizer.encode("red plates") == [i + shift for i in plain.EncodeAsIds("red plates")]


def test_special_words_in_another_order_are_not_ours() -> None:
    tokenizer = HuggingFaceTokenizer(byte_level(SPECIAL_WORDS[::-1]))
    assert min(tokenizer.encode("red")) >= 12
    assert tokenizer.decode(tokenizer.encode("<s>red")) == "<s>red"


def test_special_words_that_a_file_holds_as_plain_words_stay_text_too() -> None:
    plain = [word | {"special": False} for word in json.loads(byte_level(SPECIAL_WORDS))["added_tokens"]]
    tokenizer = HuggingFaceTokenizer(byte_level(SPECIAL_WORDS, added_tokens=plain))
    assert tokenizer.vocab_size == TOKENIZERS["ours in tokenizer.json"].vocab_size
    for text in SPECIAL_TEXTS:
        assert min(tokenizer.encode(text)) >= 6 and tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_is_put_in_cut_off_or_padded() -> None:
    """A tokenizer.json may ask for a start word, for truncation and for padding."""
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    contents = byte_level(SPECIAL_WORDS, post_processor=template, truncation=truncation, padding=padding)
    plain = TOKENIZERS["ours in tokenizer.json"]
    for text in ("a", "seven red plates, and more"):
        assert HuggingFaceTokenizer(contents).encode(text) == plain.encode(text)


def test_gaps_in_the_ids_are_counted() -> None:
    model = json.loads(byte_level())["model"]
    model["vocab"]["zq"] = 1000
    model["merges"].append(["z", "q"])
    tokenizer = HuggingFaceTokenizer(byte_level(model=model))
    assert tokenizer.encode("zq") == [1006] and tokenizer.vocab_size == 1007


# --- mistakes ---------------------------------------------------------------------------------------------------------

PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAA"}
WORD_LEVEL = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}
STRIP = {"type": "Strip", "content": "a", "start": 10**6, "stop": 10**6}


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.model", b"", "not a sentencepiece model"),
        ("a.model", b"no model", "not a sentencepiece model"),
        ("a.model", TOKENIZERS["sentencepiece"].contents[:-100], "not a sentencepiece model"),
        ("a", byte_level(), "not a sentencepiece model"),
        ("a.json", b"", "not a tokenizer.json: EOF"),
        ("a.json", b"{}", "not a tokenizer.json: Model missing"),
        ("a.json", b"[1, 2", "not a tokenizer.json: "),
        ("a.json", byte_level()[:-50], "not a tokenizer.json: "),
        ("a.json", TOKENIZERS["sentencepiece"].contents, "not a tokenizer.json: 'utf-8' codec"),
        ("a.json", byte_level(normalizer=PRECOMPILED | {"precompiled_charsmap": "AAAA"}), "not a tokenizer.json: "),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(PixWordError) as caught:
        load_tokenizer(tmp_path / name)
    assert str(caught.value).startswith(f"tokenizer {tmp_path / name}: {message}")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_files_that_fail_in_use_are_mistakes_too(number: int) -> None:
    """The library panics over most of them, and a panic is no `Exception`."""
    changes: list[dict[str, Any]] = [
        {"normalizer": PRECOMPILED},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": None, "model": WORD_LEVEL},
        {"decoder": STRIP},
    ]
    tokenizer = HuggingFaceTokenizer(byte_level(**changes[number - 1]))
    with pytest.raises(PixWordError, match=r"^the tokenizer fails on (a text|word ids): .+$") as caught:
        tokenizer.decode([*tokenizer.encode("seven red plates"), *range(6, tokenizer.vocab_size)])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_FILE", 10)
    (tmp_path / "a.model").write_bytes(bytes(11))
    with pytest.raises(PixWordError, match=r"a\.model has 11 bytes, the limit is 10"):
        load_tokenizer(tmp_path / "a.model")


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.model", "No such file"), ("missing.json", "No such"), ("", "Is a dir")]
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(PixWordError) as caught:
        load_tokenizer(tmp_path / name)
    assert str(caught.value).startswith(f"tokenizer {tmp_path / name}: {reason}")


@pytest.mark.parametrize("vocab_size", [6, 300, 512, 5000])
def test_more_characters_than_pieces_are_spelled_in_bytes(vocab_size: int) -> None:
    texts = ["".join(chr(0x4E00 + (37 * i + 11 * j) % 3000) for j in range(50)) for i in range(100)]
    tokenizer = train_tokenizer(texts, vocab_size)
    assert tokenizer.vocab_size <= max(vocab_size, LEAST_VOCAB_SIZE)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_one_long_line_is_learnt_from() -> None:
    assert train_tokenizer(["abc" * 30_000], 300).vocab_size > 266
