"""Images that grow pixel by pixel, one token step through each block a pixel, with two levels of cache.

B  rows: images at once    D  hidden size    K  pix tokens    P  pixels a window
n  heads of all kinds      d  head size

The image block keeps keys and values of the open window, the language block those of elements. There the pixels of the
open window take turns in one place, and the last one stays. It is the function of `PixWordModel`.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError
from ..model.args import ModelArgs
from ..model.batch import collate
from ..model.document import Document
from ..model.layers import Layer
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only
from .token_layers import Array, Cache, Matrices, TokenLayers, lay_out, side_by_side, turns
from .token_layers_numpy import NumpyTokenLayers
from .token_stack import Stack, stacks_run

RECENTS = 16  # pixels of the open window whose keys and values wait in a small array, see token_stack.py


class GrowingImages:
    """Images under way behind their prompts, and the logits of each one's next pixel.

    Args:
        model: its weights are copied, so that later changes are not seen.
        documents: the prompt of each image, up to the element that predicts the first pixel.
        lengths: pixels of each window to come, the same for all images.
        token_layers: what computes token steps; None: `choose_token_layers`.

    Attributes:
        logits: of each image's next pixel, float32 ``[B, K]``, an array of the library that computes token steps.
    """

    def __init__(
        self,
        model: PixWordModel,
        documents: Sequence[Document],
        lengths: Sequence[int],
        token_layers: TokenLayers | None = None,
    ) -> None:
        args, dtype, count = model.args, model.args.compute_dtype, len(documents)
        if not args.has_plain_layers:
            raise PixWordError(
                "drawing does not know biases, weights of query norms and layers without RoPE yet; this model can read "
                "and score images"
            )
        if args.uses_places or args.image is not args or not args.image_layers:
            raise PixWordError("drawing with options of the model other than the paper's is still to come")
        token_layers = token_layers or choose_token_layers(args)
        self._args, self._steps, self._lengths = args, token_layers, list(lengths)
        self._image = [self._laid_out(layer) for layer in model.image_block.layers]
        self._language = [self._laid_out(layer) for layer in model.layers]
        self._head = token_layers.keep(side_by_side([model.head()[args.vocab_size :]], dtype, model.norm))  # [D, K]
        self._embeddings = token_layers.keep(model.image_block.embed_pixels().astype(dtype))  # [K + 1, D]
        table_pays = count * sum(lengths) > len(self._embeddings)
        self._first = (
            token_layers.heads(self._embeddings, self._image[0].qkv) if table_pays else None
        )  # [K + 1, n, 1, d]
        positions = np.arange(max(lengths))[:, None]
        self._window_turns = self._turns(positions)  # P times [1, n, 1, d / 2]
        self._window = [token_layers.new_cache(count, max(lengths)) for _ in self._image]
        self._offset = self._closed = 0  # pixels of the open window, closed windows
        self._image_stack = self._stack(self._image, self._window, positions, recents=RECENTS)
        self._read(model, documents)

    def _laid_out(self, layer: Layer) -> Matrices:
        return Matrices(*map(self._steps.keep, lay_out(layer, self._args.compute_dtype)))

    def _turns(self, positions: np.ndarray) -> list[Array]:
        """``[places, B or 1]`` to a complex ``[B or 1, n, 1, d / 2]`` each."""
        return [self._steps.keep(turn) for turn in mx.unstack(turns(self._args, positions))]

    def _stack(
        self, layers: Sequence[Matrices], caches: Sequence[Cache], positions: np.ndarray, **how: Any
    ) -> Stack | None:
        """The block as a stack, where that is faster."""
        if isinstance(self._steps, NumpyTokenLayers) or not stacks_run(self._args):
            return None
        stack = Stack(self._args, layers, caches, positions, **how)
        return stack if stack.pays() else None

    @forward_only()
    def _read(self, model: PixWordModel, documents: Sequence[Document]) -> None:
        """Put the prompts into the language block's caches; equal ones are computed once."""
        args, distinct = self._args, list(dict.fromkeys(documents))
        which = mx.array([distinct.index(document) for document in documents])
        batch = collate([[d] for d in distinct], args, exact=True)
        x, prompts = model.embed(batch, model.states_in_chunks(batch)[:, 0]), [_Prompt() for _ in self._language]
        states = model.language(x, batch.positions, "causal", prompts)[which]  # [B, L, D]
        lengths, self._start = np.array([len(document) for document in documents]), states.shape[1]
        ends = mx.take_along_axis(states, mx.array(lengths)[:, None, None] - 1, axis=1)[:, 0]  # [B, D]
        self.logits: Array = self._steps.keep(model.logits(ends)[:, args.vocab_size :])
        places = np.arange(self._start + len(self._lengths))
        self._sequence = [self._steps.new_cache(len(documents), len(places)) for _ in prompts]
        for cache, prompt in zip(self._sequence, prompts, strict=True):
            cache.put(self._steps.keep(prompt.keys[which]), self._steps.keep(prompt.values[which]), 0)
        empty = (places >= lengths[:, None]) & (places < self._start)  # behind the shorter prompts
        bias = mx.array(np.where(empty, -np.inf, 0)[:, None, None].astype(np.float32)).astype(args.compute_dtype)
        self._bias = self._steps.keep(bias) if empty.any() else None  # [B, 1, 1, places]
        firsts = lengths if empty.any() else lengths[:1]
        positions = firsts + np.arange(len(self._lengths))[:, None]
        self._sequence_turns = self._turns(positions)
        self._language_stack = self._stack(
            self._language, self._sequence, positions, bias=self._bias, start=self._start
        )
        mx.eval(self.logits, self._window_turns, self._sequence_turns)

    def put(self, tokens: Array) -> None:
        """Add a pixel to every image, pix tokens ``[B]``, in the library of the logits."""
        with np.errstate(over="ignore", invalid="ignore"):  # `check` finds what is not finite
            states = self._language_states(self._image_states(tokens))
            self.logits = self._steps.logits(states, self._head)
        self._offset += 1
        if self._offset == self._lengths[self._closed]:
            self._offset, self._closed = 0, self._closed + 1

    def same_for_all(self, token: int) -> Array:
        """A pix token for every image, ``[B]``."""
        return self._steps.keep(mx.full(len(self.logits), token, mx.int32))

    def _image_states(self, tokens: Array) -> Array:
        """States ``[B, D]`` of one more pixel of the open window."""
        x, turn = self._embeddings[tokens], self._window_turns[self._offset]
        if self._image_stack:
            return self._image_stack.step(x, self._offset, self._offset)
        heads = self._first[tokens] if self._first is not None else None
        for layer, cache in zip(self._image, self._window, strict=True):
            heads = self._steps.heads(x, layer.qkv) if heads is None else heads
            x, heads = self._steps.combine(layer, x, heads, turn, cache, self._offset), None
        return x

    def _language_states(self, x: Array) -> Array:
        """States ``[B, D]`` of the open window at its place in the sequence."""
        turn, place = self._sequence_turns[self._closed], self._start + self._closed
        if self._language_stack:
            return self._language_stack.step(x, self._closed, place)
        for layer, cache in zip(self._language, self._sequence, strict=True):
            x = self._steps.combine(layer, x, self._steps.heads(x, layer.qkv), turn, cache, place, self._bias)
        return x

    def check(self, logits: Array = None) -> None:
        """Raise `PixWordError` if the probabilities of the next pixel, or earlier ``logits``, are not finite."""
        if not np.isfinite(np.array(self.logits if logits is None else logits)).all():
            raise PixWordError("the model gives probabilities that are not finite; its weights are damaged")


def choose_token_layers(args: ModelArgs) -> TokenLayers:
    """NumPy's on a CPU in float32; MLX's elsewhere."""
    on_cpu = mx.default_device() == mx.cpu and args.compute_dtype == mx.float32
    return NumpyTokenLayers(args) if on_cpu else TokenLayers(args)


class _Prompt:
    """Keeps the keys and values ``[B, G, L, d]`` that the language block gives to its cache."""

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = k, v
        return k, v
