"""Train the reader that comes with the library: train, cool down, calibrate, and put it where the library finds it.

python scripts/train_reader.py --minutes 180          # start or go on, and ship what there is after three hours
python scripts/train_reader.py --no-ship              # train to the end, or until Ctrl-C
python scripts/train_reader.py --no-train             # ship the newest checkpoint

Training has a learning rate that stays up, so it can be ended at any time: a copy of the newest checkpoint is trained a
little longer while the rate falls, and the copy is shipped. The run itself goes on from where it was.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mlx_pixword.apps.run_files import held_out_curve
from mlx_pixword.common import files
from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.machine import machine_facts
from mlx_pixword.common.settings import assigned, setting
from mlx_pixword.config.run import RunConfig, make_config, read_yaml
from mlx_pixword.data.fonts import package_folders
from mlx_pixword.data.open import open_split
from mlx_pixword.data.strings import built_in_words, read_words
from mlx_pixword.data.text_images import TextSource
from mlx_pixword.evaluation.calibrate import fit_calibration
from mlx_pixword.evaluation.readings import rate_documents
from mlx_pixword.evaluation.scores import calibration_error, wilson
from mlx_pixword.inference.read import Reading, read_batch
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.calibration import MOST_MARGINS, Calibration
from mlx_pixword.model.network import PixWordModel, num_parameters
from mlx_pixword.training.adapt import with_init
from mlx_pixword.training.checkpoint import newest_checkpoint
from mlx_pixword.training.trainer import pretrain
from mlx_pixword.weights.directory import SHIPPED, load, save_model

ROOT = Path(__file__).parents[1]
LICENCES = {  # of faces, by the beginning of their family's name
    "dejavu": "Bitstream Vera", "computer modern": "BaKoMa", "stix": "OFL 1.1", "aileron": "CC0",
    "roboto": "Apache 2.0", "source": "OFL 1.1", "caladea": "Apache 2.0", "manrope": "OFL 1.1", "hanken": "OFL 1.1",
    "lato": "OFL 1.1", "liberation": "OFL 1.1", "open sans": "Apache 2.0", "fira": "OFL 1.1", "inconsolata": "OFL 1.1",
    "free": "GPL 3 with font exception", "hack": "MIT",
}  # fmt: skip
BANDS = (3, 4, 5, 6, 8, 12, 32)  # ink heights between which exact match is reported
FIT_SEED, SCORE_SEED = 101, 102  # of held-out crops, neither of them training's
ELEMENTS = 4096  # of a batch that is read
COOLED = "cooldown"

Rated = tuple[list[Reading], list[bool]]  # readings, and which are right


@dataclass(frozen=True)
class ReaderArgs:
    """Train the reader for a time, then cool down a copy, calibrate it, and put it where the library finds it."""

    out: Path = setting(Path("runs/reader"), "folder of the run; one that is there goes on", metavar="DIR")
    minutes: float = setting(0.0, "train so many minutes; 0: to the end of the preset's steps")
    train: bool = setting(True, "train before shipping")
    ship: bool = setting(True, "cool down, calibrate and ship after training")
    cooldown: float = setting(0.1, "steps with a falling rate, as a share of those trained")
    fonts: list[str] = setting(
        [], "more faces, from a folder (default: the packages of the extra fonts, and /usr/share/fonts/truetype)",
        metavar="DIR", path=True,
    )  # fmt: skip
    words: Path = setting(Path("/usr/share/dict/words"), "words, one a line", metavar="FILE")
    init: str | None = setting(
        None, "a new run starts from this model, with strings of full length at once", metavar="DIR_OR_REPO", path=True
    )
    set: list[str] = setting(
        [], "a setting of a new run, or one that may change later, NAME=VALUE; may be repeated", metavar="NAME=VALUE"
    )
    crops: int = setting(4000, "held-out crops to calibrate with, and as many others to score")
    margins: int = setting(3, "margins around an image, over which the shipped model takes the mean")
    target: Path = setting(SHIPPED, "where the model goes, in place of what is there", metavar="DIR")
    record: Path = setting(ROOT / "benchmarks/results/reader.json", "file for the run's record", metavar="FILE")

    def __post_init__(self) -> None:
        if self.minutes < 0 or not 0 < self.cooldown < 10 or self.crops < 100:
            raise PixWordError(
                "--minutes must not be negative, --cooldown be positive and --crops at least 100, got "
                f"{self.minutes}, {self.cooldown} and {self.crops}"
            )
        if not 1 <= self.margins <= MOST_MARGINS:
            raise PixWordError(f"--margins must be 1 to {MOST_MARGINS}, got {self.margins}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then ship."""
    args = parse(ReaderArgs, "scripts/train_reader.py", argv)
    if args.train:
        start = time.monotonic()
        ended = pretrain(settings(args)) is not None
        if not ended and not 0 < 60 * args.minutes <= time.monotonic() - start:
            return  # stopped by hand, which has been said
    if args.ship and (model := cool_down(args)) is not None:
        ship(model, args)


