"""The image block: pixels to states, inside windows; and the tables that tokens are gathered from.

U  distinct windows    P  pixels a window, w * w    R  pixels that are read out of a window
D  hidden size         e  width of the image block  d  head size
H  query heads         G  key heads                 K  pix tokens

Source: Leung & Wang, arXiv 2605.14028; the concatenated summary is the patch embedding of MEGABYTE, arXiv 2305.07185,
beside the paper's state. The read-out and the table projection are exact savings.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.rotary import window_table
from ..pixels.colors import LINEAR_COLUMNS, color_features
from .args import ModelArgs
from .layers import Layer, Linear, plain_weight, rms_norm


class Table(nn.Module):
    """Rows of tokens: ``weight``, plus ``features @ factors`` where colours are factored. Always float32.

    ``scales`` are those of the factors at the start, one for all features or one each.
    """

    def __init__(
        self, rows: int, size: int, features: np.ndarray | None = None, scales: float | np.ndarray = 0.02
    ) -> None:
        super().__init__()
        self.weight = 0.02 * mx.random.normal((rows, size))
        self._features: mx.array | None = None
        self._still: tuple[int, int] | None = None
        if features is not None:
            self._features = mx.array(features)
            each = mx.array(np.broadcast_to(scales, features.shape[1]).astype(np.float32))
            self.factors = each[:, None] * mx.random.normal((features.shape[1], size))

    def freeze_rows(self, first: int, end: int) -> None:
        """Let no gradient reach rows ``first`` to ``end - 1``."""
        self._still = (first, end)

    def __call__(self) -> mx.array:
        """The plain table, float32 ``[rows, size]``."""
        weight: mx.array = self.weight
        if self._still is not None:
            first, end = self._still
            weight = mx.concatenate([weight[:first], mx.stop_gradient(weight[first:end]), weight[end:]])
        return weight if self._features is None else weight + self._features @ self.factors


class ColorTable(Table):
    """A table with rows of all colours, which mlx-lm's `linear_to_lora_layers` can adapt where it is asked to by name.

    ``colors`` are the colours' smooth features and zeros elsewhere, ``[rows, 27]``, kept where they are not factors.
    """

    def __init__(
        self, colors: np.ndarray, size: int, features: np.ndarray | None = None, scales: float | np.ndarray = 0.02
    ) -> None:
        super().__init__(len(colors), size, features, scales)
        self._colors = colors

    def to_lora(self, r: int, scale: float, dropout: float = 0.0) -> "AdaptedTable":
        """The table with an adapter of rank ``r``; ``dropout`` is for layers, whose inputs vary."""
        return AdaptedTable(self, r, scale)


class AdaptedTable(nn.Module):
    """A frozen table and a low-rank sum, ``table + scale * lora_a @ lora_b``, with mlx-lm's names.

    ``lora_a [rows, r]`` starts as random mixtures of the smooth colour features that `factored_colors` has, so that
    what one colour learns helps its neighbours. A learning rate moves an embedding about as far as through factors.
    """

    def __init__(self, table: ColorTable, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = table, scale
        features = mx.array(table._colors.astype(np.float32))
        self.lora_a = features @ mx.random.normal((features.shape[1], rank)) / (scale * rank**0.5)
        self.lora_b = mx.zeros((rank, table.weight.shape[1]))

    def __call__(self) -> mx.array:
        table: mx.array = self.linear()
        return table + self.scale * (self.lora_a @ self.lora_b)


def color_table(args: ModelArgs) -> ColorTable:
    """Embeddings of pix tokens and padding, ``[K + 1, e]``."""
    size = args.image.hidden_size
    features = np.vstack([color_features(args.fold_factor), np.zeros(27)]).astype(np.float32)
    if not args.factored_colors:
        return ColorTable(features, size)
    scales = np.full(features.shape[1], args.sine_color_scale)
    scales[[*LINEAR_COLUMNS]] = args.linear_color_scale
    used = scales > 0
    return ColorTable(features, size, features[:, used], scales[used])


class Summary(nn.Module):
    """What a window's colours add to its state: ``sum over i <= j of W_a(i) e_i``, for each pixel j that is read.

    ``a(i)`` is the place of pixel i in the full window, so that in a window at the right edge too a weight belongs to a
    row and a column. The sum is linear in the pixels, as the patch embedding of MEGABYTE is.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.window_proj = Linear(args.window_size**2 * args.image.hidden_size, args.summary_rank or args.hidden_size)
        if args.summary_rank:
            self.out_proj = Linear(args.summary_rank, args.hidden_size)

    def __call__(self, x: mx.array, reads: mx.array, numbers: mx.array) -> mx.array:
        """Sums ``[U, R, D]``.

        Args:
            x: ``[U, P, e]``, embeddings of the pixels by their place in the full window.
            reads: int32 ``[U, R]``, the numbers of the pixels to sum up to.
            numbers: int32 ``[U or 1, P]``, the number of the pixel at each place; at least P where there is none.
        """
        if reads.shape[1] == 1:
            seen = mx.where((numbers <= reads)[..., None], x, mx.zeros((), x.dtype))
            sums = self.window_proj(seen.flatten(1))[:, None]
        else:  # each pixel's share once, then a sum for each read
            matrices = plain_weight(self.window_proj).astype(x.dtype).reshape(-1, *x.shape[1:])  # [D or rank, P, e]
            shares = x.swapaxes(0, 1) @ matrices.transpose(1, 2, 0)  # [P, U, D or rank]
            sums = (numbers[:, None] <= reads[..., None]).astype(x.dtype) @ shares.swapaxes(0, 1)
        return self.out_proj(sums) if "out_proj" in self else sums


