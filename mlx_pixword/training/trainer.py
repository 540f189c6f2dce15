"""Pretraining, top down: open the run, then step, evaluate and save until done, or until asked to stop."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from .. import files
from ..batch import Batch, collate
from ..cli import notice
from ..config import RunConfig
from ..errors import PixWordError
from .checkpoint import random_state, save_checkpoint
from .evaluation import evaluate_run, publish_model
from .folder import resume_command
from .numbers import names_of, some_of
from .report import Reporter, services
from .run import Run, announce, open_run
from .samples import mean_losses
from .step import bound_cache, is_finite, make_step, prepare_streams, takes_any_size
from .stopping import Stopper


def pretrain(config: RunConfig) -> Path | None:
    """Train a model as configured.

    Returns:
        The model's directory, ``out/final``, or None if the run was asked to stop before; it can be resumed then.

    Raises:
        PixWordError: the run folder is taken, the data cannot be used, too many images are bad, or a disk is full.
    """
    services(config.train.report_to)  # a name that cannot be served ends the run before it begins
    prepare_streams(config.train)
    bound_cache(config.train)
    with Stopper() as stopper, open_run(config) as run:
        announce(run)
        try:
            return _train(run, stopper)
        except files.DiskTrouble as error:
            raise PixWordError(f"{error}; then go on with: {resume_command(run.folder)}") from error


def _train(run: Run, stopper: Stopper) -> Path | None:
    train, progress, start = run.config.train, run.progress, time.perf_counter()
    with Reporter(run.folder, train.steps, progress.step, train.report_to, run.config.to_flat()) as reporter:
        for step in _steps(run, reporter):
            done, stopping = step == train.steps, stopper.requested
            if done or step % train.eval_every == 0:
                evaluate_run(run, reporter)
            if done or stopping or step % train.save_every == 0:
                _save(run)
            if stopping and not done:
                notice(f"stopped after step {step}; go on with: {resume_command(run.folder)}")
                return None
    if run.skips.count:
        notice(f"skipped  {run.skips.count} bad images, named in {run.folder / 'skipped.jsonl'}")
    run.skips.check(run.config.data.max_bad)
    final: Path = publish_model(run, "final")
    notice(f"trained {train.steps} steps in {_clock(time.perf_counter() - start)}; model: {final}")
    return final


def _save(run: Run) -> None:
    """Write a checkpoint of the last update; lines of metrics and skipped files that it counts on come before it."""
    for name in ("metrics.jsonl", "skipped.jsonl"):
        files.sync_file(run.folder / name)
    folder = run.folder / "checkpoints"
    save_checkpoint(folder, run.good, run.identity, run.model, run.optimizer, run.config.train.keep)


def _steps(run: Run, reporter: Reporter) -> Iterator[int]:
    """Train step by step; yields the number of each when it is done."""
    train, progress = run.config.train, run.progress
    step = make_step(run.model, run.optimizer, train, run.scale)
    batches = _batches(run)
    since = time.perf_counter() - progress.seconds
    for number in range(progress.step + 1, train.steps + 1):
        micro, group, after = zip(*(next(batches) for _ in range(train.accumulate)), strict=True)
        sums, norm = step(micro)
        mx.eval(run.model.state, run.optimizer.state, sums, norm)
        progress.step, progress.group, progress.batch = number, group[-1], after[-1]
        progress.tokens += sum(batch.num_tokens for batch in micro)
        reporter.step()
        if is_finite(sums, norm):
            run.scale.after(True)
            progress.sums = (np.array(progress.sums) + np.array([value.item() for value in sums])).tolist()
            progress.in_a_row = 0
        else:
            _without_update(run, micro)
        if number % train.log_every == 0 or number == train.steps:
            _log(run, reporter, float(np.array(norm)), time.perf_counter() - since)
            progress.sums, progress.tokens, since = [0.0] * 6, 0, time.perf_counter()
        paused = time.perf_counter()
        progress.seconds = paused - since
        if not progress.in_a_row:
            _mark_good(run)
        yield number
        since += time.perf_counter() - paused  # evaluating and saving are no part of the training's speed


def _mark_good(run: Run) -> None:
    """Note where the run stands after an update: what a checkpoint will say, until the next one."""
    progress = run.progress
    progress.tried, progress.skipped_bytes, progress.random = run.skips.tries, run.skips.size, random_state()
    progress.scale, progress.scale_age = (run.scale.value, run.scale.good) if run.scale.dynamic else (None, 0)
    run.good = replace(progress)


def _without_update(run: Run, micro: Sequence[Batch]) -> None:
    """Count a step whose loss or gradient is not finite, and end the run when there are too many in a row."""
    progress, most = run.progress, run.config.train.max_nonfinite
    progress.nonfinite += 1
    if run.scale.after(False):  # float16 overflowed: the next step has half the scale
        return
    progress.in_a_row += 1
    names = names_of(micro)
    line = {"step": progress.step, "documents": names}
    files.append_text(run.folder / "nonfinite.jsonl", json.dumps(line) + "\n")
    problem = f"step {progress.step}: the loss or its gradient is not finite, with {some_of(names)}"
    if progress.in_a_row < most:
        notice(f"{problem}; no update was made")
        return
    _save(run)
    raise PixWordError(
        f"{problem}; {progress.in_a_row} steps in a row, all named in {run.folder / 'nonfinite.jsonl'}; "
        f"checkpoints/step-{run.good.step} is from before them: lower --learning-rate or take --dtype float32, then "
        f"{resume_command(run.folder)}"
    )


def _log(run: Run, reporter: Reporter, norm: float, seconds: float) -> None:
    """A line of metrics on the steps since the last one."""
    progress = run.progress
    metrics = mean_losses(progress.sums) | {"grad_norm": norm, "tokens_per_second": progress.tokens / seconds}
    metrics |= {
        "learning_rate": _rate(run.optimizer),
        "peak_gb": mx.get_peak_memory() / 1e9,
        "active_gb": mx.get_active_memory() / 1e9,
        "skipped": run.skips.count,
        "nonfinite": progress.nonfinite,
    }
    reporter.write({"step": progress.step, "epoch": run.loader.epoch(progress.group), **metrics})
    reporter.show(**_postfix(metrics))


def _batches(run: Run) -> Iterator[tuple[Batch, int, int]]:
    """Batches with the place of the next one; at the end of each epoch bad images are judged."""
    args, progress = run.model.args, run.progress
    epoch = run.loader.epoch(progress.group) if progress.step else None
    for group, number, rows in run.loader.batches(progress.group, progress.batch):
        if epoch is not None and run.loader.epoch(group) != epoch:
            run.skips.check(run.config.data.max_bad)
        epoch = run.loader.epoch(group)
        batch = collate(
            rows, args.vocab_size, args.num_pix, args.window_size, exact=takes_any_size(run.config.train),
            pixel_queries=run.config.train.pixel_queries, seed=(run.config.train.seed, 3, group, number),
        )  # fmt: skip
        yield batch, group, number + 1


def _rate(optimizer: optim.Optimizer) -> float:
    return float(optimizer.optimizers[-1].learning_rate.item())  # type: ignore[attr-defined]


def _postfix(metrics: dict[str, float]) -> dict[str, str]:
    shown = {
        name[:-5]: f"{metrics[name]:.3f}" for name in ("word_loss", "boundary_loss", "dense_loss") if name in metrics
    }
    shown["tok/s"] = f"{metrics['tokens_per_second']:,.0f}"
    return shown | ({"skipped": str(int(metrics["skipped"]))} if metrics["skipped"] else {})


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
