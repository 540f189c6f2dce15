"""From sources to rows of documents: seeded order, decoding in background threads, bad files named and counted.

Documents come in groups. A group is a pure function of (seed, group number): no thread's timing changes it.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ..common.errors import BadImage, PixWordError
from ..inputs.processor import tokens_of
from ..inputs.tokenizer import Tokenizer
from ..model.args import ModelArgs
from ..model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document, split_document
from .base import Picture, Source, is_captioned
from .cache import TokenCache
from .decoders import Decoders, decode_here
from .known import Vanished
from .pack import Row, plan_batches
from .skips import SkipLog, SkipNotes

LOST = 300  # documents in a row that cannot be read: a drive is gone, or a folder
LOOKAHEAD = 64  # documents that are decoded ahead at the least, so that small groups keep the threads busy


@dataclass(frozen=True)
class Encoder:
    """Parts of a document to `Document` pieces: words to ids, pictures to windows. Safe to use from any thread."""

    args: ModelArgs
    tokenizer: Tokenizer | None
    skips: SkipLog
    cache: TokenCache | None = None
    decoders: Decoders | None = None  # or pictures are decoded in this process

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
        self.skips.tried()
        key = picture.cache_key if self.cache else None
        if self.cache and key and (image := self.cache.get(key)):
            return image
        try:
            decode = self.decoders.decode if self.decoders else decode_here
            rgb, _, note = decode(picture, self.args.image_size)
            image = tokens_of(rgb, self.args)
        except BadImage as error:
            self.skips.skip(picture.name, str(error))
            return None
        if note:
            self.skips.skip(picture.name, note, bad=False)
        elif self.cache and key:  # or a later run would not learn of the note
            self.cache.put(key, image)
        return image


class DataLost(PixWordError):
    """So much cannot be read that the data seems to be gone; what was trained until then is good.

    Attributes:
        tried, skipped_bytes: images tried and the size of `skipped.jsonl` before the failures began: what has not been
            found for a while is not bad.
    """

    def __init__(self, message: str, tried: int, skipped_bytes: int) -> None:
        super().__init__(message)
        self.tried, self.skipped_bytes = tried, skipped_bytes


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

    Attributes:
        failed: documents in a row, up to the last one of the last group, that could not be read.
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
        self._caption_first, self.failed = caption_first, 0
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
        return self._read(index, 0, self.encoder)

    def _read(self, index: int, epoch: int, encoder: Encoder) -> list[Document]:
        number = 0 if self._endless else int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        local = index - (int(self._ends[number - 1]) if number else 0)
        try:
            parts = source.parts(local)
        except Vanished as error:
            encoder.skips.skip(f"{source.name}, document {local}", str(error), bad=False)
            return []
        except PixWordError as error:  # a malformed text or reference costs its document, and not the run
            encoder.skips.tried()
            encoder.skips.skip(f"{source.name}, document {local}", str(error))
            return []
        captioned = is_captioned(source, parts)
        if captioned and np.random.default_rng((self.seed, 4, index, epoch)).random() < self._caption_first:
            parts = parts[::-1]
        pictures = [part.name for part in parts if not isinstance(part, str)]
        name = f"{source.name}, document {local}{f' ({pictures[0]})' if pictures else ''}"
        return [replace(piece, name=name) for piece in encoder(parts, captioned)]

    def _read_apart(self, index: int, epoch: int) -> tuple[list[Document], SkipNotes]:
        """A document, and notes on its images: threads must not write them, or their timing would show."""
        notes = SkipNotes(first_time=epoch == 0)
        return self._read(index, epoch, replace(self.encoder, skips=notes)), notes

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

    def _submit(self, pool: ThreadPoolExecutor, group: int) -> list[Future[tuple[list[Document], SkipNotes]]]:
        places = range(group * self.group_size, (group + 1) * self.group_size)
        epochs = [0 if self._keep is None else place // len(self._keep) for place in places]
        return [pool.submit(self._read_apart, *each) for each in zip(self.indices(group), epochs, strict=True)]

    def batches(self, group: int = 0, skip: int = 0) -> Generator[tuple[int, int, list[Row]], None, None]:
        """Batches from batch ``skip`` of ``group`` on, for ever: ``(group, number in the group, rows)``."""
        unused = self.failed = 0  # documents since the last one that could be used, and those that could not be read
        any_read, before = False, (0, 0)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            ahead: deque[list[Future[tuple[list[Document], SkipNotes]]]] = deque()
            try:
                while True:
                    while len(ahead) < max(2, -(-LOOKAHEAD // self.group_size)):
                        ahead.append(self._submit(pool, group + len(ahead)))
                    documents: list[Document] = []
                    for future in ahead.popleft():
                        pieces, notes = future.result()
                        fails = notes.count > 0 and not any(piece.images for piece in pieces)
                        if fails and not self.failed:
                            before = self.encoder.skips.tries, self.encoder.skips.size
                        if not skip:  # or the run that is resumed has counted this group
                            notes.replay(self.encoder.skips)
                        self.failed = self.failed + 1 if fails else 0
                        any_read |= not fails
                        if self.failed == LOST and self._keep is not None and (any_read or len(self._keep) > LOST):
                            raise DataLost(f"{LOST} documents in a row cannot be read{notes.last()}", *before)
                        documents += pieces
                    unused = 0 if documents else unused + self.group_size
                    if self._keep is not None and unused >= 2 * len(self._keep):  # a whole epoch lies in between
                        first = self.encoder.skips.first()
                        if any_read and self.failed:
                            raise DataLost(f"{self.failed} documents in a row cannot be read{first}", *before)
                        raise PixWordError(f"none of the {len(self._keep)} documents can be used{first}")
                    rng = np.random.default_rng((self.seed, 2, group))
                    planned = plan_batches(documents, self.batch_tokens, self.encoder.args.max_seq_len, self.pack, rng)
                    for number, rows in enumerate(planned[skip:], skip):
                        yield group, number, rows
                    group, skip = group + 1, 0
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
