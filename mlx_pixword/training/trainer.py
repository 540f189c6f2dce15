"""Pretraining, top down: open the run, then step, evaluate and save until done, or until asked to stop."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..common import files
from ..common.blas import release_memory
from ..common.cli import notice
from ..common.errors import PixWordError
from ..config.run import RunConfig
from ..data.loader import DataLost
from ..data.pack import Row
from ..data.skips import ENOUGH
from ..evaluation.meter import mean_losses
from ..model.batch import Batch, collate
from ..model.document import mask_prompt
from .checkpoint import newest_path, save_checkpoint
from .device import bound_cache, own_threads, takes_any_size
from .distributed import RankLost, find_ranks, own_part
from .heldout import evaluate_run, has_stopped_learning, publish_final
from .loss_scale import names_of, some_of
from .reporter import Reporter, services
from .run_folder import resume_command
from .setup import announce, open_run
from .signals import Stopper
from .state import Run, Stopwatch
from .step import is_finite, make_step

FAILING = 10  # documents in a row that cannot be read: it is waited whether they end or the data is lost


def pretrain(config: RunConfig) -> Path | None:
    """Train a model as configured.

    Returns:
        The model's directory, ``out/final``, or None if the run was asked to stop before; it can be resumed then.

    Raises:
        PixWordError: the run folder is taken, the data cannot be used, too many images are bad, or a disk is full.
    """
    services(config.train.report_to)  # a name that cannot be served ends the run before it begins
    ranks = find_ranks(config.train.rank_timeout)
    bound_cache(config.train)
    with own_threads(config.train), Stopper() as stopper, open_run(config, ranks) as run:
        try:
            if ranks.first:
                announce(run)
                return _train(run, stopper)
            _help(run, stopper)
            return None
        except DataLost as error:
            if ranks.first:
                run.recount(error.tried, error.skipped_bytes)
                _save(run)
            raise PixWordError(f"{error}; put the data back, then: {resume_command(run.folder)}") from error
        except RankLost as error:
            stopper.ignore_termination()
            raise PixWordError(f"{error}; then go on with: {resume_command(run.folder)}") from error
        except files.DiskTrouble as error:
            raise PixWordError(f"{error}; then go on with: {resume_command(run.folder)}") from error


def _train(run: Run, stopper: Stopper) -> Path | None:
    train, progress, start, timer = run.config.train, run.progress, time.perf_counter(), Stopwatch()
    stopper.saved = newest_path(run.folder / "checkpoints")
    with Reporter(run.folder, train.steps, progress.step, train.report_to, run.config.to_flat()) as reporter:
        enough = stopper.requested = has_stopped_learning(run)
        for step, stopping in _steps(run, stopper, reporter):
            done = step == train.steps
            stopper.requested |= 0 < 60 * train.minutes < time.perf_counter() - start  # all ranks hear of it
            if done or step % train.eval_every == 0:
                release_memory()  # evaluation allocates unlike a step: before it, or both would add up, and after it
                evaluate_run(run, reporter)
                release_memory()
                enough = has_stopped_learning(run)
                stopper.requested |= enough
            if done or stopping or step % train.save_every == 0 or timer.seconds > 60 * train.save_minutes > 0:
                stopper.saved = _save(run)
                timer.restart()
            if stopping and enough and not done:
                notice(f"no lower held-out loss since step {progress.best_step}, so the run ends")
                break
            if stopping and not done:
                notice(f"stopped after step {step}; go on with: {resume_command(run.folder)}")
                return None
    if run.skips.count:
        notice(f"skipped  {run.skips.count} bad images, named in {run.folder / 'skipped.jsonl'}")
    final = publish_final(run)
    notice(f"trained {progress.step} steps in {_clock(time.perf_counter() - start)}; model: {final}")
    run.skips.check(run.config.data.max_bad)  # a model that is finished is worth more than a complaint
    return final


def _help(run: Run, stopper: Stopper) -> None:
    """Train as a rank that writes nothing."""
    for _, stopping in _steps(run, stopper, None):
        if stopping:
            return


def _save(run: Run) -> Path:
    """Write a checkpoint of the last update; lines of metrics and skipped files that it counts on come before it."""
    for name in ("metrics.jsonl", "skipped.jsonl"):
        files.sync_file(run.folder / name)
    folder = run.folder / "checkpoints"
    return save_checkpoint(folder, run.last_saved_state, run.identity, run.model, run.optimizer, run.config.train.keep)


def _steps(run: Run, stopper: Stopper, reporter: Reporter | None) -> Iterator[tuple[int, bool]]:
    """Train step by step; yields the number of each when it is done, and whether any rank was asked to stop."""
    train, ranks = run.config.train, run.ranks
    step = make_step(run.model, run.optimizer, train, run.scale, ranks)
    places, watch = _places(run), Stopwatch(run.progress.seconds)
    for number in range(run.progress.step + 1, train.steps + 1):
        taken = [next(places) for _ in range(train.accumulate * ranks.size)]
        micro = [_collate(run, *place) for place in own_part(taken, ranks)]
        sums, norm = step(micro)
        mx.eval(run.model.state, run.optimizer.state, sums, norm)
        stopping, tokens = _told(run, stopper, micro)
        if is_finite(sums, norm):
            run.record_update(taken[-1][:2], tokens, sums)
        elif run.record_skip(taken[-1][:2], tokens):
            _name_skipped(run, micro)
        if number % train.log_every == 0 or number == train.steps:
            _log(run, reporter, float(np.array(norm)), watch)
        run.progress.seconds = watch.seconds
        run.snapshot()
        if reporter:
            reporter.step()
        with watch.paused():
            yield number, stopping


def _told(run: Run, stopper: Stopper, micro: Sequence[Batch]) -> tuple[bool, int]:
    """Whether any rank was asked to stop, and the words and pixels of all ranks' micro-batches."""
    tokens = sum(batch.num_tokens for batch in micro)
    stopping, total = np.array(run.ranks.total(mx.array([stopper.requested, tokens], mx.float32))).tolist()
    return bool(stopping), int(total)


