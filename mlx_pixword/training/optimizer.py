"""Optimisers and schedules, all from mlx: Muon for hidden matrices and AdamW for the rest, or AdamW alone."""

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim

from ..config.train import TrainArgs
from ..model.network import PixWordModel


def make_schedule(peak: float, args: TrainArgs) -> Callable[[mx.array], mx.array]:
    """Learning rate by step: linear warm-up, then cosine or linear decay to ``final_fraction`` of the peak."""
    warmup = min(args.warmup, args.steps // 10)
    decay, end = max(1, args.steps - warmup), peak * args.final_fraction
    falling = (
        optim.cosine_decay(peak, decay, end) if args.schedule == "cosine" else optim.linear_schedule(peak, end, decay)
    )
    return optim.join_schedules([optim.linear_schedule(0.0, peak, warmup), falling], [warmup]) if warmup else falling


def make_optimizer(args: TrainArgs) -> optim.Optimizer:
    """The optimiser of a run; weight decay falls on hidden matrices alone, not on tables and norms."""
    rest = optim.AdamW(make_schedule(args.learning_rate, args), betas=[0.9, 0.95], weight_decay=0.0)
    hidden: optim.Optimizer
    if args.optimizer == "muon":
        hidden = optim.Muon(make_schedule(args.muon_learning_rate, args), weight_decay=args.weight_decay)
    else:
        hidden = optim.AdamW(make_schedule(args.learning_rate, args), betas=[0.9, 0.95], weight_decay=args.weight_decay)
    return optim.MultiOptimizer([hidden, rest], [lambda name, _: is_hidden_matrix(name)])


def is_hidden_matrix(name: str) -> bool:
    """True for the projections of attention and feed-forward layers."""
    return name.endswith("_proj.weight")


def zero_output_projections(model: PixWordModel) -> None:
    """Set attention outputs, feed-forward outputs and the head to zero: every layer starts as the identity."""
    for layer in [*model.layers, *model.image_block.layers]:
        for projection in (layer.attention.o_proj, layer.ffn.down_proj):
            projection.weight = mx.zeros_like(projection.weight)
    for name in model.head.parameters():
        model.head[name] = mx.zeros_like(model.head[name])
