"""`python -m mlx_pixword.plan`: what a model would take on an Apple chip, as a table and, on the last line, as JSON.

Counts follow from the model's shape (`costs`). Times are a roofline of the chip's published figures (`chips`) and of
fractions of them that `PlanArgs` assumes: nothing has ever been measured on Apple hardware. See docs/plan.md.
"""

import json
from collections.abc import Sequence

from .common.cli import parse, run_command
from .planning.chips import find_chip
from .planning.estimate import PlanArgs, plan
from .planning.table import table


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table and the line of JSON."""
    args = parse(PlanArgs, "-m mlx_pixword.plan", argv, required=("chip",))
    result = plan(args)
    rows = table(result, find_chip(args.chip))
    width = max(len(name) for name, text in rows if text)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    print(json.dumps(result))


# --- counts and estimates ---------------------------------------------------------------------------------------------


if __name__ == "__main__":
    run_command(main)
