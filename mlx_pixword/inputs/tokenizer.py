"""Words: sentencepiece models and Hugging Face `tokenizer.json` files behind one small interface.

The six special words have the ids 0..5. A tokenizer that already has them there is used as it is; the pieces of
any other one follow them, so its ids are shifted by six. Special words are never found in text.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import sentencepiece

from ..common.errors import PixWordError
from ..common.files import expand
from ..model.document import SPECIAL_WORDS

MAX_FILE = 2**28  # bytes
LEAST_VOCAB_SIZE = len(SPECIAL_WORDS) + 256 + 4  # special words, bytes, the space mark and some slack

T = TypeVar("T")


class Tokenizer(Protocol):
    """Text to word ids and back; ``vocab_size`` is V, a model directory keeps ``contents`` as ``filename``."""

    vocab_size: int
    filename: str
    contents: bytes

    def encode(self, text: str) -> list[int]:
        """Word ids of a text; never a special word other than ``<unk>``."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of word ids; special words are left out."""
        ...

    def id_of(self, word: str) -> int | None:
        """The id of a word that is there as it stands, whether or not `encode` ever gives it."""
        ...


class SentencePieceTokenizer:
    """A sentencepiece model (`tokenizer.model`)."""

    filename = "tokenizer.model"

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self._model = sentencepiece.SentencePieceProcessor()
        _ask("not a sentencepiece model", lambda: self._model.LoadFromSerializedProto(contents))
        size = self._model.GetPieceSize()
        first = _ask("not a sentencepiece model", lambda: [self._model.IdToPiece(i) for i in range(min(6, size))])
        self._shift = 0 if tuple(first) == SPECIAL_WORDS else len(SPECIAL_WORDS)
        self.vocab_size = size + self._shift

    def encode(self, text: str) -> list[int]:
        ids = _ask("the tokenizer fails on a text", lambda: self._model.EncodeAsIds(_whole(text)))
        return [i + self._shift for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) - self._shift for i in ids if i >= len(SPECIAL_WORDS)]
        return str(_ask("the tokenizer fails on word ids", lambda: self._model.DecodeIds(kept)))

    def id_of(self, word: str) -> int | None:
        found = self._model.PieceToId(word)  # that of `<unk>` for what is no piece
        return found + self._shift if self._model.IdToPiece(found) == word else None


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read with the `tokenizers` library; no code of its repository is run."""

    filename = "tokenizer.json"

    def __init__(self, contents: bytes) -> None:
        from tokenizers import Tokenizer as Model  # 0.1 s, and most users have a sentencepiece model

        self.contents = contents
        self._model = _ask("not a tokenizer.json", lambda: Model.from_str(contents.decode()))
        self._model.encode_special_tokens = True  # `<|image|>` in a caption stays text
        self._model.no_truncation()  # a file may ask for either
        self._model.no_padding()
        first = [self._model.id_to_token(i) for i in range(len(SPECIAL_WORDS))]
        self._shift = 0 if tuple(first) == SPECIAL_WORDS else len(SPECIAL_WORDS)
        if not self._shift:
            self._model.add_special_tokens(list(SPECIAL_WORDS))  # a file may have them as plain words
        self.vocab_size = max(self._model.get_vocab().values(), default=-1) + 1 + self._shift  # ids may have gaps

    def encode(self, text: str) -> list[int]:
        found = _ask(
            "the tokenizer fails on a text", lambda: self._model.encode(_whole(text), add_special_tokens=False)
        )
        return [i + self._shift for i in found.ids]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) - self._shift for i in ids if i >= len(SPECIAL_WORDS)]
        return _ask("the tokenizer fails on word ids", lambda: self._model.decode(kept, skip_special_tokens=False))

    def id_of(self, word: str) -> int | None:
        found = self._model.token_to_id(word)
        return None if found is None else found + self._shift


def _ask(problem: str, question: Callable[[], T]) -> T:
    """What a library makes of its file; whatever it raises means that the file is malformed."""
    try:
        return question()
    except BaseException as error:  # `tokenizers` raises plain `Exception`, and panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise PixWordError(f"{problem}: {' '.join(str(error).split())[:300]}") from error


def _whole(text: str) -> str:
    """The text with U+FFFD in place of half surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer file: `.json` is Hugging Face's format, anything else a sentencepiece model."""
    path = expand(path)
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            raise PixWordError(f"tokenizer {path} has {size:,} bytes, the limit is {MAX_FILE:,}; give a tokenizer file")
        contents = path.read_bytes()
    except OSError as error:
        raise PixWordError(f"tokenizer {path}: {error.strerror}") from error
    try:
        return HuggingFaceTokenizer(contents) if path.suffix == ".json" else SentencePieceTokenizer(contents)
    except PixWordError as error:
        raise PixWordError(f"tokenizer {path}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a sentencepiece BPE model with byte fallback on a run's own text.

    Args:
        texts: any number of texts, at least one of them not empty.
        vocab_size: the most pieces wanted, `LEAST_VOCAB_SIZE` at least; a small corpus gives fewer.

    Returns:
        A tokenizer that gives every text back as it was, digits one by one. (Sentencepiece writes a space as U+2581,
        so that one character comes back as a space.)

    Raises:
        PixWordError: there is no text.
    """
    model, size = io.BytesIO(), max(vocab_size, LEAST_VOCAB_SIZE)
    texts = _common([_whole(text) for text in texts], size - LEAST_VOCAB_SIZE)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=size,
            hard_vocab_limit=False, byte_fallback=True, split_digits=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=3, control_symbols=list(SPECIAL_WORDS[4:]),
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            required_chars="\u2581", character_coverage=1.0, minloglevel=2, max_sentence_length=2**24,
            num_threads=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise PixWordError(f"no tokenizer could be trained on this text: {error}") from error
    return SentencePieceTokenizer(model.getvalue())


def _common(texts: list[str], room: int) -> list[str]:
    """The texts without their rarest characters, where there are more than pieces for them: bytes spell those."""
    counts = Counter(character for text in texts for character in text)
    if len(counts) <= room:
        return texts
    kept = {character for character, _ in counts.most_common(max(1, room))}
    return ["".join(character for character in text if character in kept) for text in texts]
