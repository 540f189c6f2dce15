"""Optimisers and schedules, all from mlx: Muon for hidden matrices and AdamW for the rest, or AdamW alone."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..config.train import TrainArgs
from ..model.network import PixWordModel

Schedule = Callable[[float, TrainArgs], Any]


def make_schedule(peak: float, args: TrainArgs) -> Callable[[mx.array], mx.array]:
    """Learning rate by step: linear warm-up, then cosine or linear decay to ``final_fraction`` of the peak.

    With wsd (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395) the rate is the peak until the last part of the
    run. What comes before does not depend on the number of steps, so a long run can be ended early from any checkpoint.
    """
    warmup = min(args.warmup, args.steps // 10)
    decay, end = max(1, args.steps - warmup), peak * args.final_fraction
    if args.schedule == "wsd":
        falling = _stable_then_falling(peak, end, decay, max(1, min(decay, round(args.decay_share * args.steps))))
    elif args.schedule == "cosine":
        falling = optim.cosine_decay(peak, decay, end)
    else:
        falling = optim.linear_schedule(peak, end, decay)
    return optim.join_schedules([optim.linear_schedule(0.0, peak, warmup), falling], [warmup]) if warmup else falling


def _stable_then_falling(peak: float, end: float, steps: int, over: int) -> Callable[[mx.array], mx.array]:
    falling, start = optim.linear_schedule(peak, end, over), steps - over

    def rate(step: mx.array) -> mx.array:
        return falling(mx.maximum(step, start) - start)  # steps are unsigned

    return rate


def make_optimizer(args: TrainArgs, schedule: Schedule | None = None) -> optim.Optimizer:
    """The optimiser of a run; weight decay falls on hidden matrices alone, not on tables and norms.

    Matrices of the image block have an optimiser of their own where their step has another size: all of the language
    block's states are made of theirs, and while these turn quickly nothing above can be learnt.

    ``schedule`` makes a learning rate, or one by step, of a peak and the settings; None: `make_schedule`.
    """
    rate = schedule or make_schedule
    rest = optim.AdamW(rate(args.learning_rate, args), betas=[0.9, 0.95], weight_decay=0.0)

    def hidden(scale: float) -> optim.Optimizer:
        if args.optimizer == "muon":
            return optim.Muon(rate(scale * args.muon_learning_rate, args), weight_decay=args.weight_decay)
        return optim.AdamW(rate(scale * args.learning_rate, args), betas=[0.9, 0.95], weight_decay=args.weight_decay)

    if args.image_lr_scale == 1:
        return optim.MultiOptimizer([hidden(1.0), rest], [lambda name, _: is_hidden_matrix(name)])
    return optim.MultiOptimizer(
        [hidden(args.image_lr_scale), hidden(1.0), rest],
        [lambda name, _: is_hidden_matrix(name) and name.startswith("image_block."),
         lambda name, _: is_hidden_matrix(name)],
    )  # fmt: skip


def is_hidden_matrix(name: str) -> bool:
    """True for the projections of attention and feed-forward layers, and from the image block to the language block.

    Not for the summary's, which embed the colours of a window: they stand where tables of tokens stand, and of such a
    matrix AdamW finds the few directions that matter, where Muon's step is as large in all.
    """
    return name.endswith("_proj.weight") and ".summary." not in name


def zero_output_projections(model: PixWordModel) -> None:
    """Set attention outputs, feed-forward outputs and the head to zero: every layer starts as the identity.

    With a concatenated summary the projection of the last state is zero too: the colours of a window are there from the
    start, and what its layers make of them comes in as it is learnt.
    """
    for layer in [*model.layers, *model.image_block.layers]:
        for projection in (layer.attention.o_proj, layer.ffn.down_proj):
            projection.weight = mx.zeros_like(projection.weight)
    if model.args.summary == "concat" and "state_proj" in model.image_block:
        model.image_block.state_proj.weight = mx.zeros_like(model.image_block.state_proj.weight)
    for name in model.head.parameters():
        model.head[name] = mx.zeros_like(model.head[name])
