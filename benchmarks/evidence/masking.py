"""Masked-patch pretraining for patch arms (after arXiv 2111.06377, in one block): predict pixels of hidden patches.

U  distinct windows    B  rows    L  elements of a row    D  hidden size    P  pixels a window

The language block sees the patches of an image, hidden ones as one learned state, and a linear layer predicts the pixel
values of the hidden ones. The block is causal, so a prediction rests on earlier patches and on the position; that is
what reading has too. The learned state and the linear layer are thrown away afterwards.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch
from mlx_pixword.model.layers import Linear
from mlx_pixword.model.network import PixWordModel, sequence_mask

from .fronts import PatchFront

SHARE = 0.5  # of the windows that are hidden


class MaskHead(nn.Module):
    """The state that hidden patches have, and the layer that predicts their pixel values."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden = 0.02 * mx.random.normal((args.hidden_size,))
        self.out = Linear(args.hidden_size, 3 * args.window_size**2)

    def loss(self, model: PixWordModel, batch: Batch, chosen: mx.array) -> mx.array:
        """Mean squared error of the pixel values of windows ``chosen [B, L]``, which are hidden from the model."""
        front = model.image_block
        assert isinstance(front, PatchFront)
        x = model.embed(batch, model.window_states(batch)[:, 0])
        x = mx.where(chosen[..., None], self.hidden, x)
        predicted = self.out(model.language(x, batch.positions, sequence_mask(batch)))  # [B, L, 3 P]
        windows = mx.maximum(batch.elements - model.args.vocab_size, 0)
        wanted = front.pixels(batch)[windows][..., : predicted.shape[-1]]
        errors = mx.mean((predicted - wanted) ** 2, axis=-1) * chosen
        return mx.sum(errors) / mx.maximum(mx.sum(chosen), 1)


class _Both(nn.Module):
    def __init__(self, model: PixWordModel, head: MaskHead) -> None:
        super().__init__()
        self.model, self.head = model, head


class MaskedPatches:
    """The head with an optimiser of its own."""

    def __init__(self, args: ModelArgs) -> None:
        self.head = MaskHead(args)
        self.optimizer = optim.AdamW(1e-3, betas=[0.9, 0.95], weight_decay=0.0)
        self.optimizer.init(self.head.trainable_parameters())

    def step(self, model: PixWordModel, batch: Batch, rng: np.random.Generator, rate: float) -> tuple[mx.array, Any]:
        """Update the head; returns the loss and the model's gradients."""
        chosen = mx.array(rng.random(batch.elements.shape) < SHARE) & (batch.elements >= model.args.vocab_size)
        both = _Both(model, self.head)
        loss, grads = nn.value_and_grad(both, lambda: self.head.loss(model, batch, chosen))()
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.head, grads["head"])
        return loss, grads["model"]
