"""Other insides of arm 1b's image block, for ablations; they predict words alone.

U  distinct windows    P  pixels a window    w  window side    e  width of the image block    D  hidden size
B  rows, an image each        N  windows of an image

Windows hold colours of 24 bits, as those of patch arms do. With one layer "both" is the function of the plain block,
because the last pixel of a window sees all of it anyway.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch
from mlx_pixword.model.image_block import ImageBlock
from mlx_pixword.model.layers import Linear
from mlx_pixword.ops.rotary import window_table
from mlx_pixword.pixels.colors import fold_colors

from .arms import Arm
from .colors import NO_PIXEL, channels, levels


class TokenFront(ImageBlock):
    """The image block on windows of 24-bit colours, of which the last valid pixel's state is read."""

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        super().__init__(replace(args, fold_factor=arm.fold))

    def __call__(self, batch: Batch) -> mx.array:  # type: ignore[override]
        """States ``[U, D]``."""
        reads = batch.lengths[:, None] - 1
        return self.states(self.table(project=False), batch.windows, reads, batch.widths)[:, 0]

    def _gather(self, table: mx.array, windows: mx.array) -> tuple[mx.array, tuple[mx.array, ...]]:
        return self.embedded(table, windows), ()

    def embedded(self, table: mx.array, colors: mx.array) -> mx.array:
        """Embeddings ``[..., e]`` of 24-bit colours ``[...]``."""
        return table[fold_colors(levels(colors), self._args.fold_factor)].astype(self._size.compute_dtype)


class LinearColorFront(TokenFront):
    """A linear map of red, green and blue in the place of folded tokens with embeddings of their own."""

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        super().__init__(arm, args)
        self.pop("embed_pixels")
        self.embed_colors = Linear(3, args.image.hidden_size)

    def table(self, project: bool) -> mx.array:
        """There is none."""
        return mx.zeros((0,))

    def embedded(self, table: mx.array, colors: mx.array) -> mx.array:
        return self.embed_colors(channels(colors))


class BothWaysFront(TokenFront):
    """Every pixel sees its whole window, those behind it too."""

    def _local(
        self, x: mx.array, qkv: tuple[mx.array, ...], reads: mx.array, widths: mx.array | None, exact_savings: bool
    ) -> mx.array:
        table, places = self._rotary(widths)
        assert table is not None  # of models with a grid, as arm 1b is
        rotary = table if places is None else table[:, places][:, :, None]  # [2, (U, 1,) P, d / 2]
        seen = (mx.arange(x.shape[1]) <= reads)[:, None, None]  # [U, 1, 1, P]: pixels, and no padding
        for layer in self.layers:
            x = layer(x, rotary, seen)
        return mx.take_along_axis(x, reads[..., None], axis=1)


class WholeImageFront(TokenFront):
    """Full attention: the last pixel of a window sees all pixels of its image up to itself, window after window."""

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        super().__init__(arm, args)
        if len(self.layers) != 1:
            raise PixWordError(f"full attention is for one image layer, got {len(self.layers)}")
        self._side = args.window_size

    def __call__(self, batch: Any) -> mx.array:  # type: ignore[override]
        """States ``[U, D]``; ``batch.images`` are whole, and ``windows[:, 0]`` says where a window lies in them all."""
        images, side = batch.images, self._side
        count, height, width = images.shape
        down, across = height // side, width // side
        windows = images.reshape(count, down, side, across, side).swapaxes(2, 3).reshape(count, down * across, side**2)
        valid = windows < NO_PIXEL  # [B, N, P]
        ends = mx.max(mx.where(valid, mx.arange(side**2), 0), axis=-1)  # [B, N]: the last pixel's place in its window
        x = self.embedded(self.embed_pixels(), windows)  # [B, N, P, e]
        y = self._read(x.flatten(1, 2), valid.flatten(1), ends + side**2 * mx.arange(ends.shape[1]), across)
        y = self.state_proj(y) if "state_proj" in self else y  # [B, N, D]
        if "summary" in self:
            numbers = mx.where(valid, mx.arange(side**2), side**2).flatten(0, 1)
            y = y + self.summary(x.flatten(0, 1), ends.reshape(-1, 1), numbers).reshape(y.shape)
        return y.flatten(0, 1)[mx.minimum(batch.windows[:, 0], y.shape[0] * y.shape[1] - 1)]

    def _read(self, x: mx.array, valid: mx.array, ends: mx.array, across: int) -> mx.array:
        """The layer at ``ends [B, N]`` of pixels ``x [B, N P, e]`` in window order, ``[B, N, e]``."""
        side, number = self._side, mx.arange(x.shape[1])
        window, place = number // side**2, number % side**2
        row, column = window // across * side + place // side, window % across * side + place % side
        largest = self._args.image_size
        table = mx.array(window_table(largest, self._size.head_size, self._size.rope_theta))
        rotary = table[:, row * largest + column]  # [2, N P, d / 2], by row and column in the image
        mask = (valid[:, None] & (number <= ends[..., None]))[:, None]  # [B, 1, N, N P]
        layer = self.layers[0]
        return layer.read_out(x, ends, rotary[:, ends][:, :, None], rotary[:, None, None], mask)


PIXEL_FRONTS = {"rgb": LinearColorFront, "both": BothWaysFront, "whole": WholeImageFront}
