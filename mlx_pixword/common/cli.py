"""What all command lines share: a user's mistake is one line and exit status 2, anything else keeps its traceback."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .errors import PixWordError
from .files import is_trouble, trouble
from .settings import add_arguments, build
from .streams import abandon, robust_streams

Settings = TypeVar("Settings")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that knows ``--version``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        package = sys.modules[__name__.partition(".")[0]]  # imported already, or this module would not be
        self.add_argument("--version", action="version", version=f"mlx-pixword {package.__version__}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def parse(cls: type[Settings], prog: str, argv: Sequence[str] | None, *, required: Sequence[str] = ()) -> Settings:
    """Read the settings ``cls`` from a command line.

    Args:
        cls: a settings dataclass; its docstring is the help's description.
        prog: what follows ``python`` on the command line.
        argv: the arguments, or None for those of the process.
        required: names of settings that must be given.
    """
    parser = Parser(prog=f"python {prog}", description=cls.__doc__, allow_abbrev=False)
    add_arguments(parser, cls, "settings", required=required)
    return build(cls, vars(parser.parse_args(argv)), where="command line")


def notice(message: str) -> None:
    """One line for the user on standard error, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def run_command(main: Callable[[], None]) -> None:
    """Run a command line's ``main``: `PixWordError` prints its line and exits 2; a closed pipe ends in silence.

    A disk that is full, closed or gone is nobody's bug either: the path is named, and the status is 2.
    """
    with robust_streams():
        try:
            try:
                main()
            finally:
                sys.stdout.flush()
        except PixWordError as error:
            message = " ".join(str(error).split())
            sys.exit(_fail(f"error: {message}"))
        except RuntimeError as error:
            if "[Compile::eval_cpu]" not in str(error):
                raise
            place = f"{tempfile.gettempdir()}/mlx"
            sys.exit(
                _fail(f"error: MLX cannot compile in {place}, perhaps another user's; set TMPDIR to a folder of yours")
            )
        except BrokenPipeError:
            abandon(sys.stdout)
            sys.exit(1)
        except OSError as error:
            if error.filename is None or not is_trouble(error):
                raise
            sys.exit(_fail(f"error: {trouble('use', Path(os.fsdecode(error.filename)), error)}"))
        except KeyboardInterrupt:
            sys.exit(_fail("interrupted", 130))


def _fail(message: str, status: int = 2) -> int:
    print(message, file=sys.stderr)
    return status
