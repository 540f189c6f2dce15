"""Make a model directory from another one, or from a checkpoint of the authors' program (UPW).

    python -m mlx_pixword.convert --upw model.safetensors --heads 12 --out my-model
    python -m mlx_pixword.convert --model my-model --quantize 8 --out my-model-8bit

Every size of a UPW checkpoint but the number of heads is read from the shapes of the weights. Source of the names:
Llama's own program, which UPW (arXiv 2605.14028) extends by `imgblk.`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .common.cli import parse, run_command
from .common.errors import PixWordError
from .common.settings import setting

if TYPE_CHECKING:
    from .inputs.tokenizer import Tokenizer
    from .model.network import PixWordModel


@dataclass(frozen=True)
class ConvertSettings:
    """Make a model directory from another model, or from a checkpoint of the authors' program (UPW)."""

    model: str | None = setting(None, "model folder, or repository on the hub, to convert", metavar="DIR_OR_REPO")
    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    upw: Path | None = setting(
        None, "a UPW checkpoint to convert, .safetensors, or .pth where PyTorch is installed", metavar="FILE"
    )
    heads: int | None = setting(None, "with --upw: query heads of the model; the weights do not tell", metavar="H")
    tokenizer: Path | None = setting(None, "with --upw: tokenizer.model or tokenizer.json of the words", metavar="FILE")
    image_size: int = setting(224, "with --upw: longer side of an image in pixels", metavar="S")
    window_size: int = setting(16, "with --upw: side of a window in pixels", metavar="W")
    fuse: Path | None = setting(None, "with --model: add these adapters (LoRA) to its weights", metavar="DIR")
    quantize: int | None = setting(None, "bits a weight of the projections: 8 or 4", metavar="BITS")
    group_size: int = setting(64, "with --quantize: weights that share a scale: 32, 64 or 128")
    out: Path | None = setting(None, "the model directory to make; must not exist or be empty", metavar="DIR")

    def __post_init__(self) -> None:
        if (self.model is None) == (self.upw is None):
            raise PixWordError("give what to convert: --model DIR_OR_REPO or --upw FILE, one of the two")
        if self.upw is not None and self.heads is None:
            raise PixWordError("--upw needs --heads H, the number of query heads; the weights do not tell it")
        if self.upw is None and (self.heads is not None or self.tokenizer is not None):
            raise PixWordError("--heads and --tokenizer are for --upw; a model folder has both already")
        if self.fuse is not None and self.model is None:
            raise PixWordError("--fuse adds adapters to a model folder; give --model DIR_OR_REPO")
        if self.quantize not in (None, 4, 8):
            raise PixWordError(f"--quantize takes 8 or 4 bits, got {self.quantize}")


def convert(settings: ConvertSettings) -> Path:
    """Read, check and build everything in memory, then write the directory in one step; returns its path."""
    out = settings.out
    if out is None:
        raise PixWordError("give --out DIR, the model directory to make")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PixWordError(f"--out {out}: exists and is not an empty folder; name a new one")
    from .weights.directory import save_model  # --help answers at once
    from .weights.quantized import quantize_model

    model, tokenizer = _read(settings)
    if settings.quantize:
        quantize_model(model, settings.quantize, settings.group_size)
    save_model(model, tokenizer, out.resolve())  # writes a sibling folder and renames it
    return out


def _read(settings: ConvertSettings) -> "tuple[PixWordModel, Tokenizer | None]":
    """The model to convert, its weights in float32, and its tokenizer."""
    if settings.model is not None:
        from .weights.directory import load
        from .weights.lora import fuse

        adapters = settings.fuse
        model, processor = load(settings.model, revision=settings.revision, master=True, adapter_path=adapters)
        return fuse(model) if adapters else model, processor.tokenizer
    return _read_upw(settings)


def _read_upw(settings: ConvertSettings) -> "tuple[PixWordModel, Tokenizer | None]":
    from .inputs.tokenizer import load_tokenizer
    from .weights.upw import build_model, read_args, read_checkpoint

    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    weights = read_checkpoint(settings.upw or Path())
    args = read_args(weights, settings.heads or 0, settings.image_size, settings.window_size)
    model = build_model(weights, args)
    if tokenizer and tokenizer.vocab_size != model.args.vocab_size:
        raise PixWordError(
            f"{settings.tokenizer}: the tokenizer has {tokenizer.vocab_size} words, with the special ones, but "
            f"tok_embeddings.weight has {model.args.vocab_size} rows; use the tokenizer the model was trained with"
        )
    return model, tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: parse, convert, print where the model is."""
    settings = parse(ConvertSettings, "-m mlx_pixword.convert", argv)
    print(f"wrote {convert(settings)}")


if __name__ == "__main__":
    run_command(main)
