"""What all benchmarks keep: their numbers with the machine and the versions behind them."""

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_pixword.common.errors import PixWordError

PACKAGES = ("mlx-pixword", "mlx", "numpy", "pillow")


def with_machine(result: dict[str, Any]) -> dict[str, Any]:
    """A result and what it was measured on; no names or paths of the machine."""
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {**result, "machine": machine, "versions": versions}


def keep(result: dict[str, Any], folder: Path) -> None:
    """Write a result to a file named by benchmark, system and time."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    name = f"{result['benchmark']}-{platform.system().lower()}-{platform.machine()}-{stamp}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PixWordError(f"--save {folder}: {error.strerror}") from error
    print(f"kept in {folder / name}", file=sys.stderr)
