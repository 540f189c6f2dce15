"""The settings of a training run."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import PixWordError
from ..common.settings import setting


@dataclass(frozen=True)
class TrainArgs:
    """Training."""

    out: Path = setting(Path("runs/pretrain"), "folder of the run", metavar="DIR")
    steps: int = setting(1000, "optimiser steps")
    minutes: float = setting(0.0, "stop after so many minutes, with a checkpoint to go on from; 0: at the end alone")
    epochs: float | None = setting(None, "passes over the data, in place of --steps")
    seed: int = setting(0, "seed of the weights, the data's order and the samples")
    resume: bool = setting(False, "go on from the newest checkpoint in --out")
    optimizer: str = setting("adamw", "muon: Muon for hidden matrices, AdamW for the rest", choices=("adamw", "muon"))
    learning_rate: float = setting(3e-4, "peak learning rate of AdamW")
    muon_learning_rate: float = setting(0.02, "peak learning rate of Muon")
    image_lr_scale: float = setting(1.0, "learning rate of the image block's hidden matrices, relative to the others'")
    warmup: int = setting(100, "steps of linear warm-up (at most a tenth of the run)")
    schedule: str = setting(
        "cosine",
        "decay after the warm-up; wsd: none, until the last part of the run (--decay-share)",
        choices=("cosine", "linear", "wsd"),
    )
    decay_share: float = setting(0.2, "with wsd: share of the steps, at the end, over which the rate falls linearly")
    final_fraction: float = setting(0.02, "learning rate at the end, as a fraction of the peak")
    weight_decay: float = setting(0.01, "weight decay of hidden matrices")
    clip_norm: float = setting(1.0, "gradients are scaled down to this norm")
    max_nonfinite: int = setting(10, "steps in a row whose loss or gradient is not finite, after which the run ends")
    accumulate: int = setting(1, "micro-batches an optimiser step")
    streams: int = setting(2, "on a CPU, streams that micro-batches are dealt out to")
    word_weight: float = setting(1.0, "weight of the words in the loss")
    boundary_weight: float = setting(1.0, "weight of the windows' first pixels in the loss")
    pixel_queries: int = setting(0, "query pixels a window and predicted besides its first; 0 is the paper's objective")
    dense_weight: float = setting(1.0, "weight of the query pixels in the loss")
    zero_init: bool = setting(False, "start with output projections at zero")
    grad_checkpoint: bool = setting(False, "recompute layers in the backward pass to save memory")
    window_chunk: int = setting(0, "windows at a time in the image block, to bound memory; 0 for all")
    compile: str = setting("auto", "compile the step; auto: on a GPU", choices=("auto", "on", "off"))
    free_memory_gb: float = setting(2.0, "freed memory that MLX keeps for reuse on a GPU, at most")
    log_every: int = setting(10, "steps between lines of metrics.jsonl")
    eval_every: int = setting(200, "steps between evaluations on held-out documents")
    eval_documents: int = setting(256, "held-out documents, at most a tenth of the data")
    sample_images: int = setting(16, "held-out images that samples/ shows")
    draw_images: int = setting(4, "held-out images that samples/ shows completed and drawn, with --pixel-queries")
    save_every: int = setting(500, "steps between checkpoints")
    save_minutes: float = setting(30.0, "minutes after the last checkpoint that one is due in any case; 0 for never")
    keep: int = setting(3, "newest checkpoints that are kept; 0 for all")
    keep_best: bool = setting(True, "keep the model with the lowest held-out loss in best/")
    rank_timeout: float = setting(600.0, "seconds that a rank of several waits for the others before it ends")
    report_to: list[str] = setting([], "also report to tensorboard, wandb or both, if installed", metavar="NAMES")

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "streams", "max_nonfinite", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise PixWordError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            *("seed", "warmup", "eval_documents", "sample_images", "draw_images", "window_chunk", "keep"),
            *("weight_decay", "word_weight", "boundary_weight", "dense_weight", "pixel_queries", "final_fraction"),
            *("free_memory_gb", "save_minutes", "minutes"),
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise PixWordError(f"{name} must be 0 or positive, got {getattr(self, name)}")
        if not 0 < self.decay_share <= 1:
            raise PixWordError(f"decay_share must lie above 0 and at most at 1, got {self.decay_share}")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise PixWordError(f"epochs must be positive, got {self.epochs}")
        for name in ("learning_rate", "muon_learning_rate", "image_lr_scale", "clip_norm", "rank_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise PixWordError(f"{name} must be positive, got {getattr(self, name)}")
