"""What a run knows of its data: the files and documents that were there when it began, and what differs now.

A run that is resumed goes on with the documents that it knows, in the order in which it knows them: what appeared since
is not used, and a document that vanished is passed over when its turn comes.
"""

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import PixWordError
from ..common.settings import counted, named
from .base import Picture, Source, texts_of
from .chain import Chain
from .listing import APPEARED
from .texts import Images, TextFiles

_SHOWN = 4  # names in a message


class Vanished(PixWordError):
    """A document that the run knows is no longer there; it was named when the run went on."""


@dataclass
class Names:
    """Names of the files in a source's folders and archives, noted as they are opened.

    Attributes:
        root: the source's path.
        known: of files that the run knows, by the place of their folder or archive below the root; None for all.
        found: of all files that are there, by the same.
    """

    root: Path
    known: Mapping[str, list[str]] | None = None
    found: dict[str, list[str]] = field(default_factory=dict)

    def of_run(self, container: Path, names: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Those of the names that the run knows; the others with the reason why they are left out."""
        place = os.path.relpath(container, self.root)
        self.found[place] = names
        known = None if self.known is None else self.known.get(place)
        if known is None or known == names:
            return names, []
        these = set(known)
        return [name for name in names if name in these], [
            (_joined(container, name), APPEARED) for name in names if name not in these
        ]


@dataclass(frozen=True)
class Inventory:
    """What a source held when a run began.

    Attributes:
        names: see `Names`.
        documents: uint64 ``[documents]``, a digest of what each is made of: its files, or its record.
        sizes: int64 ``[documents]``, bytes of the file with its text, -1 for none.
        digest, captioned: see ``Source``.
    """

    names: dict[str, list[str]]
    documents: np.ndarray
    sizes: np.ndarray
    digest: str
    captioned: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        arrays = {"documents": self.documents.astype("<u8"), "sizes": self.sizes.astype("<i8")}
        return {
            "digest": self.digest, "captioned": self.captioned, "names": self.names,
            **{name: array.tobytes().hex() for name, array in arrays.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Inventory":
        """The inventory of its plain values; raises ``ValueError``, ``TypeError`` or ``KeyError`` for others."""
        documents = np.frombuffer(bytes.fromhex(values["documents"]), "<u8")
        sizes = np.frombuffer(bytes.fromhex(values["sizes"]), "<i8")
        names = {str(place): list(map(str, some)) for place, some in values["names"].items()}
        if len(documents) != len(sizes):
            raise ValueError("documents and sizes do not belong together")
        return cls(names, documents, sizes, str(values["digest"]), bool(values["captioned"]))


def take_inventory(source: Source, names: Names) -> Inventory:
    """What a source holds now."""
    digests, sizes = bytearray(), array("q")
    for name, size in _entries(source, names.root):
        digests += blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        sizes.append(size)
    documents = np.frombuffer(bytes(digests), "<u8")
    return Inventory(names.found, documents, np.array(sizes, np.int64), source.digest(), source.captioned)


def as_known(source: Source, names: Names, known: Inventory) -> tuple[Source, list[str]]:
    """The documents that a run knows, and what a user should know of the difference, a line each.

    A source that has been edited, or of which less than half is left, is given back as it is now: the digest tells that
    it is not the run's.
    """
    notes = _told_files(known.names, names.found)
    if source.digest() == known.digest and len(source) == len(known.documents):
        return source, [f"{source.name}: {note}" for note in notes]
    now = take_inventory(source, names)
    places = find_places(known.documents, now.documents)
    there = places >= 0
    changed = there & (now.sizes[places] != known.sizes)
    is_new = np.ones(len(now.documents), bool)
    is_new[places[there]] = False
    new = _records(source, np.flatnonzero(is_new))
    for what, which, name in (
        ("new since the run began, not used", new, lambda n: _label(source, n)),
        ("vanished since the run began", np.flatnonzero(~there), lambda n: f"document {n}"),
        ("with a text of another size", np.flatnonzero(changed), lambda n: _label(source, int(places[n]))),
    ):
        if len(which):
            notes.append(
                f"{counted(len(which), 'document')} {what}: {_some([name(int(n)) for n in which[:_SHOWN]], len(which))}"
            )
    was_edited = changed.any() or (len(new) and not there.all())
    is_another = was_edited or 2 * there.sum() < len(there)
    return source if is_another else KnownSource(source, known, places), [f"{source.name}: {note}" for note in notes]


class KnownSource:
    """The documents of a source that a run knows, in its order.

    Args:
        source: what is there now.
        known: what was there when the run began.
        places: int64 ``[documents]``, where each document is in ``source``; -1 for one that vanished.
    """

    endless = False

    def __init__(self, source: Source, known: Inventory, places: np.ndarray) -> None:
        self.name, self.captioned, self.unusable = source.name, known.captioned, source.unusable
        self.unreadable = getattr(source, "unreadable", [])
        self._source, self._digest, self._places = source, known.digest, places

    def __len__(self) -> int:
        return len(self._places)

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``; raises `Vanished` for a document that is no longer there."""
        return self._source.parts(self._place(index))

    def document_texts(self, index: int) -> list[str]:
        """The texts of one document, without opening an image."""
        return texts_of(self._source, self._place(index))

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        for place in self._places[self._places >= 0].tolist():
            yield from texts_of(self._source, place)

    def digest(self) -> str:
        """See ``Source.digest``: that of the run."""
        return self._digest

    def missing(self) -> str:
        """Tells which documents vanished; empty if none did."""
        vanished = self._places < 0
        return blake2b(np.packbits(vanished).tobytes(), digest_size=16).hexdigest() if vanished.any() else ""

    def _place(self, index: int) -> int:
        place = int(self._places[index])
        if place < 0:
            raise Vanished("vanished since the run began")
        return place


def find_places(known: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Where each known document is now: int64 ``[known]``, -1 for nowhere; equal ones keep their order."""
    before, after = np.argsort(known, kind="stable"), np.argsort(now, kind="stable")
    wanted, there = known[before], now[after]
    number_among_equals = np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
    places = np.searchsorted(there, wanted) + number_among_equals
    inside = places < len(there)
    inside[inside] = there[places[inside]] == wanted[inside]
    found = np.full(len(known), -1)
    found[before[inside]] = after[places[inside]]
    return found


def _leaves(source: Source) -> Sequence[Source]:
    return source.sources if isinstance(source, Chain) else [source]


def _entries(source: Source, root: Path) -> Iterator[tuple[str, int]]:
    """What each document is made of, the file that it comes from included, and the bytes of its text's file."""
    for leaf in _leaves(source):
        place = os.path.relpath(leaf.name, root)
        for name, size in leaf.entries():  # type: ignore[attr-defined]  # all but endless sources have it
            yield f"{place}\0{name}", size


def _records(source: Source, places: np.ndarray) -> np.ndarray:
    """Those of the documents that are no files of their own, which the files' names tell of."""
    count = [len(leaf) for leaf in _leaves(source)]
    are_records = [not isinstance(leaf, Images | TextFiles) for leaf in _leaves(source)]
    return places[np.repeat(are_records, count)[places]]


def _label(source: Source, index: int) -> str:
    """What a message calls a document that is there now."""
    for leaf in _leaves(source):
        if index < len(leaf):
            return str(leaf.label(index))  # type: ignore[attr-defined]  # as above
        index -= len(leaf)
    raise IndexError(index)


def _told_files(known: Mapping[str, list[str]], now: Mapping[str, list[str]]) -> list[str]:
    """Files that appeared and files that vanished, where there are any."""
    appeared, vanished = list[str](), list[str]()
    for place in known.keys() & now.keys():
        if known[place] != now[place]:
            before, after = set(known[place]), set(now[place])
            appeared += [_joined(Path(place), name) for name in after - before]
            vanished += [_joined(Path(place), name) for name in before - after]
    notes = list[str]()
    if appeared:
        notes.append(
            f"{counted(len(appeared), 'file')} appeared since the run began, not used: {_some(sorted(appeared))}"
        )
    if vanished:
        notes.append(f"{counted(len(vanished), 'file')} vanished since the run began: {_some(sorted(vanished))}")
    return notes


def _some(names: Sequence[str], count: int | None = None) -> str:
    """A few names, and how many more there are."""
    more = (len(names) if count is None else count) - min(len(names), _SHOWN)
    return ", ".join(map(named, names[:_SHOWN])) + (f" and {more:,} more" if more else "")


def _joined(container: Path, name: str) -> str:
    """A file's name below its folder, or in its archive."""
    return f"{container}:{name}" if container.suffix.lower() in (".zip", ".tar") else str(container / name)
