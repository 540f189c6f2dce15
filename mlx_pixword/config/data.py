"""The settings of a run's data."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PixWordError
from ..common.settings import setting

COLORS = ("schemes", "random")  # of the built-in plates


@dataclass(frozen=True)
class DataArgs:
    """Data."""

    data: list[str] = setting(
        [],
        "images, UPW text files, .jsonl, .zip or .tar, or chat.json; may be repeated; none: built-in plates",
        metavar="PATH",
    )
    images: Path | None = setting(
        None, "root of relative image references (default: where the text lies)", metavar="DIR"
    )
    allow_outside: bool = setting(False, "allow image references that leave their root")
    tokenizer: Path | None = setting(
        None, "sentencepiece model or tokenizer.json (default: trained on the data)", metavar="FILE"
    )
    cache: Path | None = setting(None, "keep folded images here, so that later epochs do not decode", metavar="DIR")
    plate_colors: str = setting("schemes", "colours of the built-in plates", choices=COLORS)
    caption_first: float = setting(0.0, "fraction of captioned images whose caption comes first, to learn to draw")
    batch_tokens: int = setting(256, "words and windows a micro-batch, padding included")
    pack: bool = setting(True, "put several documents into one row (they never see each other)")
    group_size: int = setting(256, "documents that are shuffled and laid out together")
    threads: int = setting(2, "decoding threads, each with a process that decodes for it")
    decode_seconds: float = setting(20.0, "processor time that decoding an image file may take")
    max_bad: float = setting(0.05, "largest fraction of bad images, judged at the end of an epoch or of the run")

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "group_size", "threads"):
            if getattr(self, name) < 1:
                raise PixWordError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.decode_seconds < float("inf"):
            raise PixWordError(f"decode_seconds must be positive, got {self.decode_seconds}")
        for name in ("max_bad", "caption_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise PixWordError(f"{name} must lie in 0..1, got {getattr(self, name)}")
