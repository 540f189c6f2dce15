"""What a training benchmark trains on: cases of models and documents, as files that any side can read.

tiny-plates  preset tiny, the built-in plates with their text, batches as `pretrain` lays them out
tiny-noise   preset tiny, 32x32 images of random pixels without words: no window repeats, nothing is padded
wide-photos  hidden size 384, 16 px windows, fold 16, photos of at most 112 px: 49 windows when square
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.settings import assigned
from mlx_pixword.config.run import RunConfig, make_config
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.data.loader import Encoder, Loader
from mlx_pixword.data.open import check_vocabulary, choose_tokenizer
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.data.skips import SkipLog
from mlx_pixword.data.sources import open_source
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document
from mlx_pixword.pixels.windows import from_windows, to_windows

CASES = ("tiny-plates", "tiny-noise", "wide-photos")
OBJECTIVES = ("boundary", "dense")
DISTINCT = 4  # optimiser batches of a case; a measurement goes through them again and again
NOISE_SIDE = 32  # pixels

# Both sides: AdamW at a constant rate, random weights everywhere (zeroed projections would leave gradients at zero).
_TRAIN: dict[str, Any] = {
    "optimizer": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01, "warmup": 0, "final_fraction": 1.0,
    "steps": 1_000_000, "zero_init": False, "pixel_queries": 3, "accumulate": 2,
}  # fmt: skip
_WIDE: dict[str, Any] = {
    "preset": "upw-120m", "image_size": 112, "window_size": 16, "fold_factor": 16, "hidden_size": 384, "num_heads": 6,
    "num_kv_heads": 3, "num_layers": 4, "image_layers": 3, "intermediate_size": 1152, "max_seq_len": 64,
    "grad_checkpoint": False, "window_chunk": 0, "batch_tokens": 104, "pack": False,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A model, its training, and the documents of each optimiser step."""

    model: ModelArgs
    train: TrainArgs
    steps: list[list[Document]]


def make_job(case: str, photos: Path | None = None, images: int = 0) -> Job:
    """A case with ``DISTINCT`` optimiser batches, of so many images each or, if 0, of as many as `pretrain` takes."""
    preset = _WIDE if case == "wide-photos" else {"preset": "tiny"}
    config = make_config({**preset, **_TRAIN, "dtype": "float32"})
    if case == "tiny-noise":
        config = replace(config, model=replace(config.model, vocab_size=6))
        steps = noise_steps(config, images)
    else:
        config, loader = _loader(config, photos)
        steps = loader_steps(loader, config.train.accumulate, images)
    if any(len(document.images) != 1 for step in steps for document in step):
        raise PixWordError("--data must be a folder of images without texts")
    return Job(config.model, config.train, steps)


def _loader(config: RunConfig, photos: Path | None) -> tuple[RunConfig, Loader]:
    """The loader that `pretrain` would use: of a folder of photos, or of the built-in plates."""
    data = config.data
    source: Any = open_source(photos) if photos else PlateSource()
    tokenizer = None if photos else choose_tokenizer(data, [source], config.model.vocab_size)
    model = replace(config.model, vocab_size=check_vocabulary(tokenizer, config.model.vocab_size))
    loader = Loader(
        [source], Encoder(model, tokenizer, SkipLog()), batch_tokens=data.batch_tokens, pack=data.pack,
        threads=data.threads, group_size=data.group_size,
    )  # fmt: skip
    return replace(config, model=model), loader


def loader_steps(loader: Loader, accumulate: int, images: int) -> list[list[Document]]:
    """Documents of the first optimiser batches, ``accumulate`` of the loader's or so many documents."""
    batches = ([document for row in rows for document in row] for _, _, rows in loader.batches())
    if not images:
        return [[d for batch in islice(batches, accumulate) for d in batch] for _ in range(DISTINCT)]
    documents = (document for batch in batches for document in batch)
    return [list(islice(documents, images)) for _ in range(DISTINCT)]


