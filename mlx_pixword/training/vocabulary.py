"""New words of a run that starts from a model: their rows in its tables, and what its tokenizer lacks without them.

D  hidden size    V  words    K  pix tokens
"""

import shlex
from collections.abc import Iterable, Sequence

import mlx.core as mx

from ..inputs.new_words import add_words, missing_characters
from ..inputs.tokenizer import Tokenizer
from ..model.document import SPECIAL_WORDS

SHOWN = 20  # characters in a note


def add_rows(weights: dict[str, mx.array], count: int, tokenizer: Tokenizer, words: Sequence[str]) -> None:
    """Give new words rows in the tables of words ``[V, D]`` and of the head ``[V + K, D]``, in place.

    A row is the mean of those that the word was spelled with, so that the model gives a new word no more than the
    likeliest of these; logits of old words and of pixels stay.

    Args:
        weights: of a model, by name.
        count: rows of words in them, which may be more than the tokenizer has words.
        tokenizer: of the model, without the new words.
        words: see `add_words`.

    Source: Hewitt, "Initializing new word embeddings for pretrained language models", 2021.
    """
    _, new = add_words(tokenizer, words)
    more = max([count, *(number + 1 for number in new.values())]) - count
    rows = {number: _rows_of(word, tokenizer, count) for word, number in new.items()}
    for name in ("embed_words.weight", "head.weight"):
        table = weights[name]
        grown = mx.concatenate([table[:count], mx.zeros((more, table.shape[1])), table[count:]])
        for number, ids in rows.items():
            grown[number] = table[mx.array(ids)].mean(axis=0)
        weights[name] = grown


def _rows_of(word: str, tokenizer: Tokenizer, count: int) -> list[int]:
    """Ids that a word was spelled with; those of all words where it could not be spelled."""
    ids = tokenizer.encode(word)
    return ids if tokenizer.decode(ids) == word else list(range(len(SPECIAL_WORDS), count))


def missing_notes(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """What to say of characters of some texts that a tokenizer loses, or spells in several pieces."""
    lost, spelled = missing_characters(tokenizer, texts)
    lines = []
    for characters, what in ((lost, "loses"), (spelled, "spells in pieces")):
        if characters:
            few = " ".join(characters[:SHOWN])
            asked = f"{few} ..." if len(characters) > SHOWN else f"to make them words: --new-words {shlex.quote(few)}"
            lines.append(f"words    the tokenizer {what} {len(characters):,} of the data's characters; {asked}")
    return lines