# --- the run ----------------------------------------------------------------------------------------------------------


def settings(args: ReaderArgs) -> RunConfig:
    """The run's settings: of a run that is there its own, else those of the preset, the faces and the words."""
    changes = {**assigned(args.set, "--set"), "out": str(args.out), "minutes": args.minutes}
    if (kept := args.out / "config.yaml").exists():
        return make_config({**read_yaml(kept), **changes, "resume": True}, where="--set")
    if not args.words.is_file():
        raise PixWordError(f"--words {args.words}: no such file; apt-get install wamerican, or give a list of words")
    values = {"preset": "reader", "fonts": args.fonts or _font_folders(), "text_words": str(args.words), **changes}
    if args.init is not None:
        warm = {"init": args.init, "factored_colors": True, "zero_init": False, "text_curriculum": 0, **values}
        values = with_init(warm, {})
    return make_config(values, where="--set")


def _font_folders() -> list[str]:
    """Folders of the font packages, and of the system's fonts where Linux keeps them."""
    system = Path("/usr/share/fonts/truetype")
    return [str(folder) for folder in [*sorted(package_folders()), *([system] if system.is_dir() else [])]]


def _steps_in(out: Path) -> int:
    """Steps of the newest checkpoint, 0 if there is none."""
    found = newest_checkpoint(out / "checkpoints")
    return found.progress.step if found else 0


def cool_down(args: ReaderArgs) -> Path | None:
    """The model of a copy of the newest checkpoint, trained on while the rate falls; None if it was stopped."""
    if not (step := _steps_in(args.out)):
        raise PixWordError(f"--out {args.out} has no checkpoint to ship; leave out --no-train")
    config = make_config(read_yaml(args.out / "config.yaml"))
    if step >= config.train.steps and (args.out / "final").is_dir():
        return args.out / "final"  # the rate has fallen already
    copy, more = args.out / f"{COOLED}-{step}", max(1, round(args.cooldown * step))
    if not copy.exists():
        _copy_run(args.out, copy, step)
    train = replace(
        config.train, out=copy, resume=True, steps=step + more, schedule="wsd", decay_share=more / (step + more),
        minutes=0.0, keep=1, keep_best=False,
    )  # fmt: skip
    notice(f"cooling down a copy of step {step:,} over {more:,} steps")
    model = pretrain(replace(config, train=train))
    if model is None:
        notice("the copy is not ready yet; go on with: python scripts/train_reader.py --no-train")
    return model


def _copy_run(out: Path, copy: Path, step: int) -> None:
    """A run's folder with its newest checkpoint alone; copies of earlier checkpoints are removed."""
    for older in out.glob(f"{COOLED}-*"):
        files.remove(older)
    draft = out / f".{COOLED}.draft"
    files.remove(draft)
    files.make_folder(draft / "checkpoints")
    shutil.copytree(out / "checkpoints" / f"step-{step}", draft / "checkpoints" / f"step-{step}")
    for name in ("config.yaml", "metrics.jsonl", "tokenizer.model", "tokenizer.json"):
        if (out / name).exists():
            shutil.copy(out / name, draft / name)
    files.move(draft, copy)


# --- shipping ---------------------------------------------------------------------------------------------------------


