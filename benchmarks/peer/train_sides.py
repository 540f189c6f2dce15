"""The two programs that train_step.py compares, each as a side that reads a job and makes optimiser steps.

Batches are laid out when a job is read, outside the time that is measured. A step is complete when parameters,
optimiser state, loss and gradient norm have been computed.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from shared.rounds import memory, serve
from shared.workload import Job, read_job

from mlx_pixword.model.batch import Batch

SEED = 0  # of the query pixels
Measures = dict[str, float]


class Side:
    """A program with a job; `step` makes one optimiser step on the job's batch of that number."""

    step: Callable[[int], tuple[Any, Any]]  # loss and gradient norm

    def __init__(self, job: Job) -> None:
        self.job = job
        self.before = memory()["now"]  # when weights and batches are there, and no step has been made

    def measure(self, steps: int) -> Measures:
        """Make steps: seconds, images, pixels, memory in bytes, and the first step's loss and gradient norm."""
        start = time.perf_counter()
        results = [self.step(n % len(self.job.steps)) for n in range(steps)]
        seconds = time.perf_counter() - start
        documents = [d for n in range(steps) for d in self.job.steps[n % len(self.job.steps)]]
        return {
            "seconds": seconds, "images": len(documents), "pixels": sum(d.num_pixels for d in documents),
            "loss": results[0][0], "norm": results[0][1], "before": self.before, "peak": memory()["peak"],
        }  # fmt: skip


def ours(job: Job, weights: dict[str, np.ndarray], settings: dict[str, Any], plain: bool = False) -> Side:
    """The library's training step, as `pretrain` makes it; ``plain``: without the image block's exact savings."""
    import mlx.core as mx

    from mlx_pixword.model.losses import weighted_loss
    from mlx_pixword.model.network import PixWordModel
    from mlx_pixword.training.device import prepare_streams, recompute_layers
    from mlx_pixword.training.optimizer import make_optimizer
    from mlx_pixword.training.step import make_step

    class Plain(PixWordModel):
        def window_states(self, batch: Batch, exact_savings: bool = False) -> mx.array:
            return super().window_states(batch, exact_savings=False)

    prepare_streams(job.train)
    model = (Plain if plain else PixWordModel)(job.model, job.train.pixel_queries)
    recompute_layers(model, job.train)
    model.load_weights([(name, mx.array(weight)) for name, weight in weights.items()])
    batches = mlx_batches(job)
    mx.eval(model.parameters(), [batch.arrays() for step in batches for batch in step])
    optimizer = make_optimizer(job.train)
    update, train = make_step(model, optimizer, job.train), job.train
    side = Side(job)

    def step(number: int) -> tuple[Any, Any]:
        sums, norm = update(batches[number])
        normalizer = mx.array(float(sum(batch.num_targets for batch in batches[number])))
        loss = weighted_loss(sums, normalizer, train.word_weight, train.boundary_weight, train.dense_weight)
        mx.eval(model.state, optimizer.state, loss, norm)
        return loss.item(), norm.item()

    side.step = step
    return side


def mlx_batches(job: Job) -> list[list[Batch]]:
    """Micro-batches of every step, collated as in training."""
    from mlx_pixword.model.batch import collate
    from mlx_pixword.training.device import takes_any_size

    args, queries = job.model, job.train.pixel_queries
    return [
        [
            collate(
                [[document] for document in part], args,
                exact=takes_any_size(job.train), pixel_queries=queries, seed=(SEED, number, micro),
            )
            for micro, part in enumerate(split(step, job.train.accumulate))
        ]
        for number, step in enumerate(job.steps)
    ]  # fmt: skip


def peer(job: Job, weights: dict[str, np.ndarray], settings: dict[str, Any], compiled: bool = False) -> Side:
    """The paper's program in PyTorch; ``compiled``: as `torch.compile` makes it faster."""
    import torch

    from mlx_pixword.common.blas import keep_memory
    from peer.padding import LossWeights, square_batch
    from peer.torch_model import Peer, load_weights, make_optimizer, tensors, train_step

    keep_memory()  # as our side does: it spares the peer most of its page faults too
    torch.set_num_threads(settings["threads"])
    model = Peer(job.model)
    load_weights(model, weights)
    train, queries = job.train, job.train.pixel_queries
    parts = LossWeights(train.word_weight, train.boundary_weight, train.dense_weight)
    batches = [
        [
            square_batch([d for d, _ in part], job.model, queries, [key for _, key in part], parts)
            for part in split(list(zip(step, draw_keys(job, n), strict=True)), settings["peer_micro"])
        ]
        for n, step in enumerate(job.steps)
    ]
    normalizers = [float(sum(batch.num_targets for batch in step)) for step in batches]
    ready = [[tensors(batch) for batch in step] for step in batches]
    optimizer = make_optimizer(model, train)
    run: Any = torch.compile(model) if compiled else model
    side = Side(job)
    side.step = lambda n: train_step(run, optimizer, ready[n], normalizers[n], train.clip_norm)
    return side


def draw_keys(job: Job, number: int) -> list[tuple[int, int, int, int]]:
    """Seeds of the documents' draws in a step, the same as `mlx_batches` has them."""
    parts = split(job.steps[number], job.train.accumulate)
    return [(SEED, number, micro, n) for micro, part in enumerate(parts) for n in range(len(part))]


def split(values: Sequence[Any], count: int) -> list[list[Any]]:
    """Values in ``count`` parts of about the same length, in order; fewer where there are fewer values."""
    ends = [len(values) * n // count for n in range(count + 1)]
    return [list(values[a:b]) for a, b in pairwise(ends) if a < b]


MAKERS: dict[str, Callable[..., Side]] = {
    "ours": ours, "ours-plain": partial(ours, plain=True),
    "peer": peer, "peer-compiled": partial(peer, compiled=True),
}  # fmt: skip


def work(name: str) -> None:
    """A worker's life: read jobs and make steps, as it is asked."""
    sides: list[Side] = []

    def answer(request: dict[str, Any]) -> Measures:
        if "job" in request:
            job = read_job(Path(request["job"]))
            sides[:] = [MAKERS[name](*job)]
            return {"images": sum(map(len, job[0].steps))}
        return sides[0].measure(request["steps"])

    serve(answer)
