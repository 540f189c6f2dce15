"""Pictures that count how often they are decoded, and a small shape to encode them for."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data.base import Picture
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs

TOKENIZER = train_tokenizer(["0123456789 caption"], 300)
SIZES = {
    "hidden_size": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "num_layers": 1,
    "image_layers": 1,
    "intermediate_size": 8,
}
GEOMETRY = {"image_size": 16, "window_size": 4, "fold_factor": 16, "max_seq_len": 40}


def shape(**changes: Any) -> ModelArgs:
    return ModelArgs(**SIZES | GEOMETRY | {"vocab_size": TOKENIZER.vocab_size} | changes)


class Shot:
    """A picture that counts how often it is decoded, takes a moment for it, and may be bad."""

    def __init__(self, number: int, *, bad: str = "", key: str | None = None, size: tuple[int, int] = (8, 8)) -> None:
        self.name, self.number, self.bad, self.cache_key, self.size = f"{number}.png", number, bad, key, size
        self.reads = 0

    def rgb(self, image_size: int) -> np.ndarray:
        self.reads += 1
        time.sleep((self.number * 7 % 5) / 5000)  # if the order of threads mattered, it would show
        if self.bad:
            raise BadImage(self.bad)
        return np.random.default_rng(self.number).integers(0, 256, (*self.size, 3), dtype=np.uint8)


class Shots:
    """A source of pictures with captions, which are their numbers."""

    endless, captioned, name = False, True, "shots"

    def __init__(self, numbers: Sequence[int], bad: Sequence[int] = ()) -> None:
        self.documents: list[list[str | Picture]] = [[Shot(n, bad="torn" if n in bad else ""), str(n)] for n in numbers]
        self.unusable = list[tuple[str, str]]()

    def __len__(self) -> int:
        return len(self.documents)

    def parts(self, index: int) -> list[str | Picture]:
        return self.documents[index]

    def texts(self) -> Iterator[str]:
        return (str(parts[1]) for parts in self.documents)
