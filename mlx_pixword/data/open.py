"""From a run's data settings to sources, held-out documents and a tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from ..common.errors import PixWordError
from ..config.data import DataArgs
from ..inputs.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from ..model.document import SPECIAL_WORDS
from .base import Source
from .plates import PlateSource
from .sources import open_source

TOKENIZER_CHARACTERS = 20_000_000  # enough for 32,000 pieces, and little memory
CHUNK = 1000  # characters; sentencepiece leaves out sentences above 4,192 bytes


@dataclass(frozen=True)
class Split:
    """What to train on and what to hold out: sources with the global indices used, or None for all."""

    train: Sequence[Source]
    heldout: Sequence[Source]
    train_indices: np.ndarray | None = None
    heldout_indices: np.ndarray | None = None


def open_split(args: DataArgs, seed: int, heldout: int) -> Split:
    """Open a run's sources and hold out ``heldout`` documents, at most a tenth; built-in plates split by string."""
    if not args.data:
        plates = [PlateSource(seed, reserved=reserved, colors=args.plate_colors) for reserved in (False, True)]
        return Split([plates[0]], [plates[1]], None, np.arange(heldout))
    sources = [open_source(Path(path), args.images, args.allow_outside) for path in args.data]
    total = sum(map(len, sources))
    order = np.random.default_rng((seed, 0)).permutation(total)
    count = min(heldout, -(-total // 10)) if total > 1 else 0
    return Split(sources, sources, np.sort(order[count:]), np.sort(order[:count]))


def choose_tokenizer(args: DataArgs, sources: Sequence[Source], vocab_size: int) -> Tokenizer | None:
    """The tokenizer given, or one trained on the sources' text, or None where there is no text or no place for it."""
    if args.tokenizer is not None:
        return load_tokenizer(args.tokenizer)
    chunks = islice(_chunks(sources), TOKENIZER_CHARACTERS // CHUNK)
    first = next(chunks, None)
    if first is None or vocab_size == len(SPECIAL_WORDS):
        return None
    return train_tokenizer(chain([first], chunks), vocab_size)


def has_text(sources: Sequence[Source]) -> bool:
    """True if any document holds a text."""
    return next(_chunks(sources), None) is not None


def _chunks(sources: Sequence[Source]) -> Iterator[str]:
    """All text, cut short enough for sentencepiece."""
    for source in sources:
        for text in source.texts():
            yield from (text[i : i + CHUNK] for i in range(0, len(text), CHUNK) if text[i : i + CHUNK].strip())


def check_vocabulary(tokenizer: Tokenizer | None, wanted: int) -> int:
    """``V`` of a run: the tokenizer's size, or the special words alone."""
    if tokenizer is None:
        return len(SPECIAL_WORDS)
    if tokenizer.vocab_size <= len(SPECIAL_WORDS):
        raise PixWordError(f"the tokenizer has {tokenizer.vocab_size} words, too few to write anything")
    return tokenizer.vocab_size
