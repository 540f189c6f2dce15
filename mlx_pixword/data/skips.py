"""Files that are left out: named once with the reason, and counted."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from threading import Lock

from ..common.errors import PixWordError
from ..common.files import append_text, replace_file
from ..common.settings import named
from .base import Source
from .beside import NAMES_IMAGES, NAMES_NONE
from .captions import ELSEWHERE, FURTHER
from .listing import APPEARED, LEADS_OUT, LINKED_FOLDER, RUN_FOLDER, UNREAD
from .parquet_columns import NOT_READ
from .tar_scan import JOINED

TOLD = (NAMES_IMAGES, NAMES_NONE, UNREAD, ELSEWHERE)  # reasons
ENOUGH = 1000  # images to judge the bad ones among them by
MOST_KINDS = 8  # of files that are left out, in a message
MOST_TOLD = 3  # files of captions that are left out, each with its reason


class SkipLog:
    """Names every file that is left out, once, with its reason; counts the share of images that are bad.

    Args:
        path: `skipped.jsonl`, or None to keep no file.
        size: bytes of the file that count, on a resumed run; what follows was written after its checkpoint, and goes.
            None for all whole lines.
    """

    def __init__(self, path: Path | None = None, size: int | None = None) -> None:
        self._path, self._lock, self._tried = path, Lock(), 0
        self._bad: dict[str, str] = {}  # reasons; nothing for what is named and not bad
        self._named: dict[str, str] = {}  # the same, by the run that is resumed
        if path is not None and path.exists():
            content = path.read_bytes()
            whole = content[: size if size is not None else len(content)]
            whole = whole[: whole.rfind(b"\n") + 1]
            if whole != content:
                replace_file(path, whole)
            lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
            self._named = {line["file"]: line["reason"] if line.get("bad", True) else "" for line in lines}

    def tried(self, count: int = 1) -> None:
        with self._lock:
            self._tried += count

    def skip(self, name: str, reason: str, *, bad: bool = True) -> None:
        """Leave a file out; ``bad=False`` names one that never was an image, or that could be used nevertheless."""
        with self._lock:
            if name in self._bad:
                return
            self._bad[name] = reason if bad else ""
            self._write([(name, reason)], bad)

    def leave_out(self, files: Iterable[tuple[str, str]]) -> None:
        """Name any number of files, with reasons, that are no documents; a million take a second or two."""
        with self._lock:
            self._write(files, False)

    def unreadable(self, source: Source) -> None:
        """Count what a source could not read, such as a damaged part of an archive, as bad."""
        for name, reason in getattr(source, "unreadable", []):
            self.tried()
            self.skip(name, reason)

    def _write(self, files: Iterable[tuple[str, str]], bad: bool) -> None:
        if self._path is not None:
            mark = {} if bad else {"bad": False}
            lines = ({"file": name, "reason": why, **mark} for name, why in files if name not in self._named)
            if text := "".join(json.dumps(line) + "\n" for line in lines):
                append_text(self._path, text)

    def restore(self, tried: int) -> None:
        """Go on counting where a checkpoint stood: images tried then, and as bad all files that its run had named."""
        self._tried = tried
        self._bad = self._named | self._bad

    @property
    def count(self) -> int:
        """Bad images so far."""
        with self._lock:
            return sum(map(bool, self._bad.values()))

    @property
    def tries(self) -> int:
        """Images tried so far, each once."""
        return self._tried

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._path.stat().st_size if self._path is not None and self._path.exists() else 0

    def check(self, max_bad: float) -> None:
        """Raise `PixWordError` when more than the fraction ``max_bad`` of the images tried are bad."""
        if self.count > max_bad * max(1, self._tried):
            raise PixWordError(
                f"{self.count} of {self._tried} images are bad, more than --max-bad {max_bad}{self.first()}"
            )

    def first(self) -> str:
        """The first bad image and its reason as the end of a message; empty if there is none."""
        with self._lock:
            bad = [(name, reason) for name, reason in self._bad.items() if reason][:1]
        where = f"; all are named in {self._path}" if self._path else ""
        return "".join(f": the first is {named(name)}: {reason}{where}" for name, reason in bad)


def left_out(sources: Sequence[Source]) -> str:
    """What lies in sources and is not used, by kind: ``; left out: 12 .txt, 9 .pdf``; nothing where all is used.

    Why captions of images are not read is told, because a run without them is of little use.
    """
    kinds = Counter(_kind(name, reason) for source in sources for name, reason in source.unusable)
    lost = sum(len(getattr(source, "unreadable", [])) for source in sources)
    parts = [f"{count:,} {kind}" for kind, count in kinds.most_common(MOST_KINDS)]
    if len(kinds) > MOST_KINDS:
        parts.append(f"{sum(count for _, count in kinds.most_common()[MOST_KINDS:]):,} of other kinds")
    text = f"; left out: {', '.join(parts)}" if parts else ""
    told = {why: name for source in sources for name, why in reversed(source.unusable) if why.startswith(TOLD)}
    text += "".join(f"; {named(name)} {why}" for why, name in list(told.items())[-MOST_TOLD:][::-1])
    return text + (f"; {lost:,} could not be read" if lost else "")


def _kind(name: str, reason: str) -> str:
    """The suffix of a file, or what else it is."""
    if reason == NOT_READ:
        return f"column {named(name.rpartition(':')[2])}"
    suffixes = PurePosixPath(name.replace(":", "/")).suffixes[-2:]
    several = len(suffixes) == 2 and reason == FURTHER
    suffix = "".join(suffixes if several else suffixes[-1:]).lower() or "without a suffix"
    suffix = suffix if len(suffix) <= 20 and suffix.isprintable() else "of an odd name"
    if reason in (LINKED_FOLDER, LEADS_OUT):
        return "links to folders" if reason == LINKED_FOLDER else f"{suffix} (links that lead out)"
    kinds = {JOINED: "joined archives, read too", RUN_FOLDER: "folders of runs"}
    return {**kinds, APPEARED: f"{suffix} (new since the run began)"}.get(reason, suffix)


class SkipNotes(SkipLog):
    """What is noted of one document while a thread decodes it; the log proper takes it when the document's turn comes.

    Args:
        first_time: whether the document is read for the first time: images that are read again count once.
    """

    def __init__(self, first_time: bool = True) -> None:
        super().__init__()
        self._first_time = first_time
        self._notes: list[tuple[str, str, bool]] = []

    def skip(self, name: str, reason: str, *, bad: bool = True) -> None:
        self._notes.append((name, reason, bad))

    def tried(self, count: int = 1) -> None:
        self._tried += count * self._first_time

    @property
    def count(self) -> int:
        """Bad images of the document."""
        return sum(bad for _, _, bad in self._notes)

    def last(self) -> str:
        """What was noted last, as the end of a message."""
        return "".join(f", the last one: {named(name)}: {reason}" for name, reason, _ in self._notes[-1:])

    def replay(self, log: SkipLog) -> None:
        """Give the notes to a log."""
        log.tried(self._tried)
        for name, reason, bad in self._notes:
            log.skip(name, reason, bad=bad)
