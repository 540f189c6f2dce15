"""`python -m mlx_pixword`: the commands there are, a line each; `python -m mlx_pixword COMMAND ...` runs one."""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from .common.cli import Parser, run_command

_ABOUT = "One generative model that reads and writes pixels and words. The commands:"

COMMANDS = {  # in the order in which people need them
    "pretrain": "train a model on images and texts, or on built-in ones",
    "finetune": "adapt a model to pictures of another kind",
    "generate": "read images, draw them, or complete them",
    "evaluate": "measure a model: losses, readings, bits per dimension",
    "demo": "open a page that reads, scores, completes and draws",
    "server": "serve a model over HTTP, as OpenAI's chat API",
    "report": "write a page about runs: losses, samples, readings, settings",
    "convert": "make a model directory smaller, fuse adapters, or read the authors' checkpoints",
    "doctor": "show what was found on this machine, and what would make it faster",
    "plan": "count what a model takes, and estimate its times on an Apple chip",
}


def main(argv: Sequence[str] | None = None) -> None:
    """List the commands, or hand over to the one that is named."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        _main_of(arguments[0])(arguments[1:])
        return
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="python -m mlx_pixword", usage="python -m mlx_pixword COMMAND ...", allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter, description=f"{_ABOUT}\n\n{listed}",
        epilog="python -m mlx_pixword COMMAND --help shows what each one takes.",
    )  # fmt: skip
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"unknown command {arguments[0]!r}; the commands are {', '.join(COMMANDS)}")
    parser.parse_args(arguments)
    parser.print_help()


def console() -> None:
    """Entry point of the scripts that pip installs: ``mlx_pixword.NAME`` runs a command, ``mlx_pixword`` lists them."""
    name = Path(sys.argv[0]).name.rpartition(".")[2]
    run_command(_main_of(name) if name in COMMANDS else main)


def _main_of(name: str) -> Callable[..., None]:
    command: Callable[..., None] = import_module(f".{name}", __package__).main
    return command


if __name__ == "__main__":
    run_command(main)
