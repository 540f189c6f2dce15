"""Pretraining, top down: open the data, build the model, then step, evaluate and save until done."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..batch import Batch, Document, collate
from ..cli import notice
from ..config import RunConfig
from ..data.cache import TokenCache
from ..data.loader import Encoder, Loader, SkipLog
from ..data.open import Split, check_vocabulary, choose_tokenizer, has_text, open_split
from ..errors import PixWordError
from ..hub import save_model
from ..model import PixWordModel, num_parameters
from ..processor import Processor
from ..tokenizer import Tokenizer
from .checkpoint import Position, load_checkpoint, newest_checkpoint, save_checkpoint
from .optimizer import make_optimizer, zero_output_projections
from .report import Reporter, keep_metrics, plot_losses, services
from .samples import LossMeter, draw_images_page, draw_page, heldout_documents, mean_losses, read_documents, readable
from .step import make_step, prepare_streams, takes_any_size

MOST_PIXELS = 4096  # of an image that is drawn for samples/: a second or two on a CPU, once a few steps


@dataclass
class Run:
    """What a run consists of while it goes on."""

    config: RunConfig
    folder: Path
    model: PixWordModel
    optimizer: optim.Optimizer
    tokenizer: Tokenizer | None
    loader: Loader
    skips: SkipLog
    heldout: list[Document]


def pretrain(config: RunConfig) -> Path:
    """Train a model as configured and return its directory, ``out/final``.

    Raises:
        PixWordError: the run folder is taken, the data cannot be used, or too many images are bad.
    """
    folder = _claim_folder(config)
    services(config.train.report_to)  # a name that cannot be served ends the run before it begins
    prepare_streams(config.train)
    run = _build(config, folder)
    position = _restore(run)
    _announce(run, position)
    start = time.perf_counter()
    with Reporter(folder, config.train.steps, position.step, config.train.report_to, config.to_flat()) as reporter:
        for after in _steps(run, position, reporter):
            done = after.step == config.train.steps
            if done or after.step % config.train.eval_every == 0:
                evaluate_run(run, after.step, reporter)
            if done or after.step % config.train.save_every == 0:
                save_checkpoint(folder / "checkpoints", after, run.model, run.optimizer)
    if run.skips.count:
        notice(f"skipped  {run.skips.count} bad images, named in {folder / 'skipped.jsonl'}")
    run.skips.check(config.data.max_bad)
    final = _finish(run)
    notice(f"trained {config.train.steps} steps in {_clock(time.perf_counter() - start)}; model: {final}")
    return final


# ------------------------------------------------------------------------------------------------ set-up


def _claim_folder(config: RunConfig) -> Path:
    folder = config.train.out
    if folder.exists() and not folder.is_dir():
        raise PixWordError(f"--out {folder} is a file; choose a folder")
    if not config.train.resume and folder.exists() and any(folder.iterdir()):
        raise PixWordError(f"--out {folder} holds a run already; go on with --resume or choose another folder")
    if config.train.resume and not (folder / "config.yaml").exists():
        notice(f"--resume: {folder} holds no run yet, starting at step 0")
    return folder


def _build(config: RunConfig, folder: Path) -> Run:
    split = open_split(config.data, config.train.seed, config.train.eval_documents)
    tokenizer = _tokenizer(config, folder, split)
    args = replace(config.model, vocab_size=check_vocabulary(tokenizer, config.model.vocab_size))
    config = replace(config, model=args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "samples").mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise PixWordError(f"--out {folder}: {error.strerror}") from error
    if tokenizer is not None:
        (folder / tokenizer.filename).write_bytes(tokenizer.contents)
    skips = SkipLog(folder / "skipped.jsonl")
    encoder = Encoder(args, tokenizer, skips, TokenCache(config.data.cache, args) if config.data.cache else None)
    loader = _loader(config, encoder, split.train, split.train_indices, config.data.caption_first)
    heldout_loader = _loader(config, encoder, split.heldout, split.heldout_indices)
    heldout = heldout_documents(heldout_loader, split.heldout_indices if split.heldout_indices is not None else [])
    for source in split.train:
        for name, reason in source.unusable:
            skips.skip(name, reason, bad=False)
    mx.random.seed(config.train.seed)
    model = PixWordModel(args)
    model.pixel_queries = config.train.pixel_queries
    if config.train.zero_init:
        zero_output_projections(model)
    mx.eval(model.parameters())
    return Run(config, folder, model, make_optimizer(config.train), tokenizer, loader, skips, heldout)


def _tokenizer(config: RunConfig, folder: Path, split: Split) -> Tokenizer | None:
    """The run's tokenizer: of the run that is resumed, or as the data settings say."""
    if config.train.resume:
        saved = [p for p in (folder / "tokenizer.model", folder / "tokenizer.json") if p.exists()]
        config = replace(config, data=replace(config.data, tokenizer=saved[0])) if saved else config
    tokenizer = choose_tokenizer(config.data, split.train, config.model.vocab_size)
    if tokenizer is None and has_text(split.train):
        notice("vocab_size 6 leaves no room for words: the texts are dropped and the run is on images alone")
    return tokenizer


