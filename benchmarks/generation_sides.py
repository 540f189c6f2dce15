"""The programs that generation.py compares, each as a side that gives logits and draws pixels of one image.

D  hidden size    N  windows    P  pixels a window    K  pix tokens    p  a place: pixels that are there already
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from workload import Job

from mlx_pixword.batch import BOS, IMAGE

PREFIX = (BOS, IMAGE)


class Side(ABC):
    """A program with a model and an image to draw behind."""

    def __init__(self, job: Job, weights: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
        self.args, (image,) = job.model, job.steps[0][0].images
        self.windows, self.size = image.windows, (image.height, image.width)  # [N, P]
        self.prepare(weights, settings["threads"])

    @abstractmethod
    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        """Build the model."""

    @abstractmethod
    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        """Logits of the next pixel at each place, float ``[K]``."""

    @abstractmethod
    def draw(self, places: Sequence[int]) -> int:
        """Draw at each place, or a whole image; returns the number of pixels drawn."""


class Ours(Side):
    """The library's drawing."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        from mlx_pixword.processor import Processor

        self.model, self.processor = mlx_model(self.args, weights), Processor(self.args)

    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        """Puts the image pixel by pixel with the pen that `draw` uses."""
        import mlx.core as mx

        from mlx_pixword.drawing import _Pen, prompt_document

        pen, found = _Pen(self.model, prompt_document(self.processor, ()), 1), {}
        for p, token in enumerate(self.windows.ravel().tolist()):
            if p in places:
                found[p] = np.array(pen.logits[0])
            offset = p % self.windows.shape[1]
            pen.put(mx.array([token]), offset, closes=offset + 1 == self.windows.shape[1])
            mx.eval(pen.logits)
        return [found[p] for p in places]

    def draw(self, places: Sequence[int]) -> int:
        from mlx_pixword.drawing import draw

        return deque(draw(self.model, self.processor, (), self.size), maxlen=1).pop().pixels


class Baseline(Side):
    """A program without caches: it keeps the states of finished windows alone."""

    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        return [np.array(self.next_logits(p)) for p in places]

    def draw(self, places: Sequence[int]) -> int:
        for p in places:
            self.choose(self.next_logits(p))
        return len(places)

    def split(self, p: int) -> tuple[int, np.ndarray]:
        """Finished windows at a place, and the pixels of the open one ``[1, p mod P]``."""
        finished, inside = divmod(p, self.windows.shape[1])
        return finished, self.windows[finished : finished + 1, :inside]

    @abstractmethod
    def next_logits(self, p: int) -> Any:
        """Logits of the next pixel, ``[K]``."""

    @abstractmethod
    def choose(self, logits: Any) -> Any:
        """Sample a token at temperature 1."""


class MLXBaseline(Baseline):
    """The library's blocks without caches."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        import mlx.core as mx

        self.model = mlx_model(self.args, weights)
        self.head = self.model.head()[self.args.vocab_size :]
        self.words = self.model.embed_words()[mx.array(PREFIX)]
        self.states = self.model.image_block(mx.array(self.windows), self._last(len(self.windows)))[:, 0]  # [N, D]
        mx.eval(self.states, self.head, self.words)

    def _last(self, count: int, length: int = 0) -> Any:
        import mlx.core as mx

        return mx.full((count, 1), (length or self.windows.shape[1]) - 1, dtype=mx.int32)

    def next_logits(self, p: int) -> Any:
        import mlx.core as mx

        finished, inside = self.split(p)
        x = [self.words, self.states[:finished]]
        if inside.size:
            x.append(self.model.image_block(mx.array(inside), self._last(1, inside.shape[1]))[:, 0])
        sequence = mx.concatenate(x)[None]  # [1, 2 + finished + 1, D]
        states = self.model.language(sequence, mx.arange(sequence.shape[1])[None], "causal")
        return states[0, -1] @ self.head.T

    def choose(self, logits: Any) -> Any:
        import mlx.core as mx

        return mx.random.categorical(logits).item()


class TorchBaseline(Baseline):
    """The peer's blocks without caches."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        import torch
        from peer import Peer, load_weights

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.peer = Peer(self.args)
        load_weights(self.peer, weights)
        self.head = self.peer.head()[self.args.vocab_size :].contiguous()
        self.words = self.peer.embed_words()[torch.tensor(PREFIX)]
        self.states = self._window_states(self.windows)  # [N, D]

    def _window_states(self, windows: np.ndarray) -> Any:
        import torch

        return self.peer.image_block(torch.from_numpy(windows.astype(np.int64))[None])[0, :, -1]

    def next_logits(self, p: int) -> Any:
        import torch

        finished, inside = self.split(p)
        x = [self.words, self.states[:finished], *([self._window_states(inside)] if inside.size else [])]
        sequence = torch.cat(x)[None]  # [1, 2 + finished + 1, D]
        states = self.peer.language(sequence, torch.arange(sequence.shape[1])[None])
        return self.head @ states[0, -1]

    def choose(self, logits: Any) -> Any:
        import torch

        return torch.multinomial(torch.softmax(logits, -1), 1).item()


def mlx_model(args: Any, weights: dict[str, np.ndarray]) -> Any:
    """The library's model with weights by name."""
    import mlx.core as mx

    from mlx_pixword.model import PixWordModel

    model = PixWordModel(args)
    model.load_weights([(name, mx.array(weight)) for name, weight in weights.items()])
    mx.eval(model.parameters())
    return model


SIDES: dict[str, type[Side]] = {"ours": Ours, "mlx": MLXBaseline, "torch": TorchBaseline}
