"""Images that grow pixel by pixel, one token step through each block a pixel, with two levels of cache.

B  rows: images at once    D  hidden size    K  pix tokens    P  pixels a window
n  heads of all kinds      d  head size      e  width of the image block

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
from ..model.image_block import ImageBlock
from ..model.layers import plain_weight
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only
from .token_caches import Array, Cache
from .token_layers import Grid, Matrices, TokenLayers, side_by_side
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
        size: height and width of the images, for models with a grid or a concatenated summary.

    Attributes:
        logits: of each image's next pixel, float32 ``[B, K]``, an array of the library that computes token steps.
    """

    def __init__(
        self,
        model: PixWordModel,
        documents: Sequence[Document],
        lengths: Sequence[int],
        token_layers: TokenLayers | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        args, dtype, count = model.args, model.args.compute_dtype, len(documents)
        token_layers = token_layers or choose_token_layers(args)
        self._args, self._steps, self._lengths = args, token_layers, list(lengths)
        self._image_steps = type(token_layers)(args.image)
        self._geometry = _Geometry(args, self._lengths, size)
        self._image = [self._image_steps.laid_out(layer) for layer in model.image_block.layers]
        self._language = [token_layers.laid_out(layer) for layer in model.layers]
        self._head = token_layers.keep(side_by_side([model.head()[args.vocab_size :]], dtype, model.norm))  # [D, K]
        self._embeddings = token_layers.keep(model.image_block.embed_pixels().astype(dtype))  # [K + 1, e]
        self._join = _Join(args, model.image_block, token_layers)
        table_pays = bool(self._image) and count * sum(lengths) > len(self._embeddings)
        self._first = (
            self._image_steps.heads(self._embeddings, self._image[0]) if table_pays else None
        )  # [K + 1, n, 1, d]
        positions = self._geometry.pixel_positions()
        self._window_turns = list(self._image_steps.turns(positions))  # each complex [1, n, 1, d / 2]
        self._window = [self._image_steps.new_cache(count, max(lengths)) for _ in self._image]
        self._offset = self._closed = 0  # pixels of the open window, closed windows
        self._image_stack = self._stack(args.image, self._image, self._window, positions, recents=RECENTS)
        self._read(model, documents)

    def _stack(
        self, args: ModelArgs, layers: Sequence[Matrices], caches: Sequence[Cache], positions: np.ndarray | Grid,
        **how: Any,
    ) -> Stack | None:  # fmt: skip
        """A block of layers of the shape ``args`` as a stack, where that is faster."""
        if isinstance(self._steps, NumpyTokenLayers) or not layers or not stacks_run(args):
            return None
        stack = Stack(args, layers, caches, positions, **how)
        return stack if stack.pays() else None

    @forward_only()
    def _read(self, model: PixWordModel, documents: Sequence[Document]) -> None:
        """Put the prompts into the language block's caches; equal ones are computed once."""
        args, distinct = self._args, list(dict.fromkeys(documents))
        which = mx.array([distinct.index(document) for document in documents])
        batch = collate([[d] for d in distinct], args, exact=True)
        x, prompts = model.embed(batch, model.states_in_chunks(batch)[:, 0]), [Prompt() for _ in self._language]
        states = model.language(x, batch.positions, "causal", prompts)[which]  # [B, L, D]
        lengths, self._start = np.array([len(document) for document in documents]), states.shape[1]
        ends = mx.take_along_axis(states, mx.array(lengths)[:, None, None] - 1, axis=1)[:, 0]  # [B, D]
        self.logits: Array = self._steps.keep(model.logits(ends)[:, args.vocab_size :])
        firsts, places = self._start - lengths, self._start + len(self._lengths)  # shorter prompts end where all end
        self._sequence = [self._steps.new_sequence(places, firsts.tolist()) for _ in prompts]
        for cache, prompt in zip(self._sequence, prompts, strict=True):
            k, v = (self._steps.keep(_moved(array[which], firsts)) for array in (prompt.keys, prompt.values))
            cache.put(k, v, 0)
        empty = np.arange(places) < firsts[:, None]
        bias = mx.array(np.where(empty, -np.inf, 0)[:, None, None].astype(np.float32)).astype(args.compute_dtype)
        self._bias = self._steps.keep(bias) if empty.any() else None  # [B, 1, 1, places]
        positions = self._geometry.window_positions(documents)
        self._sequence_turns = list(self._steps.turns(positions))  # each complex [B or 1, n, 1, d / 2]
        self._language_stack = self._stack(
            args, self._language, self._sequence, positions, bias=self._bias, start=self._start
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
        e = x = self._embeddings[tokens]
        number, place = self._geometry.pixel(self._closed, self._offset)
        if self._image_stack:
            x = self._image_stack.step(x, number, self._offset)
        else:
            heads = self._first[tokens] if self._first is not None else None
            for layer, cache in zip(self._image, self._window, strict=True):
                heads = self._image_steps.heads(x, layer) if heads is None else heads
                turn = self._window_turns[number]
                x, heads = self._image_steps.combine(layer, x, heads, turn, cache, self._offset), None
        return self._join(x, e, place, first=self._offset == 0)

    def _language_states(self, x: Array) -> Array:
        """States ``[B, D]`` of the open window at its place in the sequence."""
        turn, place = self._sequence_turns[self._closed], self._start + self._closed
        if self._language_stack:
            return self._language_stack.step(x, self._closed, place)
        for n, (layer, cache) in enumerate(zip(self._language, self._sequence, strict=True)):
            own_turn = self._steps.of_layer(n, turn)
            x = self._steps.combine(layer, x, self._steps.heads(x, layer), own_turn, cache, place, self._bias)
        return x

    def check(self, logits: Array = None) -> None:
        """Raise `PixWordError` if the probabilities of the next pixel, or earlier ``logits``, are not finite."""
        if not np.isfinite(np.array(self.logits if logits is None else logits)).all():
            raise PixWordError("the model gives probabilities that are not finite; its weights are damaged")


def choose_token_layers(args: ModelArgs) -> TokenLayers:
    """NumPy's on a CPU in float32; MLX's elsewhere."""
    on_cpu = mx.default_device() == mx.cpu and args.compute_dtype == mx.float32
    return NumpyTokenLayers(args) if on_cpu else TokenLayers(args)


class _Join:
    """From the image block to the language block, a pixel at a time: the state's projection and the summary."""

    def __init__(self, args: ModelArgs, block: ImageBlock, steps: TokenLayers) -> None:
        dtype = args.compute_dtype

        def keep(linear: Any) -> Array:
            return steps.keep(side_by_side([plain_weight(linear)], dtype))

        self._state = keep(block.state_proj) if "state_proj" in block else None  # [e, D]
        self._colors: list[Array] = []  # of each place, [e, D or rank]
        self._out = None  # [rank, D]
        if "summary" in block:
            matrix = mx.contiguous(plain_weight(block.summary.window_proj).astype(dtype).T)
            self._colors = [steps.keep(part) for part in mx.split(matrix, args.window_size**2)]
            self._out = keep(block.summary.out_proj) if "out_proj" in block.summary else None
        self._sum: Array = None  # [B, D or rank], over the open window's pixels so far

    def __call__(self, x: Array, e: Array, place: int, *, first: bool) -> Array:
        """States ``[B, D]`` from the layers' ``x [B, e]`` and the embeddings ``e [B, e]`` of a pixel at a place."""
        if self._state is not None:
            x = x @ self._state
        if not self._colors:
            return x
        share = e @ self._colors[place]
        self._sum = share if first else self._sum + share
        return x + (self._sum if self._out is None else self._sum @ self._out)


class _Geometry:
    """Where pixels and windows to come lie, for rotary positions and for the summary."""

    def __init__(self, args: ModelArgs, lengths: Sequence[int], size: tuple[int, int] | None) -> None:
        if args.uses_places and size is None:
            raise PixWordError("this model has positions by row and column, or a summary by place: give the size")
        self._args, self._lengths, side = args, list(lengths), args.window_size
        height, width = size or (side, side)
        self._columns = -(-width // side)
        total = -(-height // side) * self._columns if size else len(self._lengths)
        self._done = total - len(self._lengths)  # windows that the prompts hold
        numbers = np.arange(self._done, total)
        self._widths = np.minimum(side, width - numbers % self._columns * side) if size else np.full(total, side)
        self._base: dict[int, int] = {}  # where the turns of windows of a width begin

    def pixel_positions(self) -> np.ndarray | Grid:
        """Positions of all pixels that there are turns of, ``[turns, 1]``."""
        if not self._args.grid:
            return np.arange(max(self._lengths))[:, None]
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        for width in sorted(set(self._widths.tolist())):
            self._base[width] = sum(len(some) for some in rows)
            number = np.arange(max(n for n, w in zip(self._lengths, self._widths, strict=True) if w == width))
            rows.append(number // width)
            columns.append(number % width)
        return Grid(np.concatenate(rows)[:, None], np.concatenate(columns)[:, None])

    def pixel(self, window: int, offset: int) -> tuple[int, int]:
        """Of a pixel of a window to come, the number of its turn and its place in the full window."""
        width = int(self._widths[window])
        return self._base.get(width, 0) + offset, offset // width * self._args.window_size + offset % width

    def window_positions(self, documents: Sequence[Document]) -> np.ndarray | Grid:
        """Positions of the windows to come behind each prompt, ``[windows, B]``, or ``[windows, 1]`` if all agree."""
        firsts = np.array([self._image_position(document) for document in documents])
        firsts = firsts if (firsts != firsts[0]).any() else firsts[:1]
        numbers = np.arange(self._done, self._done + len(self._lengths))[:, None]
        if not self._args.grid:
            return firsts + numbers
        return Grid(firsts + numbers // self._columns, firsts + numbers % self._columns)

    def _image_position(self, document: Document) -> int:
        """Of the first window of the image under way."""
        positions, following = document.positions(self._args.grid)
        if not self._args.grid:
            return following - self._done
        return int(positions[len(document) - self._done, 0]) if self._done else following


def _moved(array: mx.array, by: np.ndarray) -> mx.array:
    """Keys or values ``[B, G, L, d]`` of places, each row's moved on by so many places ``[B]``; the last ones go."""
    if not by.any():
        return array
    places = np.maximum(np.arange(array.shape[2]) - by[:, None], 0)
    return mx.take_along_axis(array, mx.array(places)[:, None, :, None], axis=2)


class Prompt:
    """Keeps the keys and values ``[B, G, L, d]`` that the language block gives to its cache."""

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = k, v
        return k, v
