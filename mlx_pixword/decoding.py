"""Decoding: images that grow pixel by pixel, one row through each block a pixel, with two levels of cache.

N  images at once    D  hidden size    K  pix tokens    P  pixels a window    n, d  heads and their size, see rows.py

The image block keeps keys and values of the open window, the language block those of elements. There the pixels of the
open window take turns in one place, and the last one stays. It is the function of `PixWordModel`.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .batch import Document, collate
from .errors import PixWordError
from .model import PixWordModel
from .rows import Cache, Matrices, Rows, lay_out, side_by_side, turns
from .stack import Stack, stacks_run


class Decoder:
    """Images under way behind their prompts, and the logits of each one's next pixel.

    Args:
        model: its weights are copied, so that later changes are not seen.
        documents: the prompt of each image, up to the element that predicts the first pixel.
        lengths: pixels of each window to come, the same for all images.
        fast: see `Rows`.

    Attributes:
        logits: of each image's next pixel, float32 ``[N, K]``.
    """

    def __init__(
        self, model: PixWordModel, documents: Sequence[Document], lengths: Sequence[int], fast: bool | None = None
    ) -> None:
        args, dtype, count = model.args, model.args.compute_dtype, len(documents)
        self._args, self._rows, self._lengths = args, Rows(args, fast), list(lengths)
        self._image = [lay_out(layer, dtype) for layer in model.image_block.layers]
        self._language = [lay_out(layer, dtype) for layer in model.layers]
        self._head = side_by_side([model.head()[args.vocab_size :]], dtype, model.norm)  # [D, K]
        self._embeddings = model.image_block.embed_pixels().astype(dtype)  # [K + 1, D]
        table_pays = count * sum(lengths) > len(self._embeddings)
        self._first = self._rows.heads(self._embeddings, self._image[0].qkv) if table_pays else None  # [K + 1, n, 1, d]
        positions = np.arange(max(lengths))[:, None]
        self._window_turns = mx.unstack(turns(args, positions))  # P times [1, n, 1, d / 2]
        self._window = [self._new_cache(count, max(lengths)) for _ in self._image]
        self._offset = self._closed = 0  # pixels of the open window, closed windows
        self._image_stack = self._stack(self._image, self._window, positions)
        self._read(model, documents)

    def _new_cache(self, count: int, places: int) -> Cache:
        return Cache((count, self._args.num_kv_heads, places, self._args.head_size), self._args.compute_dtype)

    def _stack(
        self, layers: Sequence[Matrices], caches: Sequence[Cache], positions: np.ndarray, bias: mx.array | None = None
    ) -> Stack | None:
        """The block as a stack, where that is faster."""
        if not stacks_run(self._args):
            return None
        stack = Stack(self._args, layers, caches, positions, bias)
        return stack if stack.pays() else None

    def _read(self, model: PixWordModel, documents: Sequence[Document]) -> None:
        """Put the prompts into the language block's caches; equal ones are computed once."""
        args, distinct = self._args, list(dict.fromkeys(documents))
        which = mx.array([distinct.index(document) for document in documents])
        batch = collate([[d] for d in distinct], args.vocab_size, args.num_pix, args.window_size, exact=True)
        x, prompts = model.embed(batch, model.window_states(batch)[:, 0]), [_Prompt() for _ in self._language]
        states = model.language(x, batch.positions, "causal", prompts)[which]  # [N, L, D]
        lengths, self._start = np.array([len(document) for document in documents]), states.shape[1]
        ends = mx.take_along_axis(states, mx.array(lengths)[:, None, None] - 1, axis=1)[:, 0]  # [N, D]
        self.logits = model.logits(ends)[:, args.vocab_size :]
        places = np.arange(self._start + len(self._lengths))
        self._sequence = [self._new_cache(len(documents), len(places)) for _ in prompts]
        for cache, prompt in zip(self._sequence, prompts, strict=True):
            cache.put(prompt.keys[which], prompt.values[which], 0)
        empty = (places >= lengths[:, None]) & (places < self._start)  # behind the shorter prompts
        bias = mx.array(np.where(empty, -np.inf, 0)[:, None, None].astype(np.float32))
        self._bias = bias.astype(args.compute_dtype) if empty.any() else None  # [N, 1, 1, places]
        firsts = lengths if empty.any() else lengths[:1]
        positions = firsts + np.arange(len(self._lengths))[:, None]
        self._sequence_turns = mx.unstack(turns(args, positions))  # each [N or 1, n, 1, d / 2]
        self._language_stack = self._stack(self._language, self._sequence, positions, self._bias)
        mx.eval(self.logits, self._window_turns, self._sequence_turns)

    def put(self, tokens: mx.array) -> None:
        """Add a pixel to every image, pix tokens ``[N]``."""
        states = self._language_states(self._image_states(tokens))
        self.logits = (self._rows.norm(states) @ self._head).astype(mx.float32)
        self._offset += 1
        if self._offset == self._lengths[self._closed]:
            self._offset, self._closed = 0, self._closed + 1

    def _image_states(self, tokens: mx.array) -> mx.array:
        """States ``[N, D]`` of one more pixel of the open window."""
        x, turn = self._embeddings[tokens], self._window_turns[self._offset]
        if self._image_stack:
            return self._image_stack.step(x, self._offset, self._offset)
        heads = self._first[tokens] if self._first is not None else None
        for layer, cache in zip(self._image, self._window, strict=True):
            heads = self._rows.heads(x, layer.qkv) if heads is None else heads
            x, heads = self._rows.combine(layer, x, heads, turn, cache, self._offset), None
        return x

    def _language_states(self, x: mx.array) -> mx.array:
        """States ``[N, D]`` of the open window at its place in the sequence."""
        turn, place = self._sequence_turns[self._closed], self._start + self._closed
        if self._language_stack:
            return self._language_stack.step(x, self._closed, place)
        for layer, cache in zip(self._language, self._sequence, strict=True):
            x = self._rows.combine(layer, x, self._rows.heads(x, layer.qkv), turn, cache, place, self._bias)
        return x

    def check(self) -> None:
        """Raise `PixWordError` if the probabilities are not finite."""
        if not mx.all(mx.isfinite(self.logits)).item():
            raise PixWordError("the model gives probabilities that are not finite; its weights are damaged")


class _Prompt:
    """Keeps the keys and values ``[N, G, L, d]`` that the language block gives to its cache."""

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = k, v
        return k, v
