"""The JSON that is kept of each run: what it was, where it ran, its curve, and every reading of the test set."""

import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from shared.record import with_machine

from .files import read_json, write_json
from .manifest import Known, RunSpec
from .plan import Plan, kept_plan

REPOSITORY = Path(__file__).parents[2]


def commit() -> str:
    """The commit that ran, with ``+changes`` where the program differs from it; "unknown" outside a clone."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "mlx_pixword", "benchmarks/evidence/*.py"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+changes" if changed.strip() else name


def record_path(results: Path, run: str) -> Path:
    return results / "runs" / f"{run}.json"


def keep_record(results: Path, spec: RunSpec, found: dict[str, Any], started: str, digest: str) -> None:
    """Write a finished run's record."""
    command = "python " + " ".join(["benchmarks/evidence", *sys.argv[1:]])
    record = {
        "id": spec.id, "spec": spec.to_json(), "command": command, "commit": commit(), "started": started,
        "finished": now(), "cpu": platform.processor() or platform.machine(), "tests": digest, **found,
    }  # fmt: skip
    write_json(record_path(results, spec.id), with_machine(record))


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def finished(results: Path) -> dict[str, dict[str, float]]:
    """Development nats of finished runs, by id and point."""
    found = dict[str, dict[str, float]]()
    for path in sorted((results / "runs").glob("*.json")):
        found[path.stem] = {name: point["nats"] for name, point in read_json(path)["points"].items()}
    return found


def known(results: Path, plan: Plan | None = None) -> Known:
    """What the manifest depends on, as a folder of results holds it."""
    timing = read_json(results / "timing.json")["arms"]
    return Known(plan or kept_plan(results), timing, finished(results), (results / "prediction.json").exists())
