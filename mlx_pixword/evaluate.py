"""`python -m mlx_pixword.evaluate`: how well a model reads and predicts, as a table and, on the last line, as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common.cli import notice, parse, run_command
from .common.errors import PixWordError
from .common.settings import counted, setting
from .config.data import BUILT_IN
from .evaluation.scores import Scores


@dataclass(frozen=True)
class EvaluateArgs:
    """Measure a model on data: losses on any, exact match and character error rate on images with text."""

    model: str = setting(
        "",
        "model folder, or repository on the hub (default: the reader that comes with the library)",
        metavar="DIR_OR_REPO",
        path=True,
    )
    data: list[str] = setting([], "data as pretrain takes it; may be repeated", metavar="PATH", path=True)
    images: Path | None = setting(None, "root of relative image references", metavar="DIR")
    allow_outside: bool = setting(False, "allow image references that leave their root")
    limit: int = setting(0, "documents to use, 0 for all")
    batch_tokens: int = setting(4096, "words and windows a batch")
    max_bad: float = setting(0.05, "largest fraction of bad images")
    adapter_path: Path | None = setting(None, "folder of adapters (LoRA) to measure with", metavar="DIR")
    revision: str | None = setting(None, "branch, tag or commit of a hub repository")
    dtype: str | None = setting(
        None, "compute type instead of the model's", choices=("auto", "float32", "bfloat16", "float16")
    )

    def __post_init__(self) -> None:
        if self.limit < 0 or self.batch_tokens < 1 or not 0 <= self.max_bad <= 1:
            raise PixWordError(
                "--limit must not be negative, --batch-tokens must be positive and --max-bad lie in 0..1, "
                f"got {self.limit}, {self.batch_tokens} and {self.max_bad}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and the line of JSON."""
    result = evaluate(parse(EvaluateArgs, "-m mlx_pixword.evaluate", argv, required=("data",)))
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:<{width}}  {_show(value)}")
    print(json.dumps(result))


def evaluate(args: EvaluateArgs) -> Scores:
    """Measure a model.

    Returns:
        ``documents`` and ``skipped``; ``word_loss`` and ``boundary_loss`` in nats a target; ``word_perplexity``; of a
        model trained with query pixels, ``bits_per_dimension`` in the folded space and
        ``bits_per_dimension_8bit_bound``, an upper bound for 8-bit images (folded + log2 f); where images have text,
        ``read``, ``exact_match`` and ``cer`` as fractions with Wilson 95% intervals, and of the readings' confidences
        the ``expected_calibration_error`` in 15 bins.

    Raises:
        PixWordError: no model or data, too many bad images, or nothing that can be used.
    """
    from .data.skips import left_out
    from .data.sources import open_source
    from .data.text_sample import has_text
    from .evaluation.measure import measure
    from .weights.directory import load

    if built_in := [name for name in args.data if name in BUILT_IN and not Path(name).exists()]:
        raise PixWordError(
            f"--data {built_in[0]} is built in and endless; write some of it to a folder first "
            f"(scripts/make_{built_in[0]}.py)"
        )
    sources = [open_source(Path(path), args.images, args.allow_outside) for path in args.data]
    model, processor = load(
        args.model or None, revision=args.revision, dtype=args.dtype, adapter_path=args.adapter_path
    )
    notice(f"{counted(sum(map(len, sources)), 'document')}{left_out(sources)}")
    if processor.tokenizer is None and has_text(sources):
        notice("this model knows no words: the texts are left out")
    return measure(model, processor, sources, args.limit, args.batch_tokens, args.max_bad)


def _show(value: float | int | list[float] | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return " to ".join(f"{v:.4f}" for v in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    run_command(main)