def _name_skipped(run: Run, micro: Sequence[Batch]) -> None:
    """Name the documents of a step whose loss or gradient is not finite; end the run after too many in a row."""
    progress, most = run.progress, run.config.train.max_nonfinite
    names = names_of(micro)
    if run.ranks.first:
        line = {"step": progress.step, "documents": names}
        files.append_text(run.folder / "nonfinite.jsonl", json.dumps(line) + "\n")
    problem = f"step {progress.step}: the loss or its gradient is not finite, with {some_of(names)}"
    if progress.in_a_row < most:
        notice(f"{problem}; no update was made")
        return
    if run.ranks.first:
        _save(run)
    raise PixWordError(
        f"{problem}; {progress.in_a_row} steps in a row, all named in {run.folder / 'nonfinite.jsonl'}; "
        f"checkpoints/step-{run.last_saved_state.step} is from before them: lower --learning-rate or take "
        f"--dtype float32, then {resume_command(run.folder)}"
    )


def _log(run: Run, reporter: Reporter | None, norm: float, watch: Stopwatch) -> None:
    """Write a line of metrics on the steps since the last one, and begin the next."""
    progress = run.progress
    if reporter:
        metrics = mean_losses(progress.sums)
        seconds = watch.seconds
        metrics |= {"grad_norm": norm, "tokens_per_second": progress.tokens / seconds, "seconds": seconds}
        metrics |= {
            "learning_rate": _rate(run.optimizer),
            "peak_gb": mx.get_peak_memory() / 1e9,
            "active_gb": mx.get_active_memory() / 1e9,
            "skipped": run.skips.count,
            "nonfinite": progress.nonfinite,
        }
        reporter.write({"step": progress.step, "epoch": run.loader.epoch(progress.group), **metrics})
        reporter.show(**_postfix(metrics))
    progress.sums, progress.tokens = [0.0] * len(progress.sums), 0
    watch.restart()


def _places(run: Run) -> Iterator[tuple[int, int, list[Row]]]:
    """Rows of batches with their group and number. Bad images are judged as they come, once there are enough to judge.

    Few images are judged at the end of the first epoch.
    """
    progress = run.progress
    epoch = run.loader.epoch(progress.group) if progress.step else None
    for group, number, rows in run.loader.batches(progress.group, progress.batch):
        ended = epoch is not None and run.loader.epoch(group) != epoch
        if run.ranks.first and (ended or run.skips.tries >= ENOUGH) and run.loader.failed < FAILING:
            run.skips.check(run.config.data.max_bad)
        epoch = run.loader.epoch(group)
        yield group, number, rows


def _collate(run: Run, group: int, number: int, rows: list[Row]) -> Batch:
    args, train = run.model.args, run.config.train
    if run.config.adapt.mask_prompt:
        rows = [[mask_prompt(document) for document in row] for row in rows]
    return collate(
        rows, args, exact=takes_any_size(train),
        boundary=train.boundary_weight > 0, pixel_queries=train.pixel_queries, seed=(train.seed, 3, group, number),
    )  # fmt: skip


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
