"""How soon a model reads small numbers: exact match on held-out strings and faces, against the time of one core.

python benchmarks/small_text.py --variant ours --minutes 18 --seed 0 --fonts /usr/share/fonts
python benchmarks/small_text.py --variant today --minutes 180 --fonts /usr/share/fonts
python benchmarks/small_text.py --table

Numbers of 1 to 8 characters (numbers, prices, dates, times), ink 4.5 to 13 px high, any colours. Over the first 70% of
the time they go from one plain face and two characters to everything. Time is the processor time of the process, which
computes with one thread: drawing the crops is counted, reading the held-out ones is not, and other work on the machine
changes it where cores share their units. A variant is the settings below over `BASE`; `today` is the preset `tiny` as
it was before the options. Runs go on after a stop: their state lies in --scratch.
"""

import mlx_pixword  # noqa: F401  # isort: skip  (before mlx, so that Linux finds OpenBLAS)

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from evidence.arms import Arm
from evidence.learning import make_model
from mlx.utils import tree_flatten, tree_unflatten
from shared.record import keep, with_machine

from mlx_pixword.common.blas import keep_memory, limit_threads
from mlx_pixword.common.cli import notice, parse, run_command
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import assigned, setting
from mlx_pixword.config.run import SMALL_TEXT, RunConfig, make_config
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.data.base import Picture, digest_of
from mlx_pixword.data.fonts import find_faces
from mlx_pixword.data.loader import Encoder
from mlx_pixword.data.pack import plan_batches
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.text_images import TextSource, TextStyle
from mlx_pixword.evaluation.readings import read_documents
from mlx_pixword.evaluation.scores import wilson
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import Document
from mlx_pixword.model.losses import loss_sums
from mlx_pixword.model.network import PixWordModel, num_parameters
from mlx_pixword.training.optimizer import make_optimizer
from mlx_pixword.training.setup import build_model
from mlx_pixword.training.step import make_step

RESULTS = Path(__file__).parent / "results"
KINDS = ("numbers", "prices", "dates", "times")
STYLE = TextStyle(kinds=KINDS, heights=(4.5, 13.0), clutter=0.0, distort=0.5, length=8, slack=0.5)
BANDS = (4.5, 6.0, 8.0, 10.0, 13.0)  # ink heights between which accuracy is reported
GROWING = 0.7  # of the time, over which the variety grows
TODAY: dict[str, Any] = {  # the preset `tiny` of version 0.1.0
    "preset": "tiny", "vocab_size": 512, "fold_factor": 32, "image_size": 96, "window_size": 4, "hidden_size": 64,
    "num_heads": 4, "num_kv_heads": 2, "num_layers": 3, "image_layers": 2, "intermediate_size": 128,
    "max_seq_len": 1024, "qk_norm": True, "factored_colors": True, "optimizer": "muon", "learning_rate": 0.01,
    "zero_init": True, "weight_decay": 0.0, "word_weight": 50.0, "pixel_queries": 3, "batch_tokens": 512,
    "pack": False, "accumulate": 2, "streams": 1, "compile": "off", "dtype": "float32", "threads": 1,
}  # fmt: skip
BASE: dict[str, Any] = {
    **TODAY, **SMALL_TEXT, "data": [], "num_layers": 3, "pixel_queries": 0, "batch_tokens": 500, "accumulate": 1,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "today": TODAY,
    "ours": BASE,
    # ours with one thing left out, or as it might be
    "sequence_positions": {**BASE, "positions": "sequence"},
    "last_pixel_summary": {**BASE, "summary": "last"},
    "equal_colors": {**BASE, "sine_color_scale": 0.5},
    "wide_image_block": {
        **BASE, "image_hidden_size": 128, "image_num_heads": 4, "image_num_kv_heads": 4, "image_intermediate_size": 256,
    },
    "full_image_step": {**BASE, "image_lr_scale": 1.0},
    "no_image_layers": {**BASE, "image_layers": 0},
    "fold_16": {**BASE, "fold_factor": 16},
    "windows_2": {**BASE, "window_size": 2, "max_seq_len": 4096},
    "windows_8": {**BASE, "window_size": 8},
    "papers_theta": {**BASE, "rope_theta": 500_000.0},
    # windows of 4 px that see the row above them and the column beside them too, by `with_halo`
    "halo": {**BASE, "window_size": 5, "image_size": 120},
    # the same language block behind a linear map of each window's 4x4 raw pixels, and no pix tokens at all
    "linear_patches": {**BASE, "fold_factor": 1},
}  # fmt: skip


