"""From sources to rows of documents: seeded order, decoding in background threads, bad files named and counted.

Documents come in groups. A group is a pure function of (seed, group number): no thread's timing changes it.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from ..args import ModelArgs
from ..batch import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document, split_document
from ..errors import BadImage, PixWordError
from ..processor import tokens_of
from ..tokenizer import Tokenizer
from .base import Picture, Source
from .cache import TokenCache
from .pack import Row, plan_batches

LOOKAHEAD = 64  # documents that are decoded ahead at the least, so that small groups keep the threads busy


class SkipLog:
    """Names every file that is left out, once, with its reason; counts the share of images that are bad."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._lock = path, Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._named = {json.loads(line)["file"] for line in lines}  # by the run that is resumed
        self._tried: set[int] = set()
        self._bad: dict[str, str] = {}

    def tried(self, name: str) -> None:
        with self._lock:
            self._tried.add(hash(name))

    def skip(self, name: str, reason: str, *, bad: bool = True) -> None:
        """Leave a file out; ``bad=False`` for a file that never was an image."""
        with self._lock:
            if name in self._bad:
                return
            self._bad[name] = reason if bad else ""
            if self._path is not None and name not in self._named:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"file": name, "reason": reason}) + "\n")

    @property
    def count(self) -> int:
        """Bad images so far."""
        with self._lock:
            return sum(map(bool, self._bad.values()))

    def check(self, max_bad: float) -> None:
        """Raise `PixWordError` when more than the fraction ``max_bad`` of the images tried are bad."""
        if self.count > max_bad * max(1, len(self._tried)):
            raise PixWordError(
                f"{self.count} of {len(self._tried)} images are bad, more than --max-bad {max_bad}{self.first()}"
            )

    def first(self) -> str:
        """The first bad image and its reason as the end of a message; empty if there is none."""
        with self._lock:
            bad = [(name, reason) for name, reason in self._bad.items() if reason][:1]
        where = f"; all are named in {self._path}" if self._path else ""
        return "".join(f": the first is {name}: {reason}{where}" for name, reason in bad)


@dataclass(frozen=True)
class Encoder:
    """Parts of a document to `Document` pieces: words to ids, pictures to windows. Safe to use from any thread."""

    args: ModelArgs
    tokenizer: Tokenizer | None
    skips: SkipLog
    cache: TokenCache | None = None

    def __call__(self, parts: Sequence[str | Picture], captioned: bool = False) -> list[Document]:
        """Encode one document; a bad image is left out, and with it a caption that has no other image."""
        pieces: list[Sequence[int] | ImageTokens] = [[BOS]]
        for part in parts:
            if isinstance(part, str):
                pieces += [self.tokenizer.encode(part)] if self.tokenizer else []
            elif (image := self.image(part)) is not None:
                pieces += [[IMAGE], image, [END_IMAGE]]
            elif captioned:
                return []
        if sum(map(len, (p for p in pieces if not isinstance(p, ImageTokens)))) == 1:  # `<s>` alone
            return []
        return split_document(make_document(pieces, closed=True), self.args.max_seq_len)

    def image(self, picture: Picture) -> ImageTokens | None:
        """Windows of a picture, from the cache where it has them; None, and named, if the picture is bad."""
        self.skips.tried(picture.name)
        key = picture.cache_key if self.cache else None
        if self.cache and key and (image := self.cache.get(key)):
            return image
        try:
            image = tokens_of(picture.rgb(self.args.image_size), self.args)
        except BadImage as error:
            self.skips.skip(picture.name, str(error))
            return None
        if self.cache and key:
            self.cache.put(key, image)
        return image


class Loader:
    """Endless batches from sources, in an order that depends on (seed, group) alone.

    Args:
        sources: what to read; a single endless one, or any number of finite ones.
        encoder: turns parts into documents.
        seed: of the order.
        batch_tokens: language elements a batch.
        pack: several documents a row.
        threads: decoding threads.
        group_size: documents a group; rows are formed inside a group.
        caption_first: fraction of captioned images whose caption comes before them.
        keep: global indices to use instead of all (held-out documents are left out this way).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        *,
        seed: int = 0,
        batch_tokens: int = 4096,
        pack: bool = False,
        threads: int = 2,
        group_size: int = 256,
        caption_first: float = 0.0,
        keep: np.ndarray | None = None,
    ) -> None:
        self.sources, self.encoder, self.seed = list(sources), encoder, seed
        self.batch_tokens, self.pack, self.threads, self.group_size = batch_tokens, pack, threads, group_size
        self._caption_first = caption_first
        self._endless = any(source.endless for source in self.sources)
        if self._endless and len(self.sources) > 1:
            raise PixWordError("an endless source cannot be mixed with others")
        self._ends = np.cumsum([] if self._endless else [len(source) for source in self.sources])
        self._keep = None if self._endless else np.arange(self._ends[-1]) if keep is None else keep
        if self._keep is not None:
            self.group_size = max(1, min(group_size, len(self._keep)))  # a group never spans a whole epoch

    def __len__(self) -> int:
        """Documents an epoch."""
        if self._keep is None:
            raise TypeError("an endless source has no length")
        return len(self._keep)

    def read(self, index: int) -> list[Document]:
        """The document at a global index, encoded; an empty list if it had to be skipped."""
        number = 0 if self._endless else int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        local = index - (int(self._ends[number - 1]) if number else 0)
        parts = source.parts(local)
        if source.captioned and np.random.default_rng((self.seed, 4, index)).random() < self._caption_first:
            parts = parts[::-1]
        return self.encoder(parts, source.captioned)

    def indices(self, group: int) -> list[int]:
        """Global indices of a group's documents: epoch after epoch, each in an order of its own."""
        span = range(group * self.group_size, (group + 1) * self.group_size)
        return (
            list(span)
            if self._keep is None
            else [self._shuffled(j // len(self._keep), j % len(self._keep)) for j in span]
        )

    def _shuffled(self, epoch: int, place: int) -> int:
        if getattr(self, "_order", (None,))[0] != epoch:
            order = np.random.default_rng((self.seed, 1, epoch)).permutation(self._keep)  # type: ignore[arg-type]
            self._order = (epoch, order)
        return int(self._order[1][place])

    def epoch(self, group: int) -> int:
        """The epoch in which a group begins; 0 for an endless source."""
        return 0 if self._keep is None else group * self.group_size // len(self._keep)

    def batches(self, group: int = 0, skip: int = 0) -> Iterator[tuple[int, int, list[Row]]]:
        """Batches from batch ``skip`` of ``group`` on, for ever: ``(group, number in the group, rows)``."""
        unused = 0  # documents since the last one that could be used
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            ahead: deque[list[Future[list[Document]]]] = deque()
            try:
                while True:
                    while len(ahead) < max(2, -(-LOOKAHEAD // self.group_size)):
                        ahead.append([pool.submit(self.read, i) for i in self.indices(group + len(ahead))])
                    documents = [piece for future in ahead.popleft() for piece in future.result()]
                    unused = 0 if documents else unused + self.group_size
                    if self._keep is not None and unused >= 2 * len(self._keep):  # a whole epoch lies in between
                        first = self.encoder.skips.first()
                        raise PixWordError(f"none of the {len(self._keep)} documents can be used{first}")
                    rng = np.random.default_rng((self.seed, 2, group))
                    planned = plan_batches(documents, self.batch_tokens, self.encoder.args.max_seq_len, self.pack, rng)
                    for number, rows in enumerate(planned[skip:], skip):
                        yield group, number, rows
                    group, skip = group + 1, 0
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
