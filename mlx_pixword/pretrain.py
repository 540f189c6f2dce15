"""`python -m mlx_pixword.pretrain`: train a model on images and words."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .common.cli import run_command
from .config.command import parse_run
from .config.run import RunConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or print the configuration."""
    config, print_only = parse_command(argv)
    if print_only:
        sys.stdout.write(config.to_yaml())
        return
    from .training.trainer import pretrain  # --help and --print-config answer at once

    pretrain(config)


def parse_command(argv: Sequence[str] | None) -> tuple[RunConfig, bool]:
    """The configuration of a command line, and whether it is only to be printed."""
    description = (
        "Train a unified pixel-and-word model. Without --data it learns to read and draw built-in number plates. What "
        "is not given comes from the preset: --print-config shows all of it."
    )
    return parse_run(argv, "python -m mlx_pixword.pretrain", description, _complete)


def _complete(values: dict[str, Any]) -> Mapping[str, Any]:
    if values.get("init") is None and values.get("language_from") is None:
        return values
    from .training.adapt import with_init

    return with_init(values, {})


if __name__ == "__main__":
    run_command(main)
