"""The machine that a program runs on, in words that name no person and no path."""

import os
import platform
from importlib.metadata import version

import mlx.core as mx


def device_name() -> str:
    """The processor as MLX names it, and how many cores there are."""
    info = mx.device_info()
    return str(info.get("device_name", info.get("architecture", platform.machine()))) + f", {os.cpu_count()} cores"


def memory_bytes() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_facts() -> dict[str, str]:
    """What a run's record says of where it ran."""
    return {
        "device": f"{mx.default_device().type.name}, {device_name()}",
        "memory": f"{memory_bytes() / 2**30:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
    }