def _loader(
    config: RunConfig, encoder: Encoder, sources: Sequence[Any], keep: np.ndarray | None, caption_first: float = 0.0
) -> Loader:
    d = config.data
    return Loader(
        sources, encoder, seed=config.train.seed, batch_tokens=d.batch_tokens, pack=d.pack, threads=d.threads,
        group_size=d.group_size, keep=keep, caption_first=caption_first,
    )  # fmt: skip


def _restore(run: Run) -> Position:
    """The position of the newest checkpoint, loaded, or the beginning."""
    if not run.config.train.resume:
        return Position()
    path = newest_checkpoint(run.folder / "checkpoints")
    if path is None:
        return Position()
    position = load_checkpoint(path, run.model, run.optimizer)
    keep_metrics(run.folder, position.step)
    notice(f"resuming from {path}")
    return position


def _announce(run: Run, position: Position) -> None:
    c = run.config
    names = ", ".join(source.name for source in run.loader.sources)
    size = (
        f"{num_parameters(run.model) / 1e6:.2f}M parameters, {c.model.vocab_size} words + {c.model.num_pix} pix tokens"
    )
    notice(f"model    {c.preset}, {size}")
    notice(f"data     {names}; {len(run.heldout)} documents held out")
    notice(f"run      {run.folder}, steps {position.step} to {c.train.steps}, on {mx.default_device().type.name}")


# ----------------------------------------------------------------------------------------------- training


def _steps(run: Run, position: Position, reporter: Reporter) -> Iterator[Position]:
    """Train step by step; yields the position after each."""
    train = run.config.train
    step = make_step(run.model, run.optimizer, train)
    batches = _batches(run, position)
    window, tokens, since = np.zeros(6), 0, time.perf_counter()
    for number in range(position.step + 1, train.steps + 1):
        micro, group, after = zip(*(next(batches) for _ in range(train.accumulate)), strict=True)
        sums, norm = step(micro)
        mx.eval(run.model.state, run.optimizer.state, sums, norm)
        window += np.array([value.item() for value in sums])
        tokens += sum(batch.num_tokens for batch in micro)
        reporter.step()
        if number % train.log_every == 0 or number == train.steps:
            seconds, since = time.perf_counter() - since, time.perf_counter()
            metrics = mean_losses(window) | {"grad_norm": norm.item(), "tokens_per_second": tokens / seconds}
            metrics |= {
                "learning_rate": _rate(run.optimizer),
                "peak_gb": mx.get_peak_memory() / 1e9,
                "skipped": run.skips.count,
            }
            reporter.write({"step": number, "epoch": run.loader.epoch(group[-1]), **metrics})
            reporter.show(**_postfix(metrics))
            window, tokens = np.zeros(6), 0
        paused = time.perf_counter()
        yield Position(number, group[-1], after[-1])
        since += time.perf_counter() - paused  # evaluating and saving are no part of the training's speed


def _batches(run: Run, position: Position) -> Iterator[tuple[Batch, int, int]]:
    """Batches with the place of the next one; at the end of each epoch bad images are judged."""
    args, epoch = run.model.args, None
    for group, number, rows in run.loader.batches(position.group, position.batch):
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


def evaluate_run(run: Run, step: int, reporter: Reporter) -> None:
    """Held-out losses and readings: a line of metrics, pages in `samples/`, and `loss.png`."""
    if run.heldout:
        meter = LossMeter(run.model, run.config.data.batch_tokens, run.config.train.pixel_queries)
        meter.add(run.heldout)
        metrics: dict[str, Any] = {"step": step} | {f"heldout_{name}": value for name, value in meter.means().items()}
        metrics |= _readings(run, step)
        _drawings(run, step)
        reporter.write(metrics)
        notice("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items()))
    plot_losses(run.folder)


def _drawings(run: Run, step: int) -> None:
    """A page of held-out images completed and drawn anew, where the run predicts pixels inside windows."""
    documents = [d for d in run.heldout if d.images and d.images[0].height * d.images[0].width <= MOST_PIXELS]
    documents = documents[: run.config.train.draw_images]
    if run.config.train.pixel_queries and documents:
        processor = Processor(run.model.args, run.tokenizer)
        path, prompted = run.folder / "samples" / f"step-{step}-drawn.png", run.config.data.caption_first > 0
        draw_images_page(path, run.model, processor, documents, prompted)


def _readings(run: Run, step: int) -> dict[str, float]:
    """Read held-out images; the first ones go on a page. The share read exactly, where there is anything to read."""
    documents = readable(run.heldout)[: run.config.train.eval_documents]
    if not documents or run.tokenizer is None:
        return {}
    processor = Processor(run.model.args, run.tokenizer)
    pairs = read_documents(run.model, processor, documents)
    shown = run.config.train.sample_images
    if shown:
        draw_page(run.folder / "samples" / f"step-{step}.png", processor, documents[:shown], pairs[:shown])
    return {"heldout_exact_match": float(np.mean([read == written for read, written in pairs]))}


def _finish(run: Run) -> Path:
    """Write ``final/``; on a resumed run that had ended before, it takes the place of the old one."""
    final = run.folder / "final"
    fresh = save_model(run.model, run.tokenizer, run.folder / f".final.new.{os.getpid()}")
    if final.exists():
        shutil.rmtree(final)
    fresh.rename(final)
    return final


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