@dataclass(frozen=True)
class SmallTextArgs:
    """Train variants on small numbers, each for a time of one core, and read held-out ones."""

    variant: list[str] = setting([], "what to train; may be repeated", metavar="NAME")
    set: list[str] = setting(
        [], "a setting instead of the variant's, NAME=VALUE; may be repeated", metavar="NAME=VALUE"
    )
    curriculum: bool = setting(True, "let the variety grow; or all faces, heights and colours from the start")
    minutes: float = setting(18.0, "minutes of one core")
    seed: int = setting(0, "seed of the weights and of the crops")
    fonts: list[str] = setting([], "folder with more faces; may be repeated", metavar="DIR")
    crops: int = setting(2000, "held-out crops that are read at the end")
    readings: int = setting(12, "times that some of them are read on the way")
    until: float = setting(1.0, "end as soon as this share of the crops read on the way is right")
    name: str = setting("", "what the result is called (default: the variant)", metavar="NAME")
    out: Path = setting(RESULTS, "folder for the results", metavar="DIR")
    scratch: Path = setting(Path("runs/small_text"), "folder for the states of runs", metavar="DIR")
    table: bool = setting(False, "print the results that are kept, and train nothing")


def main(argv: Sequence[str] | None = None) -> None:
    """Train and read, or print the table."""
    args = parse(SmallTextArgs, "benchmarks/small_text.py", argv)
    if args.table:
        print_table(args.out)
        return
    for name, values, config in chosen(args, VARIANTS):
        result = Training(args, args.name or name, config, halo=name == "halo").run()
        keep(with_machine({"benchmark": "small_text", "variant": name, "changes": values, **result}), args.out)


def chosen(
    args: SmallTextArgs, variants: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, Any], RunConfig]]:
    """Name, changes and configuration of each variant asked for; from here on the process computes with one thread.

    Raises:
        PixWordError: there is no such variant, before any is trained, or a setting does not fit.
    """
    for name in args.variant:
        if name not in variants:
            raise PixWordError(f"--variant must be one of {', '.join(variants)}, got {name!r}")
    keep_memory()
    limit_threads(1)
    for name in args.variant:
        values = assigned(args.set, "--set")
        yield name, values, make_config({**variants[name], **values, "seed": args.seed}, where="--set")


def constant(peak: float, _: TrainArgs) -> float:
    """Learning rates without a schedule: this program sets them by the time that is used up."""
    return peak


