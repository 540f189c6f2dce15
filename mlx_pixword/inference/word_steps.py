"""Words on a CPU, a token step at a time by NumPy: of a small model most of MLX's time is the cost of a call.

B  rows    L  elements of a row    D  hidden size    V  words    n  heads of all kinds    d  head size

Prompts are read by MLX as ever, and what its layers keep of them is where the token steps begin. It is the function of
`PixWordModel.extend`.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..model.args import hidden_parameters
from ..model.batch import Batch
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only
from .growing_images import Prompt, choose_token_layers
from .token_layers import TokenLayers, side_by_side
from .token_layers_numpy import NumpyTokenLayers

SMALL = 10**7  # weights of hidden matrices, up to which the number of calls decides and a copy takes little memory


def numpy_pays(model: PixWordModel) -> bool:
    """Whether token steps of this model are computed by NumPy."""
    args = model.args
    return hidden_parameters(args) <= SMALL and isinstance(choose_token_layers(args), NumpyTokenLayers)


class WordSteps:
    """Words under way behind their prompts.

    Args:
        model: see `numpy_pays`.
        batch: the prompts.
        most: words that may be put, at the most.

    Attributes:
        logits: of each row's next word, float32 ``[B, V]``.
    """

    def __init__(self, model: PixWordModel, batch: Batch, most: int) -> None:
        self._args, self._steps = model.args, NumpyTokenLayers(model.args)
        self._laid_out = laid_out(model, self._steps)
        self._lengths = np.array([sum(map(len, row)) for row in batch.documents])
        self._after = np.array([row[-1].positions(model.args.grid)[1] for row in batch.documents])
        self._read(model, batch, most)

    @forward_only()
    def _read(self, model: PixWordModel, batch: Batch, most: int) -> None:
        """Read the prompts and keep their keys and values."""
        prompts = [Prompt() for _ in model.layers]
        x = model.read(batch, model.states_in_chunks(batch), prompts)  # [B, L, D]
        ends = mx.take_along_axis(x, mx.array(self._lengths)[:, None, None] - 1, axis=1)
        self.logits = np.array(model.logits(ends)[:, 0, : self._args.vocab_size])
        rows, self._place = x.shape[:2]  # of the next word, the same in all rows
        self._caches = [self._steps.new_cache(rows, self._place + most) for _ in prompts]
        for cache, prompt in zip(self._caches, prompts, strict=True):
            cache.put(np.array(prompt.keys), np.array(prompt.values), 0)
        places = np.arange(self._place + most)
        empty = (places >= self._lengths[:, None]) & (places < self._place)  # behind the shorter prompts
        bias = np.where(empty, -np.inf, 0).astype(np.float32)[:, None, None]
        self._bias = bias if empty.any() else None  # [B, 1, 1, places]

    def put(self, words: Sequence[int]) -> None:
        """Add a word to every row."""
        weights = self._laid_out
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged model's numbers are no concern of NumPy's
            x, turn = weights.embeddings[np.asarray(words)], self._steps.turns(self._after)
            for n, (layer, cache) in enumerate(zip(weights.layers, self._caches, strict=True)):
                heads, own_turn = self._steps.heads(x, layer), self._steps.of_layer(n, turn)
                x = self._steps.combine(layer, x, heads, own_turn, cache, self._place, self._bias)
            self.logits = self._steps.logits(x, weights.head)
        self._place, self._after = self._place + 1, self._after + 1


class LaidOut:
    """A language block's weights as token steps take them."""

    def __init__(self, model: PixWordModel, steps: TokenLayers) -> None:
        dtype, words = mx.float32, model.args.vocab_size
        self.layers = [steps.laid_out(layer) for layer in model.layers]
        self.head = steps.keep(side_by_side([model.head()[:words]], dtype, model.norm))  # [D, V]
        self.embeddings = steps.keep(model.embed_words().astype(dtype))  # [V, D]


class _Kept:
    """What was laid out last, and of which arrays: an update makes new ones."""

    def __init__(self, sources: list[mx.array], weights: LaidOut) -> None:
        self.sources, self.weights = sources, weights


def laid_out(model: PixWordModel, steps: TokenLayers) -> LaidOut:
    """The model's weights, laid out again only where they changed since."""
    parts = [*model.layers, model.norm, model.head, model.embed_words]
    sources = [array for part in parts for array in dict(tree_flatten(part.parameters())).values()]
    kept: _Kept | None = getattr(model, "_kept_for_words", None)
    if kept is None or not _are_same(kept.sources, sources):
        kept = model._kept_for_words = _Kept(sources, LaidOut(model, steps))
    return kept.weights


def _are_same(arrays: Sequence[mx.array], others: Sequence[mx.array]) -> bool:
    return len(arrays) == len(others) and all(a is b for a, b in zip(arrays, others, strict=True))
