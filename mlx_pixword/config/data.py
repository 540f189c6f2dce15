"""The settings of a run's data."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PixWordError
from ..common.settings import setting

COLORS = ("schemes", "random")  # of the built-in plates
BUILT_IN = ("plates", "text")  # names of --data that are no paths
TEXT_KINDS = ("numbers", "prices", "dates", "times", "codes", "words")
MORE_TEXT_KINDS = ("figures", "prose", "common", "registrations", "marks")  # not drawn unless asked for
TEXT_HEIGHTS = (3, 256)  # pixels; what can be asked for
TEXT_CONTRAST = (0.02, 1)
TEXT_LENGTH = 10  # characters of the longest built-in text


@dataclass(frozen=True)
class DataArgs:
    """Data."""

    data: list[str] = setting(
        [],
        "plates or text (both built in), or images, UPW text files, .jsonl, .zip or .tar, chat.json, or .pwtext; "
        "may be repeated; none: plates",
        metavar="PATH",
        path=True,
    )
    images: Path | None = setting(
        None, "root of relative image references (default: where the text lies)", metavar="DIR"
    )
    allow_outside: bool = setting(False, "allow image references that leave their root")
    tokenizer: Path | None = setting(
        None, "sentencepiece model or tokenizer.json (default: trained on the data)", metavar="FILE"
    )
    cache: Path | None = setting(None, "keep folded images here, so that later epochs do not decode", metavar="DIR")
    cache_gb: float = setting(50.0, "largest size of --cache in GB; what is oldest and not used makes room")
    plate_colors: str = setting("schemes", "colours of the built-in plates", choices=COLORS)
    text_kinds: str = setting(
        ",".join(TEXT_KINDS),
        f"kinds of built-in text, with commas between; also {', '.join(MORE_TEXT_KINDS)}",
        metavar="KINDS",
    )
    text_heights: str = setting("4-32", "pixels from top to bottom of the ink of built-in text", metavar="LOW-HIGH")
    text_contrast: str = setting("0.2-1", "contrast of built-in text; 1 is black on white", metavar="LOW-HIGH")
    text_length: int = setting(TEXT_LENGTH, "characters of the longest built-in text")
    text_curriculum: int = setting(
        0, "documents over which built-in text goes from one plain face and 2 characters to everything"
    )
    text_wear: float = setting(
        0.0,
        "share of built-in text that is worn: cut close or into the ink, spaced, bold, broken, unevenly lit, as boxes "
        "cut it out of scans and photographs",
    )
    text_words: Path | None = setting(
        None, "words of built-in text, one a line (default: some hundred)", metavar="FILE"
    )
    fonts: list[str] = setting(
        [], "more faces for built-in text, from a folder; may be repeated", metavar="DIR", path=True
    )
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
        check_kinds(self.text_kinds)
        limits("text_heights", self.text_heights, TEXT_HEIGHTS)
        limits("text_contrast", self.text_contrast, TEXT_CONTRAST)
        if self.text_length < 2 or self.text_curriculum < 0:
            raise PixWordError(
                "text_length must be at least 2 and text_curriculum not negative, "
                f"got {self.text_length} and {self.text_curriculum}"
            )
        if not 0 < self.cache_gb <= float("inf"):
            raise PixWordError(f"cache_gb must be positive, got {self.cache_gb}")
        if not 0 < self.decode_seconds < float("inf"):
            raise PixWordError(f"decode_seconds must be positive, got {self.decode_seconds}")
        for name in ("max_bad", "caption_first", "text_wear"):
            if not 0 <= getattr(self, name) <= 1:
                raise PixWordError(f"{name} must lie in 0..1, got {getattr(self, name)}")


def limits(name: str, text: str, within: tuple[float, float]) -> tuple[float, float]:
    """The two numbers of a setting such as "4-32", both ``within`` these; a single one is both."""
    low, dash, high = text.partition("-")
    try:
        first, last = float(low), float(high if dash else low)
    except ValueError:
        raise PixWordError(f"{name} must be two numbers such as 4-32, or one, got {text!r}") from None
    if not within[0] <= first <= last <= within[1]:
        raise PixWordError(f"{name} must lie in {within[0]:g}..{within[1]:g}, the lower first, got {text}")
    return first, last


def check_kinds(text: str, name: str = "text_kinds") -> tuple[str, ...]:
    """The kinds of text in a setting such as "numbers,words"."""
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    known = (*TEXT_KINDS, *MORE_TEXT_KINDS)
    if not kinds or set(kinds) - set(known):
        raise PixWordError(f"{name} must be some of {', '.join(known)}, got {text!r}")
    return kinds
