"""``python benchmarks/evidence COMMAND``: the experiments; without a command it lists them."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of `evidence` and `shared`, in place of this one

from evidence.commands import console  # noqa: E402

if __name__ == "__main__":
    console()
