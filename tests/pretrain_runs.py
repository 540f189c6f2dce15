"""Small runs of `pretrain` and what they train on."""

import json
import zipfile
from pathlib import Path

import pytest

from mlx_pixword.common.cli import run_command
from mlx_pixword.pretrain import main

SMALL = {
    "image-size": 16, "hidden-size": 16, "num-heads": 2, "num-kv-heads": 1, "num-layers": 1, "image-layers": 1,
    "intermediate-size": 16, "max-seq-len": 64, "batch-tokens": 128, "group-size": 16, "eval-documents": 4,
    "log-every": 1, "eval-every": 100, "save-every": 100, "pixel-queries": 2, "draw-images": 1,
}  # fmt: skip
SMALL_FLAGS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]


def train(out: Path, *flags: object, steps: int = 3) -> list[dict[str, float]]:
    """Run `pretrain` and give its metrics."""
    main(["--out", str(out), "--steps", str(steps), *SMALL_FLAGS, *map(str, flags)])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """Metrics without clocks and memory."""
    return [
        {k: v for k, v in m.items() if k not in ("tokens_per_second", "seconds", "peak_gb", "active_gb")}
        for m in metrics
    ]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run `pretrain`, which must exit 2 with one line; gives the line."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*map(str, arguments)]))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def write_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder.parent / "photos.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return folder.parent / "photos.zip"


def write_jsonl(folder: Path) -> Path:
    lines = [json.dumps({"image": p.name, "caption": f"picture {p.stem}"}) for p in sorted(folder.glob("*.png"))]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "captions.jsonl"


def write_texts(folder: Path) -> Path:
    texts = folder.parent / "texts"
    texts.mkdir()
    for n, path in enumerate(sorted(folder.glob("*.png"))):
        (texts / f"{n}.txt").write_text(f"before <|image|>{path.name}<|/image|> after {n}\n")
    return texts
