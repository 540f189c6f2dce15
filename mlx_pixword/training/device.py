"""The device of a run: streams and threads on a CPU, freed memory and compiled steps on a GPU."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from ..common.blas import keep_memory, limit_threads
from ..common.cli import notice
from ..config.train import TrainArgs
from ..model.layers import checkpoint_layers
from ..model.network import PixWordModel


def bound_cache(args: TrainArgs) -> None:
    """Bound what MLX keeps of freed memory on a GPU; on a CPU MLX bounds it by 32 MB itself."""
    if mx.default_device() != mx.cpu:
        mx.set_cache_limit(int(args.free_memory_gb * 1e9))


def prepare_streams(args: TrainArgs) -> None:
    """Make MLX fast on a CPU, micro-batches side by side; call it before MLX evaluates anything.

    MLX walks a graph depth first beyond a width of 20 and so would fill one stream after the other; and OpenBLAS
    must leave the cores to the streams. Its threads are set in any case, so that an earlier run in this process changes
    nothing of this one's bytes.
    """
    if mx.default_device() == mx.cpu:
        keep_memory()
        limit_threads(1 if _uses_streams(args) else None)
    if _uses_streams(args):
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")


@contextmanager
def own_threads(args: TrainArgs) -> Iterator[None]:
    """`prepare_streams` for as long as a run goes on; afterwards OpenBLAS has its threads again."""
    prepare_streams(args)
    try:
        yield
    finally:
        limit_threads(None)


def _uses_streams(args: TrainArgs) -> bool:
    parts = 2 if args.window_chunk else args.accumulate
    return mx.default_device() == mx.cpu and min(args.streams, parts) > 1


def make_streams(args: TrainArgs) -> list[mx.Stream]:
    if _uses_streams(args):
        return [mx.new_stream(mx.cpu) for _ in range(args.streams)]
    return [mx.default_stream(mx.default_device())]


def takes_any_size(args: TrainArgs) -> bool:
    """Whether batches may have any size: nothing is compiled for a shape, so padding would be work for nothing."""
    return args.compile == "off" or (args.compile == "auto" and mx.default_device() == mx.cpu)


def compiles(wanted: str) -> bool:
    """Whether to compile: on a GPU by default; on Linux's CPU it needs a C++ compiler and measured no faster."""
    on_gpu = mx.default_device() != mx.cpu
    if wanted == "on" and not on_gpu and sys.platform == "linux" and shutil.which("g++") is None:
        notice("--compile on: MLX needs g++ to compile for the CPU and found none; running without")
        return False
    return wanted == "on" or (wanted == "auto" and on_gpu)


def recompute_layers(model: PixWordModel, args: TrainArgs) -> None:
    """Let layers be recomputed in the backward pass where the settings ask for it."""
    if args.grad_checkpoint:
        checkpoint_layers(model.layers)
    if args.grad_checkpoint and not args.window_chunk:  # chunks are computed again as a whole
        checkpoint_layers(model.image_block.layers)
