"""What is looked at during a run: held-out losses and readings, pages in `samples/`, and the best model so far."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..common import files
from ..common.cli import notice
from ..evaluation.meter import LossMeter
from ..evaluation.pages import draw_images_page, draw_page
from ..evaluation.readings import describe_readings, rate_documents, readable
from ..inputs.processor import Processor
from ..model.document import mask_prompt
from ..weights.directory import save_model
from ..weights.lora import fused, save_adapters
from .adapt import adapters_of
from .reporter import Reporter, plot_losses
from .state import Run

MOST_PIXELS = 4096  # of an image that is drawn for samples/: a second or two on a CPU, once a few steps


def evaluate_run(run: Run, reporter: Reporter) -> None:
    """Held-out losses and readings: a line of metrics, pages in `samples/`, `loss.png`; ``best/`` if it is the best."""
    step = run.progress.step
    if run.heldout:
        train = run.config.train
        meter = LossMeter(run.model, run.config.data.batch_tokens, train.pixel_queries)
        meter.add([mask_prompt(d) for d in run.heldout] if run.config.adapt.mask_prompt else run.heldout)
        loss = meter.loss(train.word_weight, train.boundary_weight, train.dense_weight)
        metrics: dict[str, Any] = {"step": step, "heldout_loss": loss}
        metrics |= {f"heldout_{name}": value for name, value in meter.means().items()}
        metrics |= _readings(run, step)
        _drawings(run, step)
        reporter.write(metrics)
        notice("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items()))
        _keep_best(run, loss)
    files.perform("write", run.folder / "loss.png", lambda: plot_losses(run.folder))


def _keep_best(run: Run, loss: float) -> None:
    """Copy the model to ``best/`` if its held-out loss is the lowest so far; a loss that is no number never is."""
    progress = run.progress
    if run.config.train.keep_best and (loss < progress.best_loss if progress.best_loss is not None else loss == loss):
        publish_model(run, "best")
        for place in (progress, run.last_saved_state):
            place.best_step, place.best_loss = progress.step, loss


def publish_model(run: Run, name: str) -> Path:
    """Write the model directory ``name`` of the run; it takes the place of an older one. Gives its path."""
    draft = run.folder / f".{name}.draft"
    files.remove(draft)
    if run.config.adapt.lora and run.config.adapt.language_from:
        with fused(run.model):  # the image block is new, so that adapters alone would be no model
            save_model(run.model, run.tokenizer, draft)
    elif run.config.adapt.lora:
        save_adapters(run.model, adapters_of(run.model, run.config.adapt), draft)
    else:
        save_model(run.model, run.tokenizer, draft)
    files.publish(draft, run.folder / name)
    return run.folder / name


def publish_final(run: Run) -> Path:
    """Write ``final/``: with patience the best model so far, or else the model as it is."""
    best = run.folder / "best"
    if not (run.config.adapt.patience and run.progress.best_step and best.is_dir()):
        return publish_model(run, "final")
    draft = run.folder / ".final.draft"
    files.remove(draft)
    files.perform("write", draft, lambda: shutil.copytree(best, draft))
    for path in draft.iterdir():
        files.sync_file(path)
    files.publish(draft, run.folder / "final")
    return run.folder / "final"


def has_stopped_learning(run: Run) -> bool:
    """Whether so many evaluations as ``patience`` says have passed since the one with the lowest held-out loss."""
    adapt, progress = run.config.adapt, run.progress
    since = progress.step - progress.best_step
    return bool(adapt.patience and run.heldout) and since >= adapt.patience * run.config.train.eval_every


def _drawings(run: Run, step: int) -> None:
    """A page of held-out images completed and drawn anew, where the run predicts pixels inside windows."""
    documents = [d for d in run.heldout if d.images and d.images[0].height * d.images[0].width <= MOST_PIXELS]
    documents = documents[: run.config.train.draw_images]
    if run.config.train.pixel_queries and documents:
        processor = Processor(run.model.args, run.tokenizer)
        path, prompted = run.folder / "samples" / f"step-{step}-drawn.png", run.config.data.caption_first > 0
        files.perform("write", path, lambda: draw_images_page(path, run.model, processor, documents, prompted))


def _readings(run: Run, step: int) -> dict[str, float]:
    """Read held-out images; the first ones go on a page. The share read exactly, where there is anything to read."""
    documents = readable(run.heldout)[: run.config.train.eval_documents]
    if not documents or run.tokenizer is None:
        return {}
    processor = Processor(run.model.args, run.tokenizer)
    rated = rate_documents(run.model, processor, documents, run.config.data.batch_tokens)
    pairs = [(reading.text, written) for reading, written in rated]
    shown = run.config.train.sample_images
    if shown:
        path = run.folder / "samples" / f"step-{step}.png"
        files.perform("write", path, lambda: draw_page(path, processor, documents[:shown], pairs[:shown]))
        lines = describe_readings(processor, documents, rated, shown)
        files.replace_file(path.with_suffix(".json"), json.dumps({"step": step, "readings": lines}).encode())
    return {"heldout_exact_match": float(np.mean([read == written for read, written in pairs]))}
