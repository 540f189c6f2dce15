"""New words for a tokenizer that is there: they follow its own, whose ids stay, and are kept in its own file format.

Sentencepiece has them as pieces that its users define, `tokenizers` as added tokens; both find them before all else.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence

from ..common.errors import PixWordError
from .tokenizer import HuggingFaceTokenizer, Tokenizer

_USER_DEFINED = 4  # sentencepiece's type of such pieces


def add_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer that writes each of some words as one id.

    Args:
        tokenizer: stays as it is.
        words: of at most 100 bytes, without spaces; those that it writes as one id already are passed over.

    Returns:
        The tokenizer with the words, and the ids of those that are new, which follow its last one.

    Raises:
        PixWordError: a word that it cannot take, since it would not find it or not give it back.
    """
    plain = type(tokenizer)(tokenizer.contents)  # type: ignore[call-arg]  # vocab_size may count rows of no word
    new = [word for word in dict.fromkeys(words) if not _is_one(plain, word)]
    if not new:
        return plain, {}
    add = _as_added_tokens if isinstance(plain, HuggingFaceTokenizer) else _as_pieces
    try:
        made: Tokenizer = type(tokenizer)(add(tokenizer.contents, new))  # type: ignore[call-arg]
    except PixWordError as error:
        raise PixWordError(f"the tokenizer takes not all of the new words {' '.join(new)[:100]}: {error}") from error
    found = {word: plain.vocab_size + n for n, word in enumerate(new)}
    for word, number in found.items():
        ids = made.encode(word)
        if number not in ids or made.decode(ids) != word:
            raise PixWordError(
                f"the tokenizer does not take {word!r} as a new word: its file has these characters in another role; "
                "leave the word out"
            )
    return made, found


def missing_characters(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Characters of texts that a tokenizer loses, and others that it spells in several pieces; frequent ones first."""
    counts, damaged = Counter[str](), set[str]()
    for text in texts:
        counts.update(text)
        if tokenizer.decode(tokenizer.encode(text)) != text:
            damaged.update(text)
    lost, spelled = list[str](), list[str]()
    for character, _ in counts.most_common():
        if character.isspace() or not character.isprintable():
            continue
        ids = tokenizer.encode(character)
        if character in damaged and tokenizer.decode(ids).strip() != character:
            lost.append(character)
        elif sum(bool(tokenizer.decode([i]).strip()) for i in ids) > 1:  # a mark of a space is no piece of it
            spelled.append(character)
    return lost, spelled


def _is_one(tokenizer: Tokenizer, word: str) -> bool:
    ids = tokenizer.encode(word)
    return tokenizer.id_of(word) in ids and tokenizer.decode(ids) == word


def _as_pieces(contents: bytes, words: Sequence[str]) -> bytes:
    """A sentencepiece model with more pieces: protobuf joins repeated fields of messages that follow each other."""
    return contents + b"".join(map(_piece, words))


def _piece(word: str) -> bytes:
    """``pieces { piece: word score: 0 type: USER_DEFINED }`` of `sentencepiece_model.proto`; lengths take one byte."""
    text = word.encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([_USER_DEFINED])
    return b"\x0a" + bytes([len(body)]) + body


def _as_added_tokens(contents: bytes, words: Sequence[str]) -> bytes:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Model

    model = Model.from_str(contents.decode())
    model.add_tokens([AddedToken(word, normalized=False) for word in words])
    return str(model.to_str()).encode()