def noise_steps(config: RunConfig, images: int) -> list[list[Document]]:
    """Documents with one image of random pixels each."""
    length = (NOISE_SIDE // config.model.window_size) ** 2 + 3
    count = images or config.train.accumulate * (config.data.batch_tokens // length)
    rng = np.random.default_rng(0)
    return [[square_document(rng, config.model, NOISE_SIDE) for _ in range(count)] for _ in range(DISTINCT)]


def square_document(
    rng: np.random.Generator, args: ModelArgs, side: int, words: Sequence[int] = (), levels: int = 0
) -> Document:
    """``<s>``, a square of random pix tokens (of the first ``levels``, if any) and words."""
    tokens = rng.integers(0, levels or args.num_pix, (side, side))
    image = ImageTokens(*to_windows(tokens, args.window_size, args.num_pix), side, side)
    return make_document([[BOS, IMAGE], image, [END_IMAGE, *words]], closed=True)


def check_job(job: Job) -> Job:
    """Square images of whole windows, which both programs treat alike; some windows are the same, some texts longer."""
    args, rng = job.model, np.random.default_rng(1)
    side = 2 * args.window_size
    texts = [[5] * (n % 3) if args.vocab_size > 6 else [] for n in range(4)]
    documents = [square_document(rng, args, side, text) for text in texts]
    plain = square_document(rng, args, side, texts[0], levels=1)
    return replace(job, steps=[[*documents, plain, plain]])


def with_objective(job: Job, objective: str) -> Job:
    """The job without query pixels, or with those of its preset."""
    queries = job.train.pixel_queries if objective == "dense" else 0
    return replace(job, train=replace(job.train, pixel_queries=queries))


def overridden(preset: str, changes: Sequence[str], **fixed: Any) -> RunConfig:
    """A preset's configuration with changes such as ``hidden_size=32``, and fixed settings over both."""
    return make_config({"preset": preset, **assigned(changes, "--set"), **fixed}, where="--set")


def initial_weights(args: ModelArgs) -> dict[str, np.ndarray]:
    """Random weights by name, the same for all sides."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlx_pixword.model.network import PixWordModel

    mx.random.seed(0)
    model = PixWordModel(args)
    return {name: np.array(weight) for name, weight in dict(tree_flatten(model.parameters())).items()}


# --------------------------------------------------------------------------------------------------- files


def write_job(job: Job, folder: Path, weights: dict[str, Any], **more: Any) -> Path:
    """Keep a job, weights to begin with and further settings in a folder, for a worker to read."""
    folder.mkdir(parents=True)
    train = {name: value for name, value in asdict(job.train).items() if name not in ("out", "report_to")}
    settings = {"model": job.model.to_dict(), "train": train, "steps": [len(step) for step in job.steps], **more}
    (folder / "job.json").write_text(json.dumps(settings), encoding="utf-8")
    np.savez(folder / "weights.npz", **weights)
    arrays: dict[str, Any] = {}
    for n, document in enumerate(document for step in job.steps for document in step):
        (image,) = document.images
        arrays[f"words{n}"] = document.elements
        arrays[f"image{n}"] = from_windows(image.windows, image.height, image.width, job.model.window_size)
    np.savez(folder / "documents.npz", **arrays)
    return folder


def read_job(folder: Path) -> tuple[Job, dict[str, np.ndarray], dict[str, Any]]:
    """A job, its weights, and all its settings."""
    settings = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    model = ModelArgs.from_dict(settings["model"])
    with np.load(folder / "documents.npz") as arrays:
        images = [_image(arrays[f"image{n}"], model) for n in range(sum(settings["steps"]))]
        documents = iter([Document(arrays[f"words{n}"], (image,), closed=True) for n, image in enumerate(images)])
    with np.load(folder / "weights.npz") as arrays:
        weights = dict(arrays)
    steps = [list(islice(documents, count)) for count in settings["steps"]]
    return Job(model, TrainArgs(**settings["train"]), steps), weights, settings


def _image(tokens: np.ndarray, model: ModelArgs) -> ImageTokens:
    return ImageTokens(*to_windows(tokens, model.window_size, model.num_pix), *tokens.shape)
