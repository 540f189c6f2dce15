"""Several endless sources as one: their documents take turns."""

from collections.abc import Iterator, Sequence
from itertools import chain

from .base import Picture, Source, digest_of


class MixedSource:
    """Endless captioned sources in turn: document ``i`` is document ``i // n`` of source ``i % n``."""

    endless, captioned = True, True

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = " and ".join(source.name for source in self.sources)
        self.unusable = [entry for source in self.sources for entry in source.unusable]

    def __len__(self) -> int:
        raise TypeError("endless sources have no length")

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        return self.sources[index % len(self.sources)].parts(index // len(self.sources))

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        return chain.from_iterable(source.texts() for source in self.sources)

    def digest(self) -> str:
        """See ``Source.digest``."""
        return digest_of(source.digest() for source in self.sources)
