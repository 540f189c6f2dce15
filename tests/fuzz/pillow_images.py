"""Decode a folder of files, whatever they are, and broken copies of good images; print what became of them.

    python tests/fuzz/pillow_images.py --images Pillow/Tests/images --mutations 10000

Pillow publishes the broken and malicious files that once harmed it, in the folder Tests/images of its repository. They
are no part of this one: clone it, and name the folder here. Every file goes through the library's own decoders.
"""

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_images import WORDS, EncodedBytes, seeds
from fuzzing import broken, random_edits

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import BadImage, PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.decoders import SECONDS, Decoders
from mlx_pixword.data.pictures import FilePicture

IMAGE_SIZE = 224  # longer side of what is decoded, pixels
KINDS = ("decoded", "named", "crashes", "stalls")
SHOWN = 5  # slowest files, crashes and stalls


@dataclass(frozen=True)
class ImagesArgs:
    """Decode a folder of files and broken copies of good images, and print what became of them."""

    images: Path | None = setting(None, "folder of files, such as Pillow's Tests/images", metavar="DIR")
    mutations: int = setting(0, "broken copies of small images of every format, made here")
    seed: int = setting(0, "of the broken copies")
    seconds: float = setting(SECONDS, "processor time that decoding a file may take")
    threads: int = setting(2, "files decoded at a time")

    def __post_init__(self) -> None:
        if self.images is None and not self.mutations:
            raise PixWordError("nothing to decode; give --images DIR, --mutations COUNT or both")
        if self.images is not None and not self.images.is_dir():
            raise PixWordError(f"--images {self.images} is no folder; give Pillow's Tests/images or another one")
        for name in ("seed", "mutations"):
            if getattr(self, name) < 0:
                raise PixWordError(f"--{name} must be at least 0, got {getattr(self, name)}")
        if self.threads < 1:
            raise PixWordError(f"--threads must be at least 1, got {self.threads}")
        if not 0 < self.seconds < float("inf"):
            raise PixWordError(f"--seconds must be positive, got {self.seconds}")


@dataclass(frozen=True)
class Outcome:
    """What became of a file: its kind (`KINDS`), the reason if it was not decoded, and the seconds it took."""

    name: str
    kind: str
    reason: str
    seconds: float


@dataclass
class Table:
    """The outcomes of many files."""

    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, kind: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind == kind]

    def reasons(self) -> Counter[str]:
        """Times that each reason was given, numbers and what files hold left out."""
        plain = [re.sub(r"b['\"].*|\[.*\]", "...", outcome.reason) for outcome in self.of("named")]
        return Counter(re.sub(r"[0-9][0-9,]*", "#", reason)[:90] for reason in plain)

    def lines(self) -> Iterator[str]:
        """The table as text."""
        yield f"{len(self.outcomes):,} files: " + ", ".join(f"{len(self.of(kind)):,} {kind}" for kind in KINDS)
        for reason, times in self.reasons().most_common():
            yield f"{times:8,}  {reason}"
        for outcome in sorted(self.outcomes, key=lambda outcome: -outcome.seconds)[:SHOWN]:
            yield f"{outcome.seconds:7.2f}s  slow: {outcome.name} ({outcome.kind})"
        for outcome in (self.of("crashes") + self.of("stalls"))[: 2 * SHOWN]:
            yield f"{outcome.kind:>8}  {outcome.name}: {outcome.reason}"


def main(argv: Sequence[str] | None = None) -> None:
    """Decode, and print a table each; exit status 1 if a file crashed a decoder or took longer than the limit."""
    args = parse(ImagesArgs, "tests/fuzz/pillow_images.py", argv)
    tables = []
    if args.images is not None:
        files = sorted(path for path in args.images.rglob("*") if path.is_file())
        tables.append(decode([FilePicture(path) for path in files], args))
        print(f"{args.images}:", *tables[-1].lines(), sep="\n")
    if args.mutations:
        tables.append(decode(mutations(args.mutations, args.seed), args))
        print(f"broken copies, seed {args.seed}:", *tables[-1].lines(), sep="\n")
    if any(table.of("crashes") or table.of("stalls") for table in tables):
        sys.exit(1)


def mutations(count: int, seed: int) -> Iterator[EncodedBytes]:
    """Broken copies of small images, each with a number for a name."""
    rng, good = random.Random(seed), seeds()
    for number in range(count):
        yield EncodedBytes(broken(rng.choice(good), random_edits(rng), WORDS), f"copy {number}")


def decode(pictures: Sequence[FilePicture] | Iterator[EncodedBytes], args: ImagesArgs) -> Table:
    """Give each file to a decoder of the library's."""
    with Decoders(args.seconds) as decoders, ThreadPoolExecutor(args.threads) as pool:
        return Table(list(pool.map(lambda picture: _outcome(decoders, picture), pictures)))


def _outcome(decoders: Decoders, picture: FilePicture | EncodedBytes) -> Outcome:
    kind, reason, start = "decoded", "", time.monotonic()
    try:
        decoders.rgb(picture, IMAGE_SIZE)
    except BadImage as error:
        reason = str(error)
        kind = "crashes" if reason.startswith("it crashes") else "named"
        kind = "stalls" if reason.startswith("decoding takes longer") else kind
    return Outcome(picture.name, kind, reason, time.monotonic() - start)


if __name__ == "__main__":
    run_command(main)