class ImageBlock(nn.Module):
    """Local: exact causal attention inside each window; the last valid pixel's state stands for the window."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_pixels = color_table(args)
        self.layers = [Layer(args.image) for _ in range(args.image_layers)]
        if args.image.hidden_size != args.hidden_size:
            self.state_proj = Linear(args.image.hidden_size, args.hidden_size)
        if args.summary == "concat":
            self.summary = Summary(args)
        self._args, self._size = args, args.image

    def __call__(
        self, windows: mx.array, reads: mx.array, widths: mx.array | None = None, *, exact_savings: bool = True
    ) -> mx.array:
        """States of chosen pixels.

        Args:
            windows: int32 ``[U, P]``, pix tokens in window order, padded with K after the valid ones.
            reads: int32 ``[U, R]``, the pixel offsets whose state is wanted.
            widths: int32 ``[U]``, valid columns of each window; None: all are full.
            exact_savings: False computes every state in full, for comparison.

        Returns:
            ``[U, R, D]`` in the compute type, without a final norm.
        """
        table = self.table(exact_savings and self.projects(windows))
        return self.states(table, windows, reads, widths, exact_savings=exact_savings)

    def projects(self, windows: mx.array) -> bool:
        """Whether the first layer's projections of the whole table cost less than those of all pixels."""
        return bool(self.layers) and windows.size > self._args.num_pix + 1

    def table(self, project: bool) -> mx.array:
        """Embeddings of pix tokens, ``[K + 1, e]``; if wanted, beside them q, k, v of the first layer."""
        embeddings = self.embed_pixels()
        if not project:
            return embeddings
        projected = self.layers[0].project(embeddings.astype(self._args.compute_dtype))  # each [K + 1, n d]
        return mx.concatenate([embeddings, *(p.astype(mx.float32) for p in projected)], axis=-1)

    def states(
        self, table: mx.array, windows: mx.array, reads: mx.array, widths: mx.array | None = None, *,
        exact_savings: bool = True,
    ) -> mx.array:  # fmt: skip
        """States ``[U, R, D]`` of chosen pixels from a `table`, which may serve several calls; see `__call__`."""
        x, qkv = self._gather(table, windows)
        y = self._local(x, qkv, reads, widths, exact_savings)
        if "state_proj" in self:
            y = self.state_proj(y)
        if "summary" not in self:
            return y
        numbers = mx.arange(windows.shape[1])[None] if widths is None else pixel_numbers(widths, self._args.window_size)
        if widths is not None:
            x = mx.take_along_axis(x, mx.minimum(numbers, windows.shape[1] - 1)[..., None], axis=1)
        return y + self.summary(x, reads, numbers)

    def _local(
        self, x: mx.array, qkv: tuple[mx.array, ...], reads: mx.array, widths: mx.array | None, exact_savings: bool
    ) -> mx.array:
        """The layers: embeddings ``[U, P, e]`` to states ``[U, R, e]``."""
        options = self._rotary(widths)
        for n, layer in enumerate(self.layers):
            qkv = qkv if n == 0 else ()
            if exact_savings and n == len(self.layers) - 1:
                return self._read_out(layer, x, qkv, reads, options)
            x = layer.windowed(x, qkv, None, *options)
        return mx.take_along_axis(x, reads[..., None], axis=1)

    def _rotary(self, widths: mx.array | None) -> tuple[mx.array | None, mx.array | None]:
        """With a grid, rotary tables by place and the pixels' places, as `window_attention` takes them."""
        if not self._args.grid:
            return None, None
        side, size = self._args.window_size, self._size
        table = mx.array(window_table(side, size.head_size, size.rope_theta))
        return table, None if widths is None else pixel_places(widths, side)

    def _gather(self, table: mx.array, windows: mx.array) -> tuple[mx.array, tuple[mx.array, ...]]:
        """Embeddings ``[U, P, e]``, and q, k, v of the first layer if the table has them."""
        shape = self._size
        rows = table[windows].astype(shape.compute_dtype)
        queries, keys = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
        if table.shape[1] == shape.hidden_size:
            return rows, ()
        x, *qkv = mx.split(rows, np.cumsum([shape.hidden_size, queries, keys]).tolist(), axis=-1)
        return x, tuple(qkv)

    def _read_out(
        self, layer: Layer, x: mx.array, qkv: tuple[mx.array, ...], reads: mx.array, options: Any
    ) -> mx.array:
        """The last layer for the pixels that are read: ``R`` queries a window against all of its keys."""
        rows = mx.take_along_axis(x, reads[..., None], axis=1)  # [U, R, e]
        if not qkv:
            y = rms_norm(layer.attention_norm, x)
            k, v = layer.attention.keys_values(y)
            q = layer.attention.queries(mx.take_along_axis(y, reads[..., None], axis=1))
        else:
            q, k, v = qkv
            q = mx.take_along_axis(q, reads[..., None], axis=1)
        return layer.windowed(rows, (q, k, v), reads, *options)


def pixel_places(widths: mx.array, side: int) -> mx.array:
    """Where the pixels of windows with ``widths [U]`` valid columns lie in the full window, int32 ``[U, P]``.

    Pixel i is in row ``i // width`` and column ``i % width``. Padding after the last pixel is put at the last place.
    """
    number, width = mx.arange(side**2), widths[:, None]
    return mx.minimum(number // width * side + number % width, side**2 - 1)


def pixel_numbers(widths: mx.array, side: int) -> mx.array:
    """The reverse: the number of the pixel at each place, int32 ``[U, P]``; P or more where there is none."""
    place, width = mx.arange(side**2), widths[:, None]
    column = place % side
    return mx.where(column < width, place // side * width + column, side**2)
