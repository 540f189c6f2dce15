"""Give the library broken inputs for some minutes, and keep those that do harm.

    python tests/fuzz/run.py --target images --minutes 10

With atheris, which is no dependency, what a broken input reaches in Python guides the next ones; with hypothesis all
are made of good inputs and nothing guides them. Both go on after a finding.
"""

import hashlib
import importlib
import importlib.util
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzzing import Finding, Target, judge, mutant

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting

TARGETS = ("images", "texts", "tables", "parquet", "models", "yaml", "archives")
ENGINES = ("atheris", "hypothesis")
INSTRUMENTED = ["mlx_pixword", "PIL", "yaml", "json", "zipfile", "tarfile"]


@dataclass(frozen=True)
class FuzzArgs:
    """Give the library broken inputs for some minutes, and keep those that do harm."""

    target: str = setting("images", "what to fuzz", choices=TARGETS)
    minutes: float = setting(10.0, "how long")
    engine: str = setting("auto", "what makes inputs; auto: atheris where it is installed", choices=("auto", *ENGINES))
    seed: int = setting(0, "of the inputs")
    out: Path = setting(Path("runs/fuzz"), "folder for inputs that do harm", metavar="DIR")

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise PixWordError(f"--minutes must be positive, got {self.minutes}")
        if self.seed < 0:
            raise PixWordError(f"--seed must be at least 0, got {self.seed}")


def main(argv: Sequence[str] | None = None) -> None:
    """Fuzz, and print what was found; exit status 1 if anything was."""
    args = parse(FuzzArgs, "tests/fuzz/run.py", argv)
    engine = choose(args.engine)
    with tempfile.TemporaryDirectory() as corpus:
        if engine == "atheris":
            run_atheris(args, Path(corpus))
        else:
            run_hypothesis(args)


def choose(engine: str) -> str:
    """The engine to use; raises ``PixWordError`` if it is not installed."""
    there = [name for name in ENGINES if importlib.util.find_spec(name)]
    if not there or engine not in ("auto", *there):
        raise PixWordError(f"no {engine if engine != 'auto' else 'engine'} here; python -m pip install hypothesis")
    return there[0] if engine == "auto" else engine


class Session:
    """Inputs tried until a time, and the findings, one a place."""

    def __init__(self, args: FuzzArgs, target: Target, engine: str) -> None:
        self.target, self.engine, self._out = target, engine, args.out / target.name
        self._out.mkdir(parents=True, exist_ok=True)
        with (self._out / "log").open("wb") as log:  # libraries written in C complain there, at length
            os.dup2(log.fileno(), 2)
        self._start, self._seconds = time.monotonic(), 60 * args.minutes
        self.tried = self.taken = 0
        self.places: dict[str, int] = {}
        self._slowest = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() - self._start > self._seconds

    def give(self, data: bytes) -> None:
        """Try an input. It lies in ``now`` until the library has answered: there it is if this process dies."""
        (self._out / "now").write_bytes(data)
        start = time.monotonic()
        try:
            self.taken += judge(self.target, data) is None
        except Finding as finding:
            self._note(finding, data)
        self.tried += 1
        if (seconds := time.monotonic() - start) > self._slowest:
            self._slowest = seconds
            (self._out / "slowest").write_bytes(data)

    def _note(self, finding: Finding, data: bytes) -> None:
        self.places[finding.place] = self.places.get(finding.place, 0) + 1
        if self.places[finding.place] == 1:
            name = hashlib.sha256(data).hexdigest()[:12]
            (self._out / name).write_bytes(data)
            print(f"found {finding} ({self._out / name})".replace("\n", " "), flush=True)

    def report(self) -> int:
        """Print the figures; the exit status."""
        (self._out / "now").unlink(missing_ok=True)
        minutes = (time.monotonic() - self._start) / 60
        print(
            f"{self.target.name}, {self.engine}: {self.tried:,} inputs in {minutes:.1f} min, {self.taken:,} taken, "
            f"{self.tried - self.taken - sum(self.places.values()):,} refused, slowest {self._slowest:.2f} s, "
            f"{len(self.places)} findings"
        )
        for place, times in sorted(self.places.items()):
            print(f"  {times:,} x {place}")
        sys.stdout.flush()
        return 1 if self.places else 0


def load_target(name: str) -> Target:
    return importlib.import_module(f"fuzz_{name}").TARGET


def run_atheris(args: FuzzArgs, corpus: Path) -> None:
    """Guided by what is reached; leaves the process, as the engine would."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load_target(args.target)
    for number, data in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(data)
    words = corpus.with_suffix(".dict")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if 0 < len(word) <= 64))
    session = Session(args, target, "atheris")

    def give(data: bytes) -> None:
        session.give(data)
        if session.over:
            words.unlink(missing_ok=True)
            os._exit(session.report())

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return atheris.Mutate(data, most) if rng.random() < 0.3 else mutant(target, data, rng)[:most]

    options = ["-max_len=65536", f"-seed={args.seed + 1}", "-timeout=600", "-rss_limit_mb=8192"]
    options += ["-report_slow_units=600", f"-artifact_prefix={args.out / target.name}/"]
    atheris.Setup([sys.argv[0], *options, f"-dict={words}", "-verbosity=0", str(corpus)], give, custom_mutator=mutate)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def run_hypothesis(args: FuzzArgs) -> None:
    """Broken copies of good inputs."""
    import hypothesis
    from hypothesis import strategies

    target = load_target(args.target)
    session = Session(args, target, "hypothesis")
    seeds, number = target.seeds(), 1000 * args.seed
    quick = hypothesis.settings(max_examples=500, database=None, deadline=None, phases=[hypothesis.Phase.generate])

    @quick
    @hypothesis.given(strategies.sampled_from(seeds), strategies.integers(0, 2**32))
    def give(seed: bytes, number: int) -> None:
        if not session.over:
            session.give(mutant(target, seed, random.Random(number)))

    while not session.over:
        hypothesis.seed(number)(give)()
        number += 1
    if status := session.report():
        sys.exit(status)


if __name__ == "__main__":
    run_command(main)