def with_halo(rgb: np.ndarray, side: int) -> np.ndarray:
    """Pixels ``[h, w, 3]`` with the last row and column before each window of ``side`` pixels repeated in front of it.

    Windows of ``side + 1`` pixels of the result are the same grid of windows. With one layer inside windows, of which
    the last pixel's state is read, they are windows of ``side`` pixels that see the adjacent pixels of earlier ones as
    keys and values of their embeddings; at the image's edge they see their own first pixels twice.
    """
    down, across = (np.arange(length + -(-length // side)) for length in rgb.shape[:2])
    down, across = (np.maximum(0, n - n // (side + 1) - 1) for n in (down, across))
    return rgb[down][:, across]


@dataclass(frozen=True)
class Haloed:
    """A `Picture` whose windows have a halo, see `with_halo`."""

    crop: Picture
    side: int
    cache_key: None = None

    @property
    def name(self) -> str:
        """The crop's."""
        return self.crop.name

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``."""
        return with_halo(self.crop.rgb(image_size // (self.side + 1) * self.side), self.side)


def make_patches(config: RunConfig) -> PixWordModel:
    """The benchmark's own: all 16 million pix tokens of fold factor 1 would need rows of a table otherwise."""
    arm = Arm("linear_patches", "linear patches", "linear", config.model.window_size)
    return make_model(arm, config.model, config.train.seed)


class Training:
    """One run: a model, its crops, and the clock of this process."""

    def __init__(self, args: SmallTextArgs, name: str, config: RunConfig, *, halo: bool = False) -> None:
        self.args, self.name = args, name
        self.faces, _ = find_faces(args.fonts)
        self.halo = config.model.window_size - 1 if halo else 0  # side of the windows that see beyond themselves
        self.image_size = config.model.image_size // config.model.window_size * (self.halo or config.model.window_size)
        self.held_out = self._source(1, True, 1.0)
        tokenizer = train_tokenizer(list(self.held_out.texts()), 300)
        self.config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
        raw = config.model.fold_factor == 1
        self.model = make_patches(self.config) if raw else build_model(self.config.model, self.config.train)
        self.optimizer = make_optimizer(self.config.train, constant)
        self._peaks = [float(group.learning_rate.item()) for group in self.optimizer.optimizers]  # type: ignore[attr-defined]
        self.optimizer.init(self.model.trainable_parameters())
        self.encoder = Encoder(self.config.model, tokenizer, SkipLog())
        self.processor = Processor(self.config.model, tokenizer)
        self.state: dict[str, Any] = {"seconds": 0.0, "crops": 0, "step": 0, "index": 0, "curve": [], "losses": []}
        about = [args.minutes, args.curriculum, self.config.to_flat(), self._source(args.seed, False, 1.0).digest()]
        self.folder = args.scratch / f"{name}-{args.seed}-{digest_of(about)[:12]}"  # another run has another folder
        self._restore()

    def run(self) -> dict[str, Any]:
        """Train until the time is up; the result as plain values."""
        state, budget = self.state, 60 * self.args.minutes
        step, batches, test = make_step(self.model, self.optimizer, self.config.train), self._batches(), self._test(500)
        while state["seconds"] < budget and not self._reached():
            before = time.process_time()
            self._set_rates(state["seconds"] / budget)
            micro = [next(batches) for _ in range(self.config.train.accumulate)]
            sums, _ = step(micro)
            mx.eval(self.model.state, self.optimizer.state)
            state["losses"] = [*state["losses"][-199:], float(np.array(sums.word_nats / sums.words))]
            state["step"] += 1
            state["crops"] += sum(len(row) for batch in micro for row in batch.documents)
            state["seconds"] += time.process_time() - before
            if state["seconds"] >= (len(state["curve"]) + 1) * budget / self.args.readings:
                self._look(test)
        return self._result()

    def _reached(self) -> bool:
        return bool(self.state["curve"]) and self.state["curve"][-1].get("exact_match", 0) >= self.args.until

    def _look(self, test: Sequence[Document]) -> None:
        """Read some held-out crops, note a point of the curve, and keep the state."""
        exact, loss, nats = np.mean(self._read(test)), np.mean(self.state["losses"]), self._nats(test)
        minutes, crops = self.state["seconds"] / 60, self.state["crops"]
        self.state["curve"].append(
            {"minutes": minutes, "crops": crops, "exact_match": float(exact), "word_loss": float(loss), "nats": nats}
        )
        where = f"{self.name} {self.args.seed}: {minutes:.1f} min, {crops:,} crops"
        print(f"{where}, loss {loss:.3f}, nats {nats:.3f}, exact match {exact:.3f}", flush=True)
        self._save()

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = dict(tree_flatten({"model": self.model.parameters(), "optimizer": self.optimizer.state}))
        mx.save_safetensors(str(self.folder / "draft.safetensors"), arrays, {"state": json.dumps(self.state)})
        (self.folder / "draft.safetensors").replace(self.folder / "state.safetensors")

    def _restore(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, about = loaded
        tree = tree_unflatten(list(arrays.items()))
        self.model.update(tree["model"])
        self.optimizer.state = tree["optimizer"]
        self.state = json.loads(about["state"])
        notice(f"{self.name}: going on after {self.state['seconds'] / 60:.1f} min")

    def _set_rates(self, share: float) -> None:
        """Warm-up over 50 steps, then a cosine of the time that is used up."""
        scale = min(1.0, (self.state["step"] + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * share)))
        groups = self.optimizer.optimizers  # type: ignore[attr-defined]
        for group, peak in zip(groups, self._peaks, strict=True):
            group.learning_rate = peak * scale

    def _batches(self) -> Iterator[Batch]:
        """Endless batches; their variety follows the time that is used up."""
        config, args, state = self.config, self.model.args, self.state
        while True:
            share = min(1.0, state["seconds"] / (60 * self.args.minutes) / GROWING) if self.args.curriculum else 1.0
            source = self._source(self.args.seed, False, share)
            documents = [self._encode(source, state["index"] + n) for n in range(config.data.group_size)]
            state["index"] += config.data.group_size
            seed = (self.args.seed, state["index"])
            rows = plan_batches(
                documents, config.data.batch_tokens, args.max_seq_len, config.data.pack, np.random.default_rng(seed)
            )
            for number, some in enumerate(rows):
                yield collate(
                    some, args, exact=True, boundary=config.train.boundary_weight > 0,
                    pixel_queries=config.train.pixel_queries, seed=(*seed, number),
                )  # fmt: skip

    def _source(self, seed: int, held_out: bool, share: float) -> Any:
        """What is learnt or read, with so much of its variety."""
        return TextSource(seed, held_out, replace(STYLE, reach=share), self.image_size, self.faces)

    def _encode(self, source: Any, index: int) -> Document:
        parts = source.parts(index)
        if self.halo:
            parts = [part if isinstance(part, str) else Haloed(part, self.halo) for part in parts]
        (document,) = self.encoder(parts, True)
        return document

    def _test(self, count: int) -> list[Document]:
        return [self._encode(self.held_out, index) for index in range(count)]

    def _nats(self, documents: Sequence[Document]) -> float:
        """Nats a word of held-out documents, each word given those before it: it falls before anything is read."""
        total, words = 0.0, 0
        for start in range(0, len(documents), 50):
            batch = collate([[document] for document in documents[start : start + 50]], self.model.args, boundary=False)
            sums = loss_sums(*self.model.scored(batch), batch.counted, self.model.args.vocab_size)
            total, words = total + float(np.array(sums.word_nats)), words + int(np.array(sums.words))
        return total / words

    def _read(self, documents: Sequence[Document]) -> list[bool]:
        return [read == written for read, written in read_documents(self.model, self.processor, documents, 4096)]

    def _result(self) -> dict[str, Any]:
        right = self._read(self._test(self.args.crops))
        bands = dict[float, list[bool]]()
        for index, good in enumerate(right):
            height = self.held_out.crop(index).looks.height
            bands.setdefault(max(low for low in BANDS[:-1] if height >= low), []).append(good)
        return {
            "name": self.name, "seed": self.args.seed, "minutes": self.args.minutes,
            "trained_minutes": self.state["seconds"] / 60, "steps": self.state["step"], "crops": self.state["crops"],
            "parameters": num_parameters(self.model),
            "word_loss": float(np.mean(self.state["losses"])), "read": len(right),
            "exact_match": float(np.mean(right)), "exact_match_95": wilson(sum(right), len(right)),
            "by_height": {f"{low:g}": float(np.mean(found)) for low, found in sorted(bands.items())},
            "curve": self.state["curve"], "curriculum": self.args.curriculum, "faces": len(self.faces),
            "families": sorted({face.family for face in self.faces}), "held_out": self.held_out.digest(),
            "settings": self.config.to_flat(),
        }  # fmt: skip


def print_table(folder: Path) -> None:
    """The results that are kept, a line each; when half of the crops read on the way were right for the first time."""
    for path in sorted(folder.glob("small_text-*.json")):
        r = json.loads(path.read_text(encoding="utf-8"))
        bands = "  ".join(f"{low}: {value:.2f}" for low, value in r["by_height"].items())
        half = next((f"{point['minutes']:.1f}" for point in r["curve"] if point["exact_match"] >= 0.5), "never")
        print(f"{r['name']:<24} seed {r['seed']}  {r['minutes']:>5.1f} min  {r['crops']:>8,} crops  "
              f"exact match {r['exact_match']:.3f}  half at {half:>5}  {bands}")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
