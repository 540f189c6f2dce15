"""The settings of `generate`, declared here and nowhere else: sampling, drawing, and what to read.

Light enough for a command line's `--help`; the samplers themselves are mlx-lm's.
"""

import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..common.files import check_writable
from ..common.settings import flag, setting
from ..model.calibration import MOST_MARGINS


@dataclass(frozen=True)
class SampleArgs:
    """Sampling."""

    max_tokens: int = setting(64, "most words to generate")
    temp: float | None = setting(None, "temperature, 0 for the likeliest (default 0 for words, 1 for pixels)")
    top_p: float = setting(1.0, "sample from the likeliest words that hold this probability together")
    top_k: int = setting(0, "sample from this many likeliest words; 0 for all")
    min_p: float = setting(0.0, "leave out words below this fraction of the likeliest one's probability")
    repetition_penalty: float = setting(1.0, "above 1, words of the last 20 become less likely")
    seed: int | None = setting(0, "seed of the sampling; in Python, None for another one every time")
    margins: int = setting(
        0, "read an image in so many margins, other widths of paper around it, and take the mean; 0: the model's own"
    )

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise PixWordError(f"--max-tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature(0.0) < float("inf"):
            raise PixWordError(f"--temp must be 0 or positive, got {self.temp}")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise PixWordError(f"--top-p must lie in (0, 1] and --min-p in 0..1, got {self.top_p} and {self.min_p}")
        if not 0 <= self.margins <= MOST_MARGINS:
            raise PixWordError(f"--margins must be 1 to {MOST_MARGINS}, or 0 for the model's own, got {self.margins}")
        if (
            self.top_k < 0
            or (self.seed is not None and self.seed < 0)
            or not 0 < self.repetition_penalty < float("inf")
        ):
            raise PixWordError(
                "--top-k and --seed must not be negative and --repetition-penalty must be positive, "
                f"got {self.top_k}, {self.seed} and {self.repetition_penalty}"
            )

    def temperature(self, default: float) -> float:
        """The temperature asked for, or ``default``."""
        return default if self.temp is None else self.temp

    def chosen_seed(self) -> int:
        """The seed, or where none was given a new one of the system's."""
        return secrets.randbits(31) if self.seed is None else self.seed


@dataclass(frozen=True)
class DrawArgs(SampleArgs):
    """Drawing."""

    out_image: Path | None = setting(None, "draw an image into this .png file", metavar="FILE.png")
    size: str | None = setting(None, "size of the drawing in pixels (default the model's image size)", metavar="WxH")
    count: int = setting(1, "drawings a prompt; several files are named FILE-1.png, FILE-2.png, ...")
    complete: Path | None = setting(None, "keep the top of this image and draw the remainder", metavar="FILE")
    keep: float = setting(0.5, "fraction of the rows of --complete that is kept")
    gif: bool = setting(False, "also write FILE.gif, which shows the drawing being made")
    then_words: bool = setting(False, "go on with words after the drawing, printed behind the name of its file")
    force: bool = setting(False, "write over files that exist")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.keep <= 1:
            raise PixWordError(f"--keep must lie in 0..1, got {self.keep}")
        if self.count < 1:
            raise PixWordError(f"--count must be at least 1, got {self.count}")
        if self.out_image is None and (self.size or self.complete or self.gif or self.then_words):
            raise PixWordError("--size, --complete, --gif and --then-words draw; give --out-image FILE.png too")
        if self.size and self.complete:
            raise PixWordError("--complete draws at the size of its image; leave out --size")

    def size_wanted(self) -> tuple[int, int] | None:
        """``(height, width)`` of ``--size WxH``, or None; raises `PixWordError`."""
        if self.size is None:
            return None
        sides = self.size.lower().split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
            raise PixWordError(f"--size must be two positive integers such as 28x12, got {self.size!r}")
        return int(sides[1]), int(sides[0])

    def files(self, prompts: int) -> list[Path]:
        """Where drawings after so many prompts go; raises `PixWordError` for another format or a file that exists."""
        out = self.out_image
        if out is None or out.suffix.lower() != ".png":
            raise PixWordError(f"--out-image must end in .png, got {out}")
        drawings = prompts * self.count
        paths = [out] if drawings == 1 else [out.with_stem(f"{out.stem}-{n + 1}") for n in range(drawings)]
        for path in [*paths, *([out.with_suffix(".gif")] if self.gif else [])]:
            if path.exists() and not self.force:
                raise PixWordError(f"{path} exists; choose another name or give --force")
        if not out.absolute().parent.is_dir():
            raise PixWordError(f"--out-image {out}: there is no folder {out.parent}")
        check_writable(out.parent, f"--out-image {out}")
        return paths


MARK, END_MARK = "<|image|>", "<|/image|>"


@dataclass(frozen=True)
class GenerateArgs(DrawArgs):
    """Write the words that follow images and a prompt, or with --out-image draw an image after them."""

    model: str = setting(
        "",
        "model folder, or repository on the hub (default: the reader that comes with the library)",
        metavar="DIR_OR_REPO",
        path=True,
    )
    image: list[str] = setting([], "images to read; may be repeated", metavar="FILE", path=True)
    box: str | None = setting(
        None, "read this part of every image alone, in pixels from its upper left corner, at its own size",
        metavar="X,Y,W,H",
    )  # fmt: skip
    prompt: list[str] = setting(
        [],
        f"text to go on from; - is standard input; {MARK}FILE{END_MARK} in it is an image, and {MARK} alone marks "
        "where an --image goes; may be repeated to draw after each",
        metavar="TEXT",
    )
    each: bool = setting(False, "read every image on its own, in batches; goes on past a bad one, and exits with 1")
    jsonl: bool = setting(
        False,
        'print {"image": ..., "text": ..., "log_probability": ..., "confidence": ...}, a line for every image with '
        "--each",
    )
    min_confidence: float = setting(0.0, "leave a reading empty that is less confident than this, 0 to 1")
    adapter_path: Path | None = setting(None, "folder of adapters (LoRA) to read with", metavar="DIR")
    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    dtype: str | None = setting(
        None, "compute type instead of the model's", choices=("auto", "float32", "bfloat16", "float16")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_confidence <= 1:
            raise PixWordError(f"--min-confidence must lie in 0..1, got {self.min_confidence}")
        for name in ("each", "jsonl", "min_confidence"):
            if getattr(self, name) and self.out_image is not None:
                raise PixWordError(f"{flag(name)} is for reading; leave it out, or --out-image")
        self.part()

    def part(self) -> tuple[int, int, int, int] | None:
        """``--box X,Y,W,H`` as numbers, or None; raises `PixWordError`."""
        if self.box is None:
            return None
        numbers = [text.strip() for text in self.box.split(",")]
        if len(numbers) != 4 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise PixWordError(f"--box must be four numbers of pixels X,Y,W,H such as 0,0,64,32, got {self.box!r}")
        x, y, width, height = map(int, numbers)
        if not width or not height:
            raise PixWordError(f"--box {self.box} is empty; width and height must be at least 1")
        return x, y, width, height

    def sample_args(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(SampleArgs)}
