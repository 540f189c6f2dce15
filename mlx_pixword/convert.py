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
from .common.files import check_writable
from .common.settings import setting

if TYPE_CHECKING:
    from .evaluation.scores import Scores
    from .inputs.processor import Processor
    from .inputs.tokenizer import Tokenizer
    from .model.network import PixWordModel

SAMPLES = 16  # images on a card's page


@dataclass(frozen=True)
class ConvertSettings:
    """Make a model directory from another model, or from a checkpoint of the authors' program (UPW)."""

    model: str | None = setting(
        None, "model folder, or repository on the hub, to convert", metavar="DIR_OR_REPO", path=True
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    upw: Path | None = setting(
        None, "a UPW checkpoint to convert, .safetensors, or .pth where PyTorch is installed", metavar="FILE"
    )
    heads: int | None = setting(None, "with --upw: query heads of the model; the weights do not tell", metavar="H")
    tokenizer: Path | None = setting(None, "with --upw: tokenizer.model or tokenizer.json of the words", metavar="FILE")
    image_size: int = setting(224, "with --upw: longer side of an image in pixels", metavar="S")
    window_size: int = setting(16, "with --upw: side of a window in pixels", metavar="W")
    fuse: Path | None = setting(None, "with --model: add these adapters (LoRA) to its weights", metavar="DIR")
    to_mlx_lm: bool = setting(False, "with --model: write the language block as a model of mlx-lm, without images")
    quantize: int | None = setting(None, "bits a weight of the projections: 8 or 4", metavar="BITS")
    group_size: int = setting(64, "with --quantize: weights that share a scale: 32, 64 or 128")
    out: Path | None = setting(None, "the model directory to make; must not exist or be empty", metavar="DIR")
    upload_repo: str | None = setting(None, "upload the model with a card to this repository", metavar="OWNER/NAME")
    private: bool = setting(False, "with --upload-repo: make the repository private")
    data: list[str] = setting(
        [], "with --upload-repo: data to evaluate on, for the card's figures and samples", metavar="PATH", path=True
    )
    limit: int = setting(1000, "documents of --data to use, 0 for all")
    about_data: str = setting("", "with --upload-repo: what the model was trained on, for the card", metavar="TEXT")
    license: str = setting("", "with --upload-repo: licence of the model, such as mit", metavar="NAME")

    def __post_init__(self) -> None:
        if (self.model is None) == (self.upw is None):
            raise PixWordError("give what to convert: --model DIR_OR_REPO or --upw FILE, one of the two")
        if self.upw is not None and self.heads is None:
            raise PixWordError("--upw needs --heads H, the number of query heads; the weights do not tell it")
        if self.upw is None and (self.heads is not None or self.tokenizer is not None):
            raise PixWordError("--heads and --tokenizer are for --upw; a model folder has both already")
        if self.upload_repo is None and (self.private or self.data or self.about_data or self.license):
            raise PixWordError(
                "--private, --data, --about-data and --license go into an upload: give --upload-repo too"
            )
        if self.limit < 0:
            raise PixWordError(f"--limit must not be negative, got {self.limit}")
        if self.fuse is not None and self.model is None:
            raise PixWordError("--fuse adds adapters to a model folder; give --model DIR_OR_REPO")
        if self.to_mlx_lm and (self.model is None or self.quantize or self.upload_repo):
            raise PixWordError("--to-mlx-lm takes --model and --out alone; mlx-lm's own tools quantise and upload")
        if self.quantize not in (None, 4, 8):
            raise PixWordError(f"--quantize takes 8 or 4 bits, got {self.quantize}")


def convert(settings: ConvertSettings) -> list[str]:
    """Read, check and build everything in memory, then write the directory in one step, and upload it.

    Returns:
        Where the model is: its directory, its address on the hub, or both.
    """
    out = settings.out
    if out is None and settings.upload_repo is None:
        raise PixWordError("give --out DIR, the model directory to make, or --upload-repo OWNER/NAME")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PixWordError(f"--out {out}: exists and is not an empty folder; name a new one")
    if out is not None:
        check_writable(out.absolute().parent, f"--out {out}")
    from .weights.directory import save_model  # --help answers at once
    from .weights.quantized import quantize_model

    if settings.upload_repo:
        from .weights.upload import check_repo

        check_repo(settings.upload_repo)
    model, tokenizer = _read(settings)
    if settings.quantize:
        quantize_model(model, settings.quantize, settings.group_size)
    places = []
    if out is not None:
        if settings.to_mlx_lm:
            from .weights.to_mlx_lm import save_for_mlx_lm

            return [str(save_for_mlx_lm(model, tokenizer, out))]
        save_model(model, tokenizer, out.resolve())  # writes a sibling folder and renames it
        places.append(str(out))
    return places + ([_upload(model, tokenizer, settings)] if settings.upload_repo else [])


def _upload(model: "PixWordModel", tokenizer: "Tokenizer | None", settings: ConvertSettings) -> str:
    """Evaluate the model where there is data for it, and upload it with a card."""
    from .inputs.processor import Processor
    from .weights.upload import Card, push_to_hub

    processor = Processor(model.args, tokenizer)
    scores, pictures = _look(model, processor, settings) if settings.data else (None, {})
    base = settings.model if settings.model and not Path(settings.model).exists() else ""
    on = ", ".join(Path(path).name for path in settings.data)
    card = Card(settings.about_data, settings.license, scores, on, pictures, base)
    return push_to_hub(model, processor, settings.upload_repo or "", card, private=settings.private)


def _look(
    model: "PixWordModel", processor: "Processor", settings: ConvertSettings
) -> "tuple[Scores, dict[str, bytes]]":
    """Figures of the model on data, and a page of its readings."""
    import tempfile

    from .data.loader import Encoder
    from .data.skips import SkipLog
    from .data.sources import open_source
    from .evaluation.measure import groups, measure
    from .evaluation.pages import draw_page
    from .evaluation.readings import read_documents, readable

    sources = [open_source(Path(path)) for path in settings.data]
    scores = measure(model, processor, sources, settings.limit)
    first = next(groups(sources, Encoder(model.args, processor.tokenizer, SkipLog()), SAMPLES), [])
    documents = readable(first)[:SAMPLES]
    if not documents or processor.tokenizer is None:
        return scores, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "readings.png"
        draw_page(path, processor, documents, read_documents(model, processor, documents, 4096))
        return scores, {"Images as the model sees them, with what it reads": path.read_bytes()}


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
    for place in convert(settings):
        print(f"wrote {place}")


if __name__ == "__main__":
    run_command(main)
