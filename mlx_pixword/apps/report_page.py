"""One HTML file about one run or several, which needs no network: curves, samples, readings, settings, machines."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..common.errors import PixWordError
from ..common.files import check_writable, replace_file
from .run_files import RunFiles, read_run

MARK = "<!-- mlx-pixword report -->"  # the first bytes of a report, which a newer one may replace
MOST_READINGS = 60  # lines of the table of readings, a step


def write_report(folders: Sequence[Path], out: Path | None = None, force: bool = False) -> Path:
    """Write a report.

    Args:
        folders: of runs, which may be going on.
        out: the file; None for `report.html` in the folder of the only run, or here for several.
        force: write over a file that is no report.

    Raises:
        PixWordError: not the folder of a run, a file that is in the way, or a package that is not installed.
    """
    for package in ("bokeh", "jinja2"):
        if find_spec(package) is None:
            raise PixWordError(f"reports need {package}, which is not installed: pip install 'mlx-pixword[report]'")
    path = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    runs = [read_run(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    _check(path, force)
    replace_file(path, render(runs).encode("utf-8", "backslashreplace"))  # names of files may be no UTF-8
    return path


def names(folders: Sequence[Path]) -> list[str]:
    """Short names that differ: the last parts of the paths, as many as are needed."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise PixWordError("the same run is given twice; give each once")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def render(runs: Sequence[RunFiles]) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from .report_plots import plots, scripts

    script, divisions = plots(runs)
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        mark=MARK, runs=runs, scripts=scripts(), plot_script=script, plots=divisions, settings=settings_table(runs),
        most=MOST_READINGS, counts=reading_counts, order=order_readings,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
    )  # fmt: skip


def settings_table(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """A line for each setting: its values, whether runs differ in it, and which are unlike their preset."""
    every = dict.fromkeys(name for run in runs for name in run.settings)
    lines = []
    for name in every:
        values = [run.settings.get(name, "(not there)") for run in runs]
        unusual = [name in run.usual and run.usual[name] != run.settings.get(name) for run in runs]
        lines.append(
            {"name": name, "values": values, "differs": any(v != values[0] for v in values), "unusual": unusual}
        )
    return sorted(lines, key=lambda line: not line["differs"])


def reading_counts(readings: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """How many readings are right, and how many there are."""
    return sum(line["read"] == line["written"] for line in readings), len(readings)


def order_readings(readings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Wrong readings first, those with a picture before others."""
    return sorted(readings, key=lambda line: (line["read"] == line["written"], "picture" not in line))


def _check(path: Path, force: bool) -> None:
    if not path.absolute().parent.is_dir():
        raise PixWordError(f"--out {path}: there is no folder {path.parent}")
    check_writable(path.absolute().parent, f"--out {path}")
    if path.is_dir():
        raise PixWordError(f"--out {path} is a folder; choose a name for the file")
    if path.exists() and not force:
        with path.open("rb") as file:
            if file.read(len(MARK)) != MARK.encode():
                raise PixWordError(f"{path} exists and is no report; choose another name or give --force")
