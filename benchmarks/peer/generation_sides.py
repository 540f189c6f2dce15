"""The programs that generation.py compares, each as a side that gives logits and draws pixels of several images.

B  rows: images at once    D  hidden size    N  windows of an image    P  pixels a window    K  pix tokens

A place ``p`` is the number of pixels of each image that are there already
"""

import re
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared.workload import Job

from mlx_pixword.model.document import BOS, IMAGE

PREFIX = (BOS, IMAGE)


class Side(ABC):
    """A program with a model and images to draw behind, all of one size."""

    def __init__(self, job: Job, weights: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
        images = [image for document in job.steps[0] for image in document.images]
        self.args, self.size = job.model, (images[0].height, images[0].width)
        self.windows = np.stack([image.windows for image in images])  # [B, N, P]
        self.prepare(weights, settings["threads"])

    @abstractmethod
    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        """Build the model."""

    @abstractmethod
    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        """Logits of every image's next pixel at each place, float ``[B, K]``."""

    @abstractmethod
    def draw(self, places: Sequence[int]) -> int:
        """Draw at each place, or whole images; returns the number of pixels drawn, of all images."""

    def operations(self, place: int) -> int | None:
        """How many operations of MLX a pixel of all images takes at a place; None without MLX."""
        return None


class Ours(Side):
    """The library's drawing."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        from mlx_pixword.inputs.processor import Processor

        self.model, self.processor = mlx_model(self.args, weights), Processor(self.args)

    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        """Puts pixel after pixel with the decoder that `draw` uses."""
        from mlx_pixword.inference.growing_images import choose_token_layers

        found = self._all_logits(max(places), choose_token_layers(self.args))
        return [np.array(found[p]) for p in places]

    def _all_logits(self, last: int, rows: Any) -> list[Any]:
        """Logits at each place so far; the last are not evaluated."""
        import mlx.core as mx

        from mlx_pixword.inference.draw import prompt_documents
        from mlx_pixword.inference.growing_images import GrowingImages

        count, windows, length = self.windows.shape
        decoder = GrowingImages(self.model, prompt_documents(self.processor, ()) * count, [length] * windows, rows)
        found, pixels = [decoder.logits], self.windows.reshape(count, -1)
        for p in range(last):
            mx.eval(decoder.logits, tokens := rows.keep(mx.array(pixels[:, p])))
            decoder.put(tokens)
            found.append(decoder.logits)
        return found

    def draw(self, places: Sequence[int]) -> int:
        from mlx_pixword.inference.draw import draw

        drawing = deque(draw(self.model, self.processor, (), self.size, len(self.windows)), maxlen=1).pop()
        return drawing.pixels * len(self.windows)

    def operations(self, place: int) -> int:
        """Of MLX's rows, which a GPU computes with."""
        from mlx_pixword.inference.token_layers import TokenLayers

        return count_operations(self._all_logits(place, TokenLayers(self.args))[-1])


class Baseline(Side):
    """A program without caches: it keeps the states of finished windows alone."""

    def logits(self, places: Sequence[int]) -> list[np.ndarray]:
        return [np.array(self.next_logits(p)) for p in places]

    def draw(self, places: Sequence[int]) -> int:
        for p in places:
            self.choose(self.next_logits(p))
        return len(places) * len(self.windows)

    def split(self, p: int) -> tuple[int, np.ndarray]:
        """Finished windows at a place, and the pixels of the open ones ``[B, p mod P]``."""
        finished, inside = divmod(p, self.windows.shape[2])
        return finished, self.windows[:, finished, :inside] if inside else self.windows[:, 0, :0]

    @abstractmethod
    def next_logits(self, p: int) -> Any:
        """Logits of the next pixels, ``[B, K]``."""

    @abstractmethod
    def choose(self, logits: Any) -> Any:
        """Sample tokens at temperature 1."""


class MLXBaseline(Baseline):
    """The library's blocks without caches."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        import mlx.core as mx

        self.model = mlx_model(self.args, weights)
        self.head = self.model.head()[self.args.vocab_size :]
        words = self.model.embed_words()[mx.array(PREFIX)]
        self.words = mx.contiguous(mx.broadcast_to(words, (len(self.windows), *words.shape)))  # [B, 2, D]
        self.states = mx.stack([self._window_states(windows) for windows in self.windows])  # [B, N, D]
        mx.eval(self.states, self.head, self.words)

    def _window_states(self, windows: np.ndarray) -> Any:
        """``[n, length]`` to ``[n, D]``."""
        import mlx.core as mx

        last = mx.full((len(windows), 1), windows.shape[1] - 1, dtype=mx.int32)
        return self.model.image_block(mx.array(windows), last)[:, 0]

    def next_logits(self, p: int) -> Any:
        import mlx.core as mx

        finished, inside = self.split(p)
        x = [self.words, self.states[:, :finished]]
        if inside.size:
            x.append(self._window_states(inside)[:, None])
        sequence = mx.concatenate(x, axis=1)  # [B, 2 + finished + 1, D]
        states = self.model.language(sequence, mx.arange(sequence.shape[1])[None], "causal")
        return states[:, -1] @ self.head.T

    def choose(self, logits: Any) -> Any:
        import mlx.core as mx

        return mx.random.categorical(logits).tolist()

    def operations(self, place: int) -> int:
        return count_operations(self.next_logits(place))


class TorchBaseline(Baseline):
    """The peer's blocks without caches."""

    def prepare(self, weights: dict[str, np.ndarray], threads: int) -> None:
        import torch

        from peer.torch_model import Peer, load_weights

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.peer = Peer(self.args)
        load_weights(self.peer, weights)
        self.head = self.peer.head()[self.args.vocab_size :].contiguous()
        self.words = self.peer.embed_words()[torch.tensor(PREFIX)].expand(len(self.windows), -1, -1)  # [B, 2, D]
        self.states = torch.cat([self._window_states(windows[None]) for windows in self.windows])  # [B, N, D]

    def _window_states(self, windows: np.ndarray) -> Any:
        """``[B, N, length]`` to ``[B, N, D]``."""
        import torch

        return self.peer.image_block(torch.from_numpy(windows.astype(np.int64)))[:, :, -1]

    def next_logits(self, p: int) -> Any:
        import torch

        finished, inside = self.split(p)
        x = [self.words, self.states[:, :finished], *([self._window_states(inside[:, None])] if inside.size else [])]
        sequence = torch.cat(x, dim=1)  # [B, 2 + finished + 1, D]
        positions = torch.arange(sequence.shape[1]).expand(len(sequence), -1)
        return self.peer.language(sequence, positions)[:, -1] @ self.head.T

    def choose(self, logits: Any) -> Any:
        import torch

        return torch.multinomial(torch.softmax(logits, -1), 1).tolist()


def count_operations(array: Any) -> int:
    """Operations in the graph of an array, as a CPU computes them; what is evaluated already counts nothing."""
    import mlx.core as mx

    with tempfile.TemporaryDirectory() as folder:
        mx.export_to_dot(str(Path(folder) / "graph.dot"), array)
        return len(re.findall("label =", (Path(folder) / "graph.dot").read_text()))


def mlx_model(args: Any, weights: dict[str, np.ndarray]) -> Any:
    """The library's model with weights by name."""
    import mlx.core as mx

    from mlx_pixword.model.network import PixWordModel

    model = PixWordModel(args)
    model.load_weights([(name, mx.array(weight)) for name, weight in weights.items()])
    mx.eval(model.parameters())
    return model


SIDES: dict[str, type[Side]] = {"ours": Ours, "mlx": MLXBaseline, "torch": TorchBaseline}
