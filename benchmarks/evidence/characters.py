"""Words of the experiments: single characters, the same for every arm."""

import json
from collections.abc import Sequence

from mlx_pixword.data.fonts import CHARACTERS
from mlx_pixword.model.document import SPECIAL_WORDS, UNK


class CharacterTokenizer:
    """One word a character of those that every face has; see ``Tokenizer`` of the package."""

    filename = "characters.json"

    def __init__(self, characters: str = CHARACTERS) -> None:
        self._characters = characters
        self._ids = {c: n for n, c in enumerate(characters, len(SPECIAL_WORDS))}
        self.vocab_size = len(SPECIAL_WORDS) + len(characters)
        self.contents = json.dumps(characters).encode()

    def encode(self, text: str) -> list[int]:
        """Word ids of a text."""
        return [self._ids.get(c, UNK) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of word ids; special words are left out."""
        first = len(SPECIAL_WORDS)
        return "".join(self._characters[i - first] for i in ids if first <= i < self.vocab_size)