def ship(folder: Path, args: ReaderArgs) -> None:
    """Round a model to float16, calibrate and score it as it then is, and publish it with its card and record."""
    draft = args.target.parent / f".{args.target.name}.draft"
    files.make_folder(draft.parent)
    files.remove(draft)
    trained, processor = load(folder)
    save_model(trained, processor.tokenizer, draft, half=True)
    model, processor = load(draft, dtype="float32")
    run, config = folder.parent, make_config(read_yaml(folder.parent / "config.yaml"))
    source = _held_out(config, FIT_SEED)
    model.calibration = Calibration(margins=args.margins)
    readings, right = read_mixed(model, processor, source, args.crops)
    fitted = fit_calibration([reading.log_probability for reading in readings], right)
    model.calibration = replace(fitted, margins=args.margins)
    scores = score(model, processor, config, args.crops)
    record = describe(model, config, run, scores, source)
    files.remove(draft)
    save_model(model, processor.tokenizer, draft, {"README.md": card(record).encode()}, half=True)
    files.publish(draft, args.target)
    files.make_folder(args.record.parent)
    files.replace_file(args.record, (json.dumps(record, indent=1) + "\n").encode())
    size = sum(path.stat().st_size for path in args.target.iterdir()) / 1e6
    print(f"shipped {args.target}, {size:.1f} MB, and its record {args.record}")
    for name, value in scores.items():
        print(f"{name:<28} {value}")


def _held_out(config: RunConfig, seed: int) -> TextSource:
    """Strings and families of faces that the run did not train on."""
    (source,) = open_split(config.data, seed, 1, config.model.image_size).heldout
    if not isinstance(source, TextSource):
        raise PixWordError("the reader is trained on built-in text alone; leave --set data=... out")
    return source


