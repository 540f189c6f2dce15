"""Turn a checkpoint of the authors' program (UPW) into a model directory.

    python -m mlx_pixword.convert --upw model.safetensors --heads 12 --out my-model

Every size but the number of heads is read from the shapes of the weights. Source of the names: Llama's own program,
which UPW (arXiv 2605.14028) extends by `imgblk.`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common.cli import parse, run_command
from .common.errors import PixWordError
from .common.settings import setting
from .inputs.tokenizer import load_tokenizer
from .weights.directory import save_model
from .weights.upw import build_model, read_args, read_checkpoint

# ------------------------------------------------------------------------------------------------ reading


# ------------------------------------------------------------------------------------------------- shapes


# ------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class ConvertSettings:
    """Turn a checkpoint of the authors' program (UPW) into a model directory."""

    upw: Path = setting(None, "the checkpoint, .safetensors, or .pth where PyTorch is installed", metavar="FILE")
    heads: int = setting(None, "query heads of the model; the weights do not tell", metavar="H")
    out: Path = setting(None, "the model directory to make; must not exist or be empty", metavar="DIR")
    tokenizer: Path | None = setting(None, "tokenizer.model or tokenizer.json of the words", metavar="FILE")
    image_size: int = setting(224, "longer side of an image in pixels", metavar="S")
    window_size: int = setting(16, "side of a window in pixels", metavar="W")


def convert(settings: ConvertSettings) -> Path:
    """Read, check and build everything in memory, then write the directory in one step; returns its path."""
    out = settings.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PixWordError(f"--out {settings.out}: exists and is not an empty folder; name a new one")
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    weights = read_checkpoint(settings.upw)
    model = build_model(weights, read_args(weights, settings.heads, settings.image_size, settings.window_size))
    if tokenizer and tokenizer.vocab_size != model.args.vocab_size:
        raise PixWordError(
            f"{settings.tokenizer}: the tokenizer has {tokenizer.vocab_size} words, with the special ones, but "
            f"tok_embeddings.weight has {model.args.vocab_size} rows; use the tokenizer the model was trained with"
        )
    save_model(model, tokenizer, out)  # writes a sibling folder and renames it
    return settings.out


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: parse, convert, print where the model is."""
    settings = parse(ConvertSettings, "-m mlx_pixword.convert", argv, required=("upw", "heads", "out"))
    print(f"wrote {convert(settings)}")


if __name__ == "__main__":
    run_command(main)
