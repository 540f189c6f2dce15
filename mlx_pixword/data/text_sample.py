"""What a tokenizer learns from: a seeded sample of the text of all sources, over all of their length."""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

import numpy as np

from ..common.errors import PixWordError
from .base import Source, texts_of

CHARACTERS = 20_000_000  # enough for 32,000 pieces, and little memory
READ_CHARACTERS = 10 * CHARACTERS  # read at the most to choose them from
DOCUMENTS = 100_000  # read at the most, shared by the sources
PIECE = 1000  # characters; sentencepiece leaves out sentences above 4,192 bytes


def sample_texts(sources: Sequence[Source], seed: int) -> list[str]:
    """Pieces of text of at most `PIECE` characters, `CHARACTERS` together, in the order in which they stand.

    Documents are read in a random order, and of what is read every piece is as likely to be kept as every other. A
    document that is malformed is passed over: it is named when its turn comes.
    """
    rng = np.random.default_rng((seed, 6))
    kept: list[tuple[float, tuple[int, int, int], str]] = []
    total = read = 0
    for place, piece in _pieces(sources, rng):
        heappush(kept, (-rng.random(), place, piece))
        total, read = total + len(piece), read + len(piece)
        while total > CHARACTERS:
            total -= len(heappop(kept)[2])
        if read > READ_CHARACTERS:
            break
    return [piece for _, _, piece in sorted(kept, key=lambda entry: entry[1])]


def some_texts(sources: Sequence[Source], seed: int, most: int = 10_000) -> Iterator[str]:
    """Pieces of text of random documents, at most so many, for a look at them."""
    return islice((piece for _, piece in _pieces(sources, np.random.default_rng((seed, 7)))), most)


def has_text(sources: Sequence[Source]) -> bool:
    """True if any document holds a text."""
    return next(_pieces(sources, np.random.default_rng(0)), None) is not None


def _pieces(sources: Sequence[Source], rng: np.random.Generator) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Pieces with their source, document and number in it; the sources take turns, a document each."""
    streams = [_documents(source, number, DOCUMENTS // len(sources), rng) for number, source in enumerate(sources)]
    while streams:
        for stream in list(streams):
            found = next(stream, None)
            if found is None:
                streams.remove(stream)
                continue
            (source, document), texts = found
            pieces = (text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE))
            yield from (((source, document, n), piece) for n, piece in enumerate(pieces) if piece.strip())


def _documents(
    source: Source, number: int, most: int, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """Documents of a source in a random order with their texts; of an endless one, the texts that it offers."""
    if source.endless:
        yield from (((number, n), [text]) for n, text in enumerate(source.texts()))
        return
    order = rng.permutation(len(source))
    for index in order[: max(most, 1)].tolist():
        try:
            yield (number, index), texts_of(source, index)
        except PixWordError:
            continue
