"""`python -m mlx_pixword.report RUN [RUN ...]`: one HTML file about runs, which needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common.cli import parse, run_command
from .common.settings import setting


@dataclass(frozen=True)
class ReportArgs:
    """Write one HTML file about one run or several: losses, speed, memory, samples, readings, settings, machines."""

    run: list[str] = setting([], "folder of a run, which may be going on", metavar="RUN", path=True, positional=True)
    out: Path | None = setting(
        None, "the file (default report.html in the run's folder, or here for several runs)", metavar="FILE.html"
    )
    force: bool = setting(False, "write over a file that is no report")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report and print its name."""
    args = parse(ReportArgs, "-m mlx_pixword.report", argv)
    from .apps.report_page import write_report  # --help answers at once

    print(write_report([Path(folder) for folder in args.run], args.out, args.force))


if __name__ == "__main__":
    run_command(main)