def read_mixed(model: PixWordModel, processor: Processor, source: TextSource, count: int) -> Rated:
    """Readings of a mixture to calibrate on: text as in training, single characters, text too small, and no text.

    Where there is no text, any reading but an empty one is wrong.
    """
    single = _other(source, kinds=("numbers",), length=2)
    small = _other(source, heights=(2.0, 4.5), contrast=(0.05, 0.3))
    found: Rated = ([], [])
    for crops, share in ((source, 0.6), (single, 0.15), (small, 0.15)):
        _add(found, read_crops(model, processor, crops, round(share * count)))
    pictures = list(no_text(np.random.default_rng(source.seed), count // 10))
    for n in range(0, len(pictures), 32):
        readings = read_batch(model, processor, processor.batch([[p] for p in pictures[n : n + 32]]), max_tokens=24)
        _add(found, (readings, [reading.text == "" for reading in readings]))
    return found


def _other(source: TextSource, **changes: Any) -> TextSource:
    """A held-out source with changes of its style."""
    style = replace(source.style, **changes)
    return TextSource(source.seed, True, style, source.image_size, source.faces, source.strings.words)


def _add(found: Rated, more: Rated) -> None:
    found[0].extend(more[0])
    found[1].extend(more[1])


def read_crops(
    model: PixWordModel, processor: Processor, source: TextSource, count: int, margins: int = 0
) -> Rated:  # fmt: skip
    """Readings of a source's first crops, and which are right; in ``margins``, 0 for the model's own number."""
    documents = [processor.document([crop.draw(), crop.text], closed=True) for crop in map(source.crop, range(count))]
    rated = rate_documents(model, processor, documents, ELEMENTS, margins)
    return [reading for reading, _ in rated], [reading.text == written for reading, written in rated]


def no_text(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Pictures without text, uint8 ``[h, w, 3]``: flat, a gradient, noise, an edge, or smooth blobs."""
    for n in range(count):
        height, width = int(rng.integers(6, 33)), int(rng.integers(6, 121))
        ink, paper = rng.uniform(0, 255, (2, 3))
        share = np.full((height, width), 0.0)
        if n % 5 == 1:
            share = np.linspace(0, 1, width)[None].repeat(height, axis=0)
        elif n % 5 == 2:
            share = rng.uniform(0, 1, (height, width))
        elif n % 5 == 3:
            share[:, : int(rng.integers(1, width))] = 1
        elif n % 5 == 4:
            coarse = rng.uniform(0, 1, (height // 4 + 2, width // 4 + 2))
            share = np.kron(coarse, np.ones((4, 4)))[:height, :width]
        yield (paper + share[..., None] * (ink - paper)).round().astype(np.uint8)


def score(model: PixWordModel, processor: Processor, config: RunConfig, count: int) -> dict[str, Any]:
    """Scores on held-out crops that the calibration has not seen."""
    source = _held_out(config, SCORE_SEED)
    _, right = read_crops(model, processor, source, count)
    heights = [source.crop(n).looks.height for n in range(count)]
    scores: dict[str, Any] = {"read": count, "exact_match": float(np.mean(right))}
    scores["exact_match_95"] = wilson(sum(right), count)
    for low, high in pairwise(BANDS):
        some = [good for good, height in zip(right, heights, strict=True) if low <= height < high]
        if some:
            scores[f"exact_match_{low}_to_{high}_px"] = float(np.mean(some))
    clean = read_crops(model, processor, _other(source, wear=0.0), count)
    scores["exact_match_without_wear"] = float(np.mean(clean[1]))
    single = read_crops(model, processor, source, count, margins=1)
    scores["exact_match_in_one_margin"] = float(np.mean(single[1]))
    mixed, mixed_right = read_mixed(model, processor, source, count)
    scores["expected_calibration_error"] = calibration_error([r.confidence for r in mixed], mixed_right)
    nothing = [reading.confidence for reading in mixed[-(count // 10) :]]
    scores["confident_without_text"] = float(np.mean([value > 0.5 for value in nothing]))
    return scores


def describe(
    model: PixWordModel, config: RunConfig, run: Path, scores: dict[str, Any], source: TextSource
) -> dict[str, Any]:
    """The record of a run: how far it came, its curve and settings, what it was trained on, and its scores."""
    curve, minutes = held_out_curve(run)
    found = newest_checkpoint(run / "checkpoints")
    step, group = (found.progress.step, found.progress.group) if found else (0, 0)
    faces = {face.family for face in source.faces if not face.held_out}
    return {
        "benchmark": "reader", "started_from_weights": config.adapt.init is not None,
        "parameters": num_parameters(model), "steps": step, "minutes": minutes,
        "crops": group * config.data.group_size, "scores": scores, "calibration": model.calibration.to_dict(),
        "families": {family: _licence(family) for family in sorted(faces)},
        "words": len(read_words(config.data.text_words)[0] if config.data.text_words else built_in_words()),
        "curve": curve, "settings": _without_paths(config), "machine": machine_facts(),
    }  # fmt: skip


def _without_paths(config: RunConfig) -> dict[str, Any]:
    values = config.to_flat()
    return {k: v for k, v in values.items() if k not in ("out", "fonts", "text_words", "tokenizer", "init", "cache")}


def _licence(family: str) -> str:
    return next((licence for name, licence in LICENCES.items() if family.startswith(name)), "see the font")


def card(record: dict[str, Any]) -> str:
    """The model card."""
    scores, settings = record["scores"], record["settings"]
    earlier = stage = ""
    if record["started_from_weights"]:
        earlier, stage = "\nIt started from the weights of earlier runs, which took more.", " in its last run"
    figures = "\n".join(f"| {name} | {_shown(value)} |" for name, value in scores.items())
    faces = "\n".join(f"| {family} | {licence} |" for family, licence in record["families"].items())
    return f"""---
library_name: mlx-pixword
license: mit
pipeline_tag: image-to-text
tags: [mlx, pixword, ocr]
---

# The reader of mlx-pixword

Reads small text: {settings["text_kinds"].replace(",", ", ")}, with ink {settings["text_heights"]} pixels high
and of up to {settings["text_length"]} characters, one line a crop. {record["parameters"] / 1e6:.2f} million
parameters, float16. It comes with the library and is used where no model is named.

```bash
python -m mlx_pixword.generate --image photo.jpg --box 120,340,80,9 --jsonl
```

## Data

{record["crops"]:,} crops{stage} of the library's built-in text (`--data text`), drawn while it trained; no photograph
and no scan. Words are from a list of {record["words"]:,}. Families of faces, and their licences:

| family | licence |
|---|---|
{faces}

Each crop is a function of a seed and its number. Whole families and a tenth of all strings were held out.

## Figures

On held-out strings in held-out faces, as `scripts/train_reader.py` prints them. The calibration error is of a mixture
that also has single characters, text too small to read, and no text at all; `confident_without_text` is the share of
pictures without text that get a confidence above a half.

| figure | value |
|---|---|
{figures}

## Limits

One line of upright Latin text a crop, of the characters `0-9 A-Z a-z . , : / - $` and, less well, other marks of ASCII;
what else there is is read as some of these. No pages, no handwriting, no drawing: it was trained to read alone. An
image whose longer side is above {settings["image_size"]} pixels is scaled down; a `--box` is read at its own size. What
is no text is read as something too, with a low confidence: use `--min-confidence`.

## Training

`python scripts/train_reader.py`: {record["steps"]:,} steps in {record["minutes"] / 60:.1f} hours
({record["machine"]["device"]}).{earlier}
The record, with the curve and all settings, is `benchmarks/results/reader.json` in the repository.
"""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{v:.4f}" for v in value)
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    run_command(main)
