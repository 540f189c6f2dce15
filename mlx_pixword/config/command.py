"""The command line of a run: what `pretrain` and `finetune` share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.cli import Parser
from ..common.errors import PixWordError
from ..common.files import expand
from ..common.settings import add_arguments
from ..model.args import ModelArgs
from .adapt import AdaptArgs
from .data import DataArgs
from .run import PRESETS, RunConfig, make_config, read_yaml
from .train import TrainArgs

Complete = Callable[[dict[str, Any]], Mapping[str, Any]]


def parse_run(
    argv: Sequence[str] | None, prog: str, description: str, complete: Complete, init_flag: str | None = None
) -> tuple[RunConfig, bool]:
    """The configuration of a command line, and whether it is only to be printed.

    Args:
        argv: the arguments, or None for those of the process.
        prog: the command as it is typed.
        description: for the help.
        complete: from what a user gave to all that is known besides the preset.
        init_flag: another flag for ``--init``.
    """
    parser = Parser(prog=prog, allow_abbrev=False, description=description)
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help="model and training settings to start from (default tiny)"
    )
    if init_flag:
        parser.add_argument(init_flag, dest="init", metavar="DIR_OR_REPO", help="the model to start from")
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="settings in YAML, over the preset")
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML and stop")
    groups = ((TrainArgs, "training"), (DataArgs, "data"), (ModelArgs, "model"), (AdaptArgs, "starting from a model"))
    for cls, title in groups:
        add_arguments(parser, cls, title, defaults=False)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    file, print_only = given.pop("config", None), given.pop("print_config")
    values = (read_yaml(expand(file)) if file else {}) | _where_it_lies(file, given) | given
    if "steps" in given and "epochs" in given:
        raise PixWordError("give --steps or --epochs, not both")
    values |= {"epochs": None} if "steps" in given else {}
    return make_config(complete(values), where="command line"), print_only


def _where_it_lies(file: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """A run that is resumed by its ``config.yaml`` goes on where that lies, wherever it was when it was written."""
    folder = expand(file).absolute().parent if file else Path()
    made_by_a_run = any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl", ".lock"))
    return {"out": folder} if file and given.get("resume") and made_by_a_run else {}
