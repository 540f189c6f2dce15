"""Tokenizers for mlx-lm: a sentencepiece model of ours and its `tokenizer.json` give the same ids and texts."""

import json

import pytest
from test_new_words import KINDS
from test_tokenizer import CORPUS, SPECIAL_TEXTS, TEXTS
from tokenizers import Tokenizer as Model

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.new_words import add_words
from mlx_pixword.inputs.tokenizer import Tokenizer, train_tokenizer
from mlx_pixword.weights.tokenizer_files import tokenizer_files

IDS = {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "pad_token_id": 3}


@pytest.mark.parametrize(
    "tokenizer",
    [
        train_tokenizer(["red 12"], 300),
        train_tokenizer(CORPUS * 3, 400),
        add_words(train_tokenizer(CORPUS, 330), ["\u20ac12", "1207", "plates,"])[0],
    ],
    ids=["small", "large", "with new words"],
)
def test_ids_and_texts_are_the_same(tokenizer: Tokenizer) -> None:
    files = tokenizer_files(tokenizer, 0, IDS)
    theirs = Model.from_str(files["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    for text in [*TEXTS, *CORPUS, *SPECIAL_TEXTS, "\u20ac12 plates,1207 plates 2 1207"]:
        first, *ids = theirs.encode(text).ids
        assert first == 1 and ids == tokenizer.encode(text), text
        assert theirs.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    assert theirs.decode([1, *ids, 2, 5]) == tokenizer.decode(ids)
    config = json.loads(files["tokenizer_config.json"])
    assert [config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")] == [
        "<s>", "</s>", "<unk>", "<pad>"
    ]  # fmt: skip


def test_a_file_of_others_stays_as_it_is() -> None:
    """Of a model that started as one of mlx-lm's: the file's own ids, and names of its own special words."""
    tokenizer = KINDS["words"]()
    files = tokenizer_files(tokenizer, 6, {"eos_token_id": 2, "pad_token_id": 99})
    assert files["tokenizer.json"] == tokenizer.contents
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "red"
    assert "pad_token" not in json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize(("kind", "first"), [("words", 0), ("sentencepiece", 0), ("ours", 6), ("bytes", 0)])
def test_words_that_are_counted_otherwise_are_refused(kind: str, first: int) -> None:
    with pytest.raises(PixWordError, match="counts its words from 0 and the model's follow 6 special ones"):
        tokenizer_files(KINDS[kind](), first, IDS)


def test_another_kind_of_sentencepiece_is_refused() -> None:
    with pytest.raises(PixWordError, match="is not of the kind that this library trains"):
        tokenizer_files(KINDS["sentencepiece"](), 6, IDS)
