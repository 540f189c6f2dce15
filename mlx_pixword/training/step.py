"""One optimiser step: gradients of one or more micro-batches, looked at, clipped, then applied.

On a CPU MLX runs most operations on one thread a stream, so micro-batches are dealt out to several streams.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from ..common.errors import PixWordError
from ..config.train import TrainArgs
from ..model.batch import Batch
from ..model.losses import LossSums, loss_sums, weighted_loss
from ..model.network import PixWordModel
from .chunked_gradient import Gradient, Objective, make_chunked_gradient
from .device import compiles, make_streams
from .distributed import Ranks
from .loss_scale import LossScale

Step = Callable[[Sequence[Batch]], tuple[LossSums, mx.array]]


def make_step(
    model: PixWordModel,
    optimizer: optim.Optimizer,
    args: TrainArgs,
    scale: LossScale | None = None,
    ranks: Ranks | None = None,
) -> Step:
    """Build the training step.

    Args:
        model: float32 weights.
        optimizer: of the model.
        args: how to compute the step.
        scale: of the loss; its ``value`` may change between steps.
        ranks: that compute the step together, each with micro-batches of its own; the update is the same on all.

    Returns:
        ``step(batches)``: updates the model with the gradient of all micro-batches together and returns the sums of
        the objective and the gradient's norm before clipping. If one of these is not finite, nothing is updated
        (`is_finite`). The update is not evaluated yet; gradients are, of as many micro-batches at a time as there are
        streams, and so are chunks of windows.
    """
    scale, ranks = scale or LossScale(), ranks or Ranks()
    if any(p.dtype != mx.float32 for p in dict(tree_flatten(model.trainable_parameters())).values()):
        raise PixWordError('training needs float32 weights; load the model with pw.load(..., dtype="float32")')
    objective, streams = _objective(model, args), make_streams(args)
    gradient: Gradient = nn.value_and_grad(model, objective)
    compiled = compiles(args.compile)

    def clip(grads: Any, inverse: mx.array) -> tuple[Any, mx.array]:
        clipped: tuple[Any, mx.array] = optim.clip_grad_norm(tree_map(lambda g: g * inverse, grads), args.clip_norm)
        return clipped

    def update(grads: Any) -> None:
        optimizer.update(model, grads)

    if compiled:
        optimizer.init(model.trainable_parameters())  # before compiling, so that its state is captured whole
        state = [model.state, optimizer.state]
        own = [model.state, mx.random.state]  # of adapters' dropout, which would be the same in every step
        gradient = mx.compile(gradient, inputs=own, outputs=own)
        clip, update = mx.compile(clip), mx.compile(update, inputs=state, outputs=state)
    chunked = make_chunked_gradient(model, objective, args.window_chunk, streams, compiled)
    if args.window_chunk:
        streams = streams[:1]  # chunks are dealt out to all of them, so micro-batches wait for each other

    def step(batches: Sequence[Batch]) -> tuple[LossSums, mx.array]:
        targets = ranks.total(mx.array(float(sum(batch.num_targets for batch in batches))))
        normalizer = targets / (ranks.size * scale.value)  # the mean over ranks becomes the sum over all batches
        total: Any = None
        for start in range(0, len(batches), len(streams)):
            if total is not None:
                mx.eval(total)  # or all micro-batches would be held at once
            for stream, batch in zip(streams, batches[start:], strict=False):
                with mx.stream(stream):
                    in_chunks = 0 < args.window_chunk < len(batch.windows)
                    (_, sums), grads = (chunked if in_chunks else gradient)(batch.arrays(), normalizer)
                total = (sums, grads) if total is None else tree_map(mx.add, total, (sums, grads))
        sums, grads = total
        if ranks.size > 1:
            sums, grads = LossSums(*ranks.total(mx.stack([*sums]))), ranks.average(grads)
        grads, norm = clip(grads, mx.array(1 / scale.value))
        mx.eval(sums, norm, grads)
        if is_finite(sums, norm):
            update(grads)
        return sums, norm

    return step


def is_finite(sums: LossSums, norm: mx.array) -> bool:
    """True if neither a loss nor the gradient's norm is infinite or not a number: the step made its update."""
    return bool(mx.all(mx.isfinite(mx.stack([*sums, norm]))).item())


def _objective(model: PixWordModel, args: TrainArgs) -> Objective:
    def objective(
        arrays: dict[str, mx.array], normalizer: mx.array, states: mx.array | None = None
    ) -> tuple[mx.array, LossSums]:
        batch = Batch(**arrays)  # type: ignore[arg-type]
        sums = loss_sums(*model.scored(batch, states), batch.counted, model.args.vocab_size)
        return weighted_loss(sums, normalizer, args.word_weight, args.boundary_weight, args.dense_weight), sums

    return objective
