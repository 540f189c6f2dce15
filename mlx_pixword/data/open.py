"""From a run's data settings to sources, held-out documents and a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.errors import PixWordError
from ..common.files import expand
from ..config.data import BUILT_IN, TEXT_CONTRAST, TEXT_HEIGHTS, DataArgs, check_kinds, limits
from ..inputs.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from ..model.document import SPECIAL_WORDS
from .base import Source
from .fonts import find_faces
from .known import Inventory, Names, as_known, take_inventory
from .mixed import MixedSource
from .plates import PlateSource
from .sources import open_source
from .strings import read_words
from .text_file import TextFile
from .text_images import TextSource, TextStyle
from .text_sample import sample_texts


@dataclass(frozen=True)
class Split:
    """What to train on and what to hold out.

    Attributes:
        train, heldout: sources.
        train_indices, heldout_indices: the global indices that are used, or None for all.
        names: what the folders and archives of each source hold; empty for built-in data.
        differences: between the data and what the run knows of it, a line each.
    """

    train: Sequence[Source]
    heldout: Sequence[Source]
    train_indices: np.ndarray | None = None
    heldout_indices: np.ndarray | None = None
    names: Sequence[Names] = ()
    differences: Sequence[str] = ()

    def inventories(self) -> list[Inventory]:
        """What the sources hold, as a run keeps it."""
        return [take_inventory(source, names) for source, names in zip(self.train, self.names, strict=False)]


def open_split(
    args: DataArgs, seed: int, heldout: int, image_size: int = 64, known: Sequence[Inventory | None] | None = None
) -> Split:
    """Open a run's sources and hold out ``heldout`` documents, at most a tenth.

    What is built in is split by string, and text by family of faces too; ``image_size`` is what text has to fit. Of
    files, the documents are those ``known`` to the run, where that is given.
    """
    names = args.data or ["plates"]
    if set(names) <= set(BUILT_IN):
        train, held = (_built_in(names, args, seed, reserved, image_size) for reserved in (False, True))
        return Split([train], [held], None, np.arange(heldout))
    if inside := [name for name in names if name in BUILT_IN]:
        raise PixWordError(
            f"--data {inside[0]} is built in and endless, and cannot be mixed with files; write it to a file first "
            f"(scripts/make_{inside[0]}.py), or write ./{inside[0]} for a folder of that name"
        )
    if known is None or len(known) != len(args.data):
        known = [None] * len(args.data)
    sources, noted, differences = list[Source](), list[Names](), list[str]()
    for path, inventory in zip(args.data, known, strict=True):
        found = Names(expand(Path(path)), inventory.names if inventory else None)
        source = open_source(Path(path), args.images, args.allow_outside, found)
        if isinstance(source, TextFile):
            source.check_room(image_size)
        if inventory is not None:
            source, notes = as_known(source, found, inventory)
            differences += notes
        sources.append(source)
        noted.append(found)
    total = sum(map(len, sources))
    order = np.random.default_rng((seed, 0)).permutation(total)
    count = min(heldout, -(-total // 10)) if total > 1 else 0
    return Split(sources, sources, np.sort(order[count:]), np.sort(order[:count]), noted, differences)


def _built_in(names: Sequence[str], args: DataArgs, seed: int, held_out: bool, image_size: int) -> Source:
    """The built-in sources of these names, taking turns."""
    sources = list[Source]()
    for name in names:
        if name == "plates":
            sources.append(PlateSource(seed, reserved=held_out, colors=args.plate_colors))
        else:
            sources.append(_text(args, seed, held_out, image_size))
    return sources[0] if len(sources) == 1 else MixedSource(sources)


def _text(args: DataArgs, seed: int, held_out: bool, image_size: int) -> TextSource:
    faces, unusable = find_faces(args.fonts)
    words, foreign = read_words(args.text_words) if args.text_words else (None, 0)
    if foreign:
        unusable.append((str(args.text_words), f"{foreign} words have characters that not every face has"))
    style = TextStyle(
        check_kinds(args.text_kinds), limits("text_heights", args.text_heights, TEXT_HEIGHTS),
        limits("text_contrast", args.text_contrast, TEXT_CONTRAST), length=args.text_length,
        curriculum=0 if held_out else args.text_curriculum, wear=args.text_wear,
    )  # fmt: skip
    return TextSource(seed, held_out, style, image_size, faces, words, unusable)


def choose_tokenizer(args: DataArgs, sources: Sequence[Source], vocab_size: int, seed: int = 0) -> Tokenizer | None:
    """The tokenizer given, or one trained on the sources' text, or None where there is no text or no place for it."""
    if args.tokenizer is not None:
        return load_tokenizer(args.tokenizer)
    if vocab_size == len(SPECIAL_WORDS):
        return None
    texts = sample_texts(sources, seed)
    return train_tokenizer(texts, vocab_size) if texts else None


def data_notes(sources: Sequence[Source]) -> list[str]:
    """What a run should say of its data beyond the names of its sources: the faces of built-in text."""
    return [f"fonts    {source.faces_note()}" for source in text_sources(sources)]


def text_sources(sources: Sequence[Source]) -> list[TextSource]:
    """Those that draw built-in text, also in turns with others."""
    inner = [one for source in sources for one in (source.sources if isinstance(source, MixedSource) else [source])]
    return [source for source in inner if isinstance(source, TextSource)]


def check_vocabulary(tokenizer: Tokenizer | None, wanted: int) -> int:
    """``V`` of a run: the tokenizer's size, or the special words alone."""
    if tokenizer is None:
        return len(SPECIAL_WORDS)
    if tokenizer.vocab_size <= len(SPECIAL_WORDS):
        raise PixWordError(f"the tokenizer has {tokenizer.vocab_size} words, too few to write anything")
    return tokenizer.vocab_size
