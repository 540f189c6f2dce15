"""How fast images become pix tokens, against Pillow's bare decode and resize of the same files on as many threads.

    python benchmarks/loader.py --data photos --threads 2

pillow  `Image.open(file).convert("RGB").resize(fit, BILINEAR)`, the result thrown away
loader  the loader as in training, without a cache: decoded in processes, fitted, folded, cut into windows, laid out
cached  the loader in a later epoch with --cache: every image comes from the token cache

One round measures all three, in turn. Printed are medians over the rounds, of the speeds and of each round's ratios.
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shared.record import keep, with_machine

from mlx_pixword.common.cli import parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import setting
from mlx_pixword.data.cache import TokenCache
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.data.loader import Encoder, Loader
from mlx_pixword.data.pictures import FilePicture
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.sources import open_source
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.pixels.windows import check_geometry, fit_size

GROUP = 256  # most images a group; a measurement is a whole number of groups
Run = Callable[[int], None]  # goes through so many groups of images


@dataclass(frozen=True)
class LoaderBenchArgs:
    """Images per second of the loader and of its cache, against Pillow alone."""

    data: Path | None = setting(None, "folder of images (default: photo-like ones are made)", metavar="DIR")
    threads: int = setting(2, "decoding threads, of Pillow and of the loader")
    image_size: int = setting(224, "longer side of an image in pixels")
    window_size: int = setting(16, "side of a window in pixels")
    fold_factor: int = setting(16, "colour values folded into one level")
    rounds: int = setting(5, "rounds; medians are printed")
    seconds: float = setting(2.0, "about how long one measurement takes")
    made_images: int = setting(24, "images to make where --data is not given")
    save: Path | None = setting(None, "folder to keep the JSON in, such as benchmarks/results", metavar="DIR")

    def __post_init__(self) -> None:
        for name in ("threads", "rounds", "made_images"):
            if getattr(self, name) < 1:
                raise PixWordError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.seconds < float("inf"):
            raise PixWordError(f"--seconds must be positive, got {self.seconds}")
        check_geometry(self.image_size, self.window_size)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and, on the last line, the JSON."""
    args = parse(LoaderBenchArgs, "benchmarks/loader.py", argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or make_photos(Path(scratch) / "photos", args.made_images)
        speeds = measure(folder, Path(scratch) / "cache", args)
        result = report(speeds, args, len(list_images(folder)))
    print_table(result)
    if args.save:
        keep(result, args.save)
    print(json.dumps(result))


# ---------------------------------------------------------------------------------------------- measuring


def measure(folder: Path, cache: Path, args: LoaderBenchArgs) -> dict[str, list[float]]:
    """Images per second of each path, one number a round."""
    with Decoders() as decoders:
        return _measure(LoaderRun(folder, None, args, decoders), LoaderRun(folder, cache, args, decoders), args)


def _measure(plain: "LoaderRun", cached: "LoaderRun", args: LoaderBenchArgs) -> dict[str, list[float]]:
    runs: dict[str, Run] = {"pillow": PillowRun(plain), "loader": plain, "cached": cached}
    counts = {name: _groups_needed(run, plain.epoch_groups, args.seconds) for name, run in runs.items()}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            speeds[name].append(counts[name] * plain.group_size / _seconds(run, counts[name]))
    return speeds


def _groups_needed(run: Run, epoch_groups: int, seconds: float) -> int:
    """Groups that take about so many seconds, after an epoch to warm up: files are read and the cache is filled."""
    run(epoch_groups)
    return max(1, round(seconds / _seconds(run, 1)))


def _seconds(run: Run, groups: int) -> float:
    while any(thread.name.startswith("decode") for thread in threading.enumerate()):
        time.sleep(0.002)  # the loader before this one still finishes what it began ahead
    start = time.perf_counter()
    run(groups)
    return time.perf_counter() - start


class LoaderRun:
    """The library's loader, up to the rows of documents that training collates."""

    def __init__(self, folder: Path, cache: Path | None, args: LoaderBenchArgs, decoders: Decoders) -> None:
        windows = (args.image_size // args.window_size) ** 2
        model = ModelArgs(
            image_size=args.image_size, window_size=args.window_size, fold_factor=args.fold_factor,
            max_seq_len=max(1024, windows + 3),
        )  # fmt: skip
        self.folder, self.args, self.paths = folder, args, list_images(folder)
        self.group_size = min(GROUP, len(self.paths))
        self.epoch_groups = -(-len(self.paths) // self.group_size)
        self._skips = SkipLog()
        encoder = Encoder(model, None, self._skips, TokenCache(cache, model) if cache else None, decoders)
        self._loader = Loader([open_source(folder)], encoder, threads=args.threads, group_size=self.group_size)

    def __call__(self, groups: int) -> None:
        """Go on until the first ``groups`` groups of images have come; no later one is waited for."""
        wanted, images = groups * self.group_size, 0
        for group, _, rows in self._loader.batches():
            if group == groups:
                raise PixWordError(
                    f"--data {self.folder}: {self._skips.count} images cannot be read; take them out of the folder"
                )
            images += sum(map(len, rows))
            if images == wanted:
                return

    def files(self, groups: int) -> list[Path]:
        """The files of the first ``groups`` groups, in order."""
        return [self.paths[index] for group in range(groups) for index in self._loader.indices(group)]


class PillowRun:
    """Pillow alone, over the files of a loader, on as many threads."""

    def __init__(self, loader: LoaderRun) -> None:
        self._loader = loader

    def __call__(self, groups: int) -> None:
        with ThreadPoolExecutor(self._loader.args.threads) as pool:
            for _ in pool.map(self._decode, self._loader.files(groups)):
                pass

    def _decode(self, path: Path) -> None:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise PixWordError(f"--data: {path} cannot be read: {error}; take it out") from error
        height, width = fit_size(image.height, image.width, self._loader.args.image_size)
        image.resize((width, height), Image.Resampling.BILINEAR)


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, as the loader lists them."""
    source = open_source(folder)
    pictures = [part for n in range(len(source)) for part in source.parts(n)]
    paths = [picture.path for picture in pictures if isinstance(picture, FilePicture)]
    if len(paths) < len(source) or len(paths) < len(pictures):
        raise PixWordError(f"--data {folder} must be a folder of image files, without texts")
    return paths


# ------------------------------------------------------------------------------------------------- images


def make_photos(folder: Path, count: int) -> Path:
    """Write photo-like images, 640x480 to 1024x768, JPEG and PNG in turn: soft light, edges and grain."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        width, height = [(640, 480), (800, 600), (1024, 768)][n // 2 % 3]
        image = Image.fromarray(_photo(rng, height, width))
        image.save(folder / f"{n:03d}.{'png' if n % 2 else 'jpg'}", quality=90)  # PNG takes no notice of the quality
    return folder


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colours at 12x9, 48x36 and 192x144 points, blown up and added, and a little grain: uint8 ``[h, w, 3]``."""
    layers = []
    for scale, strength in ((12, 1.0), (48, 0.4), (192, 0.15)):
        small = Image.fromarray(rng.integers(0, 256, (scale * 3 // 4, scale, 3), dtype=np.uint8))
        layers.append(strength * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32))
    grain = rng.normal(0, 2, (height, width, 1)).astype(np.float32)
    return np.clip(sum(layers) / 1.55 + grain, 0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------------------- report


def report(speeds: dict[str, list[float]], args: LoaderBenchArgs, count: int) -> dict[str, Any]:
    """What is printed and kept: medians, every round, the settings, the machine and the versions."""
    settings = {name: value for name, value in asdict(args).items() if name not in ("data", "save")}
    result = {
        "benchmark": "loader",
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "ratio_to_pillow": {name: round(_ratio(speeds, name), 3) for name in ("loader", "cached")},
        "rounds": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
        "images": {"count": count, "made": args.data is None},
        "settings": settings,
    }
    return with_machine(result)


def _ratio(speeds: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of a path's speed over Pillow's in the same round."""
    return statistics.median(a / b for a, b in zip(speeds[name], speeds["pillow"], strict=True))


def print_table(result: dict[str, Any]) -> None:
    """A line a path: images per second, and times Pillow."""
    print(f"{'path':<8}{'images/s':>12}{'x pillow':>12}")
    for name, speed in result["images_per_second"].items():
        print(f"{name:<8}{speed:>12,.1f}{result['ratio_to_pillow'].get(name, 1.0):>12.2f}")


if __name__ == "__main__":
    run_command(main)
