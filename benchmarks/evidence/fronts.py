"""Front ends of the patch arms, and a model that has one in place of the image block.

U  distinct windows    P  pixels a window    w  window side    D  hidden size    V  words

A patch arm's windows hold colours of 24 bits, ``r + 256 g + 65536 b``, which the package calls pix tokens of fold
factor 1; so batches, packing of windows, positions and reading are the package's own.
"""

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch
from mlx_pixword.model.document import Document, ImageTokens
from mlx_pixword.model.image_block import Table
from mlx_pixword.model.layers import Layer, Linear
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import from_windows

from .arms import Arm
from .colors import NO_PIXEL, channels
from .pixel_fronts import PIXEL_FRONTS

BOTTOM = 4  # stride of the convolutional stem


@dataclass(frozen=True, eq=False)
class ImageBatch(Batch):
    """A batch with whole images, int32 ``[images, height, width]`` of 24-bit colours, `NO_PIXEL` beyond their edges."""

    images: mx.array | None = None


class PatchFront(nn.Module):
    """Raw pixel values of a window, its edge repeated where it is ragged, and which rows and columns are valid.

    ``embed`` maps them to D, or to ``width`` and ``out_proj`` to D: without a nonlinearity between for "linear", so
    that the function is the same and only the number of parameters grows; with ReLU for "mlp".
    """

    layers = ()  # none inside a window

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        super().__init__()
        side = args.window_size
        self.embed = Linear(3 * side**2 + 2 * side, arm.width or args.hidden_size)
        if arm.width:
            self.out_proj = Linear(arm.width, args.hidden_size)
        self._side, self._fold, self._mlp = side, arm.fold, arm.front == "mlp"

    def pixels(self, batch: Batch) -> mx.array:
        """What ``embed`` is given, ``[U, 3 P + 2 w]``."""
        side, place = self._side, mx.arange(self._side**2)
        width = mx.full(batch.lengths.shape, side) if batch.widths is None else batch.widths
        width = width[:, None]  # [U, 1]
        height = batch.lengths[:, None] // width
        row, column = place // side, place % side
        source = mx.minimum(row, height - 1) * width + mx.minimum(column, width - 1)  # [U, P]
        values = channels(mx.take_along_axis(batch.windows, source, axis=1), self._fold)
        line = mx.arange(side)
        return mx.concatenate([values.flatten(1), line < height, line < width], axis=1)

    def __call__(self, batch: Batch) -> mx.array:
        """States ``[U, D]``."""
        x = self.embed(self.pixels(batch))
        if self._mlp:
            x = mx.maximum(x, 0)
        return self.out_proj(x) if "out_proj" in self else x


class ConvFront(nn.Module):
    """Two 3x3 convolutions of stride 2, then 1x1 (arXiv 2106.14881, at stride 4), on whole images.

    Layer norm takes the place of batch norm, so that a reading does not depend on its batch. Convolutions are products
    with gathered neighbours: MLX's own are slow on a CPU.
    """

    layers = ()  # none inside a window

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        super().__init__()
        half = arm.width // 2
        self.embed = Linear(9 * 4, half)
        self.middle_norm, self.last_norm = nn.LayerNorm(half), nn.LayerNorm(arm.width)
        self.middle_proj = Linear(9 * half, arm.width)
        self.out_proj = Linear(arm.width, args.hidden_size)
        self._fold = arm.fold

    def __call__(self, batch: Batch) -> mx.array:
        """States ``[U, D]``; ``windows[:, 0]`` says where in the map of features a window lies."""
        assert isinstance(batch, ImageBatch) and batch.images is not None
        valid = batch.images < NO_PIXEL
        values = channels(batch.images, self._fold) * valid[..., None]
        x = mx.concatenate([values, valid[..., None].astype(mx.float32)], axis=-1)  # [images, height, width, 4]
        x = mx.maximum(self.middle_norm(self.embed(_neighbors(x))), 0)
        x = mx.maximum(self.last_norm(self.middle_proj(_neighbors(x))), 0)
        places = mx.minimum(batch.windows[:, 0], x.shape[0] * x.shape[1] * x.shape[2] - 1)
        return self.out_proj(x.reshape(-1, x.shape[-1])[places])


def _neighbors(x: mx.array) -> mx.array:
    """3x3 neighbourhoods at stride 2, ``[n, height, width, c]`` to ``[n, height / 2, width / 2, 9 c]``, even sizes."""
    height, width = x.shape[1:3]
    x = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return mx.concatenate([x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)], axis=-1)


class PatchModel(PixWordModel):
    """The same language block behind a front end; its softmax covers the V words alone."""

    def __init__(self, arm: Arm, args: ModelArgs) -> None:
        nn.Module.__init__(self)
        self.embed_words = Table(args.vocab_size, args.hidden_size)
        fronts: dict[str, Any] = {"conv": ConvFront, **PIXEL_FRONTS}
        self.image_block: Any = fronts.get(arm.front, PatchFront)(arm, args)
        self.layers = [Layer(args) for _ in range(args.num_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.head = Table(args.vocab_size, args.hidden_size)
        self._args, self._pixel_queries = args, 0

    def window_states(self, batch: Batch, *_: Any, **__: Any) -> mx.array:
        """States ``[U, 1, D]``."""
        return self.image_block(batch)[:, None]

    def states_in_chunks(self, batch: Batch) -> mx.array:
        """The same: a front end needs little memory."""
        return self.window_states(batch)


def with_images(documents: list[Document], window: int) -> tuple[list[Document], np.ndarray]:
    """Documents whose windows say where they lie in the map of features, and the images ``[n, height, width]``."""
    images = [image for document in documents for image in document.images]
    height = -(-max(image.height for image in images) // window) * window
    width = -(-max(image.width for image in images) // window) * window
    colors = np.full((len(images), height, width), NO_PIXEL, np.int32)
    placed, number = list[Document](), 0
    for document in documents:
        own = list[ImageTokens]()
        for image in document.images:
            pixels = from_windows(image.windows, image.height, image.width, window)
            colors[number, : image.height, : image.width] = pixels
            rows, columns = image.grid
            row, column = np.divmod(np.arange(rows * columns), columns)
            places = (number * (height // window) + row) * (width // window) + column
            own.append(replace(image, windows=np.repeat(places[:, None].astype(np.int32), window**2, axis=1)))
            number += 1
        placed.append(replace(document, images=tuple(own)))
    return placed, colors
