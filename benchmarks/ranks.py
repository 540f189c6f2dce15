"""What two ranks send each other a step, counted by the kernel, against what a ring of all ranks must send.

    python benchmarks/ranks.py --hidden-size 128

Two ranks on this machine train twice, for few and for more steps; the difference in the bytes of the loopback device,
divided by the difference in steps, is what a step sends: Linux, and a quiet network. The model: in a ring of R ranks
each sends 2 (R - 1) / R of the gradient, 4 bytes a parameter, and nothing else that counts.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from shared.record import keep, with_machine
from shared.tiny_runs import command

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.weights.safetensors import read_shapes

RANKS = 2


@dataclass(frozen=True)
class RankArgs:
    """Bytes that two ranks on this machine send a step, counted and modelled."""

    hidden_size: int = setting(64, "width of the model")
    few: int = setting(5, "steps of the short run")
    many: int = setting(25, "steps of the long run")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        if not 0 < self.few < self.many:
            raise PixWordError(f"0 < --few < --many must hold, got {self.few} and {self.many}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run twice, print a line and, on the last line, the JSON."""
    args = parse(RankArgs, "benchmarks/ranks.py", argv)
    with tempfile.TemporaryDirectory() as scratch:
        short, _ = measure(Path(scratch) / "short", args.few, args.hidden_size)
        long, parameters = measure(Path(scratch) / "long", args.many, args.hidden_size)
    counted = (long - short) / (args.many - args.few)
    modelled = RANKS * ring_bytes(parameters, RANKS)
    result = {"parameters": parameters, "counted": round(counted), "modelled": round(modelled)}
    print(f"{parameters:,} parameters: {counted:,.0f} bytes a step counted, {modelled:,.0f} modelled")
    settings = {name: value for name, value in asdict(args).items() if name != "save"}
    report = with_machine({"benchmark": "ranks", **result, "settings": settings})
    if args.save:
        keep(report, args.save)
    print(json.dumps(report))


def ring_bytes(parameters: int, ranks: int) -> float:
    """Bytes that one rank sends to average gradients in float32: it passes on all parts but one, twice."""
    return 2 * (ranks - 1) / ranks * 4 * parameters


def measure(out: Path, steps: int, hidden_size: int) -> tuple[int, int]:
    """Bytes on the loopback device during a run, and the parameters that were trained."""
    flags: list[Any] = ["--steps", steps, "--hidden-size", hidden_size, "--eval-documents", 0, "--save-every", 10**6]
    launcher = str(Path(sys.executable).parent / "mlx.launch")
    before = loopback_bytes()
    done = subprocess.run(
        [launcher, "-n", str(RANKS), "--backend", "ring", "--", *command(out, *flags)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    sent = loopback_bytes() - before
    weights = out / "checkpoints" / f"step-{steps}" / "model.safetensors"
    if done.returncode or not weights.exists():
        raise PixWordError(f"the run failed: {done.stderr.strip().splitlines()[-1:]}")
    return sent, sum(map(prod, read_shapes(weights).values()))


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself since it started."""
    path = Path("/proc/net/dev")
    if not path.exists():
        raise PixWordError("bytes are counted in /proc/net/dev, which this system does not have")
    (line,) = [line for line in path.read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    run_command(main)
