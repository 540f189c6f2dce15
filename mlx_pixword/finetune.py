"""`python -m mlx_pixword.finetune`: adapt a model to some hundreds of pictures, in minutes."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .common.cli import run_command
from .common.errors import PixWordError
from .config.adapt import FINETUNE, FINETUNE_LORA
from .config.command import parse_run
from .config.run import RunConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or print the configuration."""
    config, print_only = parse_command(argv)
    if print_only:
        sys.stdout.write(config.to_yaml())
        return
    from .training.trainer import pretrain  # --help answers at once

    pretrain(config)


def parse_command(argv: Sequence[str] | None) -> tuple[RunConfig, bool]:
    """The configuration of a command line, and whether it is only to be printed."""
    description = (
        "Adapt a model to pictures of another kind, some hundreds or more, with its own shape and tokenizer. The run "
        "ends when held-out pictures are not read better any more; final/ is the model that read them best. With "
        "--lora RANK it trains adapters, which mlx-lm's tools read too. --print-config shows all settings."
    )
    return parse_run(argv, "python -m mlx_pixword.finetune", description, _complete, init_flag="--model")


def _complete(values: dict[str, Any]) -> Mapping[str, Any]:
    if values.get("init") is None:
        raise PixWordError("give the model to start from: --model DIR_OR_REPO")
    from .training.adapt import with_init

    return with_init(values, FINETUNE_LORA if values.get("lora") else FINETUNE)


if __name__ == "__main__":
    run_command(main)
