"""`python -m mlx_pixword.pretrain`: train a model on images and words."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .common.cli import Parser, run_command
from .common.files import expand
from .common.settings import add_arguments
from .config.data import DataArgs
from .config.run import PRESETS, RunConfig, make_config, read_yaml
from .config.train import TrainArgs
from .model.args import ModelArgs


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
    parser = Parser(
        prog="python -m mlx_pixword.pretrain", allow_abbrev=False,
        description="Train a unified pixel-and-word model. Without --data it learns to read and draw built-in number "
        "plates. What is not given comes from the preset: --print-config shows all of it.",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help="model and training settings to start from (default tiny)"
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="settings in YAML, over the preset")
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    for cls, title in ((TrainArgs, "training"), (DataArgs, "data"), (ModelArgs, "model")):
        add_arguments(parser, cls, title, defaults=False)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    file, print_only = given.pop("config", None), given.pop("print_config")
    values = (read_yaml(expand(file)) if file else {}) | given
    return make_config(values, where="command line"), print_only


if __name__ == "__main__":
    run_command(main)
