"""Documents and jobs of a small shape, for the tests of the peer's square batches."""

import numpy as np
from shared.workload import Job

from mlx_pixword.config.train import TrainArgs
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document
from mlx_pixword.pixels.windows import to_windows

ARGS = ModelArgs(
    vocab_size=12, fold_factor=64, image_size=32, window_size=4, hidden_size=16, num_heads=2, num_kv_heads=1,
    num_layers=1, image_layers=2, intermediate_size=32, max_seq_len=128, dtype="float32",
)  # fmt: skip


def image_of(tokens: np.ndarray) -> ImageTokens:
    return ImageTokens(*to_windows(tokens, ARGS.window_size, ARGS.num_pix), *tokens.shape)


def document(rng: np.random.Generator, height: int, width: int, words: tuple[int, ...] = ()) -> Document:
    image = image_of(rng.integers(0, ARGS.num_pix, (height, width)))
    return make_document([[BOS, IMAGE], image, [END_IMAGE, *words]], closed=True)


def job_of(documents: list[Document], queries: int = 0, micro: int = 1) -> Job:
    return Job(ARGS, TrainArgs(pixel_queries=queries, accumulate=micro), [documents])
