"""The model: pixels and words in one sequence, one softmax over both. Read top down.

B  rows of a batch             L  elements of a row                     D  hidden size
U  distinct windows            P  pixels a window, w * w                 R  pixels that are read out of a window
H  query heads, G  key heads   d  head size, D / H                       V  words, K  pix tokens
Q  query pixels a row: predicted besides the windows' first pixels      c  elements of a row that count in the loss

Source: Leung & Wang, arXiv 2605.14028. The distinct windows, and what `ImageBlock` saves, are exact: the same function
for less work. `exact_savings = False` runs the plain path, which the tests compare.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..ops.rotary import rotary_table, turn_by_axes
from ..pixels.colors import color_features
from .args import ModelArgs
from .batch import Batch
from .calibration import Calibration
from .image_block import ColorTable, ImageBlock, Table
from .layers import Layer, rms_norm
from .origin import Origin

CHUNK_PIXELS = 2048  # that pass the image block at a time where nobody needs gradients


class PixWordModel(nn.Module):
    """The whole model: words and window states in reading order, one softmax over ``V + K``.

    Args:
        args: its shape.
        pixel_queries: ``M``, query pixels a window that it is trained with; no part of the shape, it only says what the
            model can be expected to predict.

    Example:
        >>> model = PixWordModel(ModelArgs(vocab_size=6, image_size=32, window_size=4, fold_factor=32,
        ...                                hidden_size=64, num_heads=4, num_kv_heads=2, num_layers=2,
        ...                                image_layers=1, intermediate_size=128))
        >>> model(batch).shape                          # batch from a Processor
        (1, 8, 518)
    """

    calibration = Calibration()  # of the readings' probabilities; set by whoever fits it, and kept in config.json

    words_only = False  # whether pixels had no weight in training, so that it cannot draw; kept in config.json

    origin: Origin | None = None  # of a language model that the language block started from

    def __init__(self, args: ModelArgs, pixel_queries: int = 0) -> None:
        super().__init__()
        colors = np.vstack([np.zeros((args.vocab_size, 27)), color_features(args.fold_factor)]).astype(np.float32)
        self.embed_words = Table(args.vocab_size, args.hidden_size)
        self.image_block = ImageBlock(args)
        self.layers = [Layer(args) for _ in range(args.num_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head: Table = ColorTable(colors, args.hidden_size, colors if args.factored_colors else None)
        self._args, self._pixel_queries = args, min(pixel_queries, args.window_size**2 - 1)

    @property
    def args(self) -> ModelArgs:
        return self._args

    @property
    def pixel_queries(self) -> int:
        """Query pixels a window in training, ``M``; 0: pixels inside windows were never predicted."""
        return self._pixel_queries

    def __call__(self, batch: Batch, cache: list[Any] | None = None, *, exact_savings: bool = True) -> mx.array:
        """Logits of the next element, float32 ``[B, L, V + K]``; ``cache`` keeps keys and values for `extend`."""
        return self.logits(self.read(batch, self.window_states(batch, exact_savings), cache))

    def read(self, batch: Batch, states: mx.array, cache: list[Any] | None = None) -> mx.array:
        """What the language block makes of elements, ``[B, L, D]``, given window states ``[U, R, D]``."""
        return self.language(self.embed(batch, states[:, 0]), batch.positions, sequence_mask(batch), cache)

    def forward(
        self, batch: Batch, states: mx.array | None = None, *, exact_savings: bool = True
    ) -> tuple[mx.array, mx.array | None]:
        """Logits of elements ``[B, L, V + K]`` and of the batch's query pixels ``[B, Q, V + K]``, if it has any.

        ``states [U, R, D]`` are the `window_states`, where they are there already.
        """
        states = self.window_states(batch, exact_savings) if states is None else states
        x, z = self.read_all(batch, states)
        return self.logits(x), None if z is None else self.logits(z)

    def scored(self, batch: Batch, states: mx.array | None = None) -> tuple[mx.array, mx.array | None]:
        """The same, of the elements that count in the loss alone where not all do: ``[B, c, V + K]``, `Batch.scored`.

        An exact saving: in a batch that learns to read few elements have a target that counts, so the others need
        neither the softmax over all pix tokens nor, of the last layer, more than their keys and values.
        """
        if batch.scored is None:
            return self.forward(batch, states)
        states = self.window_states(batch) if states is None else states
        if batch.query_places is None:
            return self.logits(self._read_out(batch, states, batch.scored)), None
        x, z = self.read_all(batch, states)
        x = mx.take_along_axis(x, batch.scored[..., None], axis=1)  # [B, c, D]
        return self.logits(x), None if z is None else self.logits(z)

    def _read_out(self, batch: Batch, states: mx.array, places: mx.array) -> mx.array:
        """The language block for elements at ``places [B, c]`` alone: ``[B, c, D]``, normalised."""
        x, rotary = self.embed(batch, states[:, 0]).astype(self._args.compute_dtype), self._rotary(batch.positions)
        for n, layer in enumerate(self.layers[:-1]):
            x = layer(x, self._of_layer(n, rotary), sequence_mask(batch))
        rotary = self._of_layer(len(self.layers) - 1, rotary)
        of_places = mx.take_along_axis(rotary, places[None, :, None, :, None], axis=3)
        starts, keys = mx.take_along_axis(batch.starts, places, axis=1), mx.arange(x.shape[1])
        seen = (keys >= starts[..., None]) & (keys <= places[..., None])  # [B, c, L]
        return rms_norm(self.norm, self.layers[-1].read_out(x, places, of_places, rotary, seen[:, None]))

    def read_all(self, batch: Batch, states: mx.array) -> tuple[mx.array, mx.array | None]:
        """As `read`, and ``[B, Q, D]`` of the query pixels, if there are any: `logits` of both are still to be made."""
        if batch.query_places is None:
            return self.read(batch, states), None
        z = states.reshape(-1, states.shape[-1]).astype(mx.float32)[batch.query_states]  # [B, Q, D]
        return self.condition(self.embed(batch, states[:, 0]), z, batch.query_places, batch)

    def window_states(self, batch: Batch, exact_savings: bool = True) -> mx.array:
        """States of each distinct window's last pixel and of its query pixels, ``[U, R, D]``."""
        return self.image_block(batch.windows, batch.reads, batch.widths, exact_savings=exact_savings)

    def states_in_chunks(self, batch: Batch) -> mx.array:
        """`window_states` without gradients, evaluated some windows at a time: memory does not grow with images."""
        block, windows = self.image_block, batch.windows
        table, size = block.table(block.projects(windows)), max(1, CHUNK_PIXELS // windows.shape[1])
        states: list[mx.array] = []
        for start in range(0, len(windows), size):
            part = slice(start, start + size)
            widths = None if batch.widths is None else batch.widths[part]
            states.append(block.states(table, windows[part], batch.reads[part], widths))
            mx.eval(states[-1])
        return mx.concatenate(states)

    def embed(self, batch: Batch, states: mx.array) -> mx.array:
        """Words and window states ``[U, D]`` in reading order, float32 ``[B, L, D]``."""
        table = mx.concatenate([self.embed_words(), states.astype(mx.float32)])  # [V + U, D]
        return table[batch.elements]

    def condition(self, x: mx.array, z: mx.array, places: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        """The language block for elements ``x [B, L, D]`` and query pixels ``z [B, Q, D]`` at ``places [B, Q]``."""
        dtype = self._args.compute_dtype
        rotary, mask = self._rotary(batch.positions), sequence_mask(batch)
        index = places if batch.positions.ndim == 2 else places[..., None]
        z_rotary = self._rotary(mx.take_along_axis(batch.positions, index, axis=1))  # as of the pixel's window
        spans = mx.stack([mx.take_along_axis(batch.starts, places, axis=1), places], axis=-1)  # [B, Q, 2]
        x, z = x.astype(dtype), z.astype(dtype)
        for n, layer in enumerate(self.layers):
            x, z = layer.conditioned(x, z, self._of_layer(n, rotary), self._of_layer(n, z_rotary), mask, spans)
        return rms_norm(self.norm, x), rms_norm(self.norm, z)

    def extend(self, words: mx.array, positions: mx.array, cache: list[Any]) -> mx.array:
        """Logits after more words: ``words, positions [B, L]`` continue what ``cache`` holds.

        With a grid too a word has one position, which is its row and its column.
        """
        return self.logits(
            self.language(self.embed_words()[words], positions, cache[0].make_mask(words.shape[1]), cache)
        )

    def language(self, x: mx.array, positions: mx.array, mask: Any, cache: list[Any] | None = None) -> mx.array:
        """The language block: float32 embeddings ``[B, L, D]`` to normalised states ``[B, L, D]``."""
        x, rotary = x.astype(self._args.compute_dtype), self._rotary(positions)
        for n, (layer, layer_cache) in enumerate(zip(self.layers, cache or [None] * len(self.layers), strict=True)):
            x = layer(x, self._of_layer(n, rotary), mask, layer_cache)
        return rms_norm(self.norm, x)

    def _rotary(self, positions: mx.array) -> mx.array:
        """``[B, L]`` or ``[B, L, 2]`` to ``[2, B, 1, L, d / 2]``, one for all heads."""
        a = self._args
        table = mx.array(rotary_table(a.max_seq_len, a.head_size, a.rope_theta, a.scaling))
        return turn_by_axes(table, positions)[:, :, None]

    def _of_layer(self, number: int, rotary: mx.array) -> mx.array:
        """Cosines and sines for a layer; those of no turn where the layer has no RoPE."""
        every = self._args.no_rope_every
        if not every or (number + 1) % every:
            return rotary
        return mx.stack([mx.ones_like(rotary[0]), mx.zeros_like(rotary[1])])

    def logits(self, x: mx.array) -> mx.array:
        """``[..., D]`` to float32 ``[..., V + K]``."""
        return (x @ self.head().astype(x.dtype).T).astype(mx.float32)

    def __repr__(self) -> str:
        a = self._args
        layers = f"{a.image_layers} image and {a.num_layers} language layers"
        rows = f"{a.vocab_size} words, {a.num_pix} pix tokens"
        size = f"{num_parameters(self) / 1e6:.2f}M parameters"
        return f"PixWordModel({size}, width {a.hidden_size}, {layers}, {rows}, windows {a.window_size}x{a.window_size})"

    def plain_weights(self) -> tuple[dict[str, mx.array], ModelArgs]:
        """Weights and shape of the same function with factored colours summed into plain tables."""
        weights = dict(tree_flatten(self.parameters()))
        for name, module in self.named_modules():
            if isinstance(module, Table) and weights.pop(f"{name}.factors", None) is not None:
                weights[f"{name}.weight"] = module()
        return weights, replace(self._args, factored_colors=False, linear_color_scale=0.02, sine_color_scale=0.02)


def sequence_mask(batch: Batch) -> mx.array | str:
    """What an element sees: all earlier ones, or in packed rows those of its own document."""
    return "causal" if batch.segments is None else causal_segments(batch.segments)


def causal_segments(segments: mx.array) -> mx.array:
    """Mask of packed rows: an element sees earlier elements of its own document; boolean ``[B, 1, L, L]``."""
    order = mx.arange(segments.shape[1])
    return ((segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order))[:, None]


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(array.size for array in dict(tree_flatten(model.parameters())).values())
