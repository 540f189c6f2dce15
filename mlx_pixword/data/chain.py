"""Several sources as one, such as the shards of a folder."""

from collections.abc import Iterator, Sequence

import numpy as np

from .base import Picture, Source, digest_of, texts_of


class Chain:
    """The documents of several sources, one source after the other.

    Args:
        name: what messages call them together.
        sources: at least one, none of them endless; of a chain, its sources are taken.
        unusable, unreadable: see ``Source``; those of the sources are added.
    """

    endless = False
    sources: list[Source]

    def __init__(
        self,
        name: str,
        sources: Sequence[Source],
        unusable: Sequence[tuple[str, str]] = (),
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name = name
        self.sources = [
            one for source in sources for one in (source.sources if isinstance(source, Chain) else [source])
        ]
        self.captioned = any(source.captioned for source in sources)
        self.unusable = [*unusable, *(entry for source in sources for entry in source.unusable)]
        self.unreadable = [*unreadable, *(e for source in sources for e in getattr(source, "unreadable", []))]
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        source, local = self._place(index)
        return source.parts(local)

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without opening an image."""
        return texts_of(*self._place(index))

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for source in self.sources:
            yield from source.texts()

    def digest(self) -> str:
        """See ``Source.digest``."""
        return digest_of(source.digest() for source in self.sources)

    def _place(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[number], index - (int(self._ends[number - 1]) if number else 0)
