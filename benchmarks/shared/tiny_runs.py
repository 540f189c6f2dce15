"""Very small training runs for `kills.py` and `soak.py`: data of three kinds, settings, and what must be equal."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLOCKS = ("tokens_per_second", "seconds", "peak_gb", "active_gb")  # of metrics: what depends on the machine's mood
NEARLY = 1e-3  # of the largest number, where sums have no fixed order
SETTINGS = {
    "image-size": 24, "window-size": 4, "hidden-size": 16, "num-heads": 2, "num-kv-heads": 1, "num-layers": 1,
    "image-layers": 1, "intermediate-size": 16, "max-seq-len": 128, "batch-tokens": 128, "group-size": 16,
    "accumulate": 2, "pixel-queries": 1, "eval-documents": 4, "draw-images": 0, "sample-images": 0, "max-bad": 0.5,
    "dtype": "float32", "vocab-size": 300,
}  # fmt: skip


def make_data(folder: Path) -> list[str]:
    """Write a folder of images, an archive of images and captions, some files of each broken; gives the flags."""
    rng = np.random.default_rng(0)
    for place in ("images", "captioned", "packed"):
        (folder / place).mkdir(parents=True)
        for n in range(20):
            height, width = rng.integers(4, 40, 2)
            Image.fromarray(_picture(rng, height, width)).save(folder / place / f"{n}.png")
        (folder / place / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        for path in sorted((folder / "packed").iterdir()):
            archive.write(path, path.name)
    lines = [json.dumps({"image": f"captioned/{n}.png", "caption": f"picture {n}, {n % 3} of 3"}) for n in range(20)]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return [text for name in ("images", "packed.zip", "captions.jsonl") for text in ("--data", str(folder / name))]


def _picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.kron(rng.integers(0, 256, (3, 3, 3)), np.ones((14, 14, 1)))[:height, :width].astype(np.uint8)


def command(out: Path, *flags: object) -> list[str]:
    """A training run as a process."""
    settings = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mlx_pixword.pretrain", "--out", str(out), *settings, *map(str, flags)]


def outcome(out: Path) -> dict[str, Any]:
    """What two runs must have in common when they are done: bytes of weights and of skipped files, and metrics."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]
    files = {name: (out / name).read_bytes() for name in ("final/model.safetensors", "best/model.safetensors")}
    newest = max((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    files |= {f"checkpoint's {name}": (newest / name).read_bytes() for name in ("model.safetensors",)}
    files["optimizer"] = (newest / "optimizer.safetensors").read_bytes()
    skipped = out / "skipped.jsonl"  # not there until a file is skipped
    return {**files, "skipped.jsonl": skipped.read_bytes() if skipped.exists() else b"", "metrics": metrics}


def alike(wanted: Any, found: Any, nearly: bool) -> bool:
    """Whether parts of two outcomes are equal; or ``nearly``, their numbers within `NEARLY` of the largest."""
    if wanted == found or not nearly:
        return bool(wanted == found)
    if isinstance(wanted, bytes):
        tensors = _tensors(wanted), _tensors(found)
        return tensors[0].keys() == tensors[1].keys() and all(_near(tensors[0][n], tensors[1][n]) for n in tensors[0])
    if isinstance(wanted, dict):
        return wanted.keys() == found.keys() and all(alike(wanted[name], found[name], True) for name in wanted)
    if isinstance(wanted, list):
        return len(wanted) == len(found) and all(alike(a, b, True) for a, b in zip(wanted, found, strict=True))
    return isinstance(wanted, float) and isinstance(found, float) and _near(np.array(wanted), np.array(found))


def _tensors(file: bytes) -> dict[str, np.ndarray]:
    """Of a safetensors file; another file is bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(file)
    except SafetensorError:
        return {"": np.frombuffer(file, np.uint8)}


def _near(wanted: np.ndarray, found: np.ndarray) -> bool:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    if not np.issubdtype(wanted.dtype, np.floating):
        return bool(np.array_equal(wanted, found))
    scale = NEARLY * max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
    return bool(np.allclose(found, wanted, rtol=0, atol=scale, equal_nan=True))


def on_gpu() -> bool:
    """Whether runs compute on a GPU."""
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu)
