"""What a run consists of, and how it is put together: data, tokenizer, model, optimiser, and where it stands."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from ..common import files
from ..common.cli import notice
from ..common.errors import PixWordError
from ..common.machine import machine_facts
from ..common.random_state import set_random_state
from ..common.settings import counted
from ..config.run import RunConfig
from ..config.train import TrainArgs
from ..data.cache import TokenCache
from ..data.decoders import Decoders
from ..data.known import Inventory, KnownSource
from ..data.loader import Encoder, Loader
from ..data.open import Split, check_vocabulary, choose_tokenizer, data_notes, open_split, text_sources
from ..data.skips import SkipLog, left_out
from ..data.text_sample import has_text, some_texts
from ..evaluation.readings import heldout_documents
from ..inputs.new_words import add_words
from ..inputs.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from ..model.args import ModelArgs
from ..model.network import PixWordModel, num_parameters
from ..model.origin import KEY as ORIGIN
from ..model.origin import Origin
from .adapt import origin_of, start_from
from .checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from .device import recompute_layers
from .distributed import Ranks
from .identity import check_identity, identity_of
from .loss_scale import LossScale
from .optimizer import make_optimizer, zero_output_projections
from .reporter import keep_metrics
from .run_folder import LISTING, check_folder, owned, read_listing, write_listing
from .state import Progress, Run
from .vocabulary import missing_notes


@contextmanager
def open_run(config: RunConfig, ranks: Ranks) -> Iterator[Run]:
    """Build a run and own its folder; on ``resume`` it stands where its newest complete checkpoint does.

    Of several ranks the first alone looks at the folder and writes to it; the others get from it what they need.

    Raises:
        PixWordError: the folder is taken, the data cannot be used, or the checkpoint is of another run.
    """
    folder = config.train.out
    if ranks.first:
        check_folder(folder, config.train.resume)
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(owned(folder))
            check_folder(folder, config.train.resume)  # another start may have been faster
        checkpoint = _start(config, ranks)
        known = _known(folder, checkpoint, ranks)
        train = config.train
        split = open_split(config.data, train.seed, train.eval_documents, config.model.image_size, known)
        for difference in split.differences if ranks.first else ():
            notice(f"--resume: {difference}")
        tokenizer = _share_tokenizer(_tokenizer(config, split, checkpoint) if ranks.first else None, ranks)
        words, origin = check_vocabulary(tokenizer, config.model.vocab_size), _origin(config, checkpoint)
        if origin is not None and tokenizer is not None:  # a language model's table may have rows for no word
            words = tokenizer.vocab_size = max(words, config.model.vocab_size)
        args = replace(config.model, vocab_size=words)
        config = replace(config, model=args)
        decoders = stack.enter_context(Decoders(config.data.decode_seconds))
        config = _with_steps(config, split, tokenizer, decoders, ranks)
        identity = identity_of(config, split.train, tokenizer, origin)
        _agree(identity, split, args, ranks)
        if checkpoint is not None and ranks.first:
            for difference in check_identity(checkpoint.identity, identity, str(checkpoint.path)):
                notice(f"--resume: {difference}")
        if ranks.first:
            _write_settings(config, tokenizer)  # a mistake up to here leaves nothing behind
            if known is None:
                write_listing(folder, split.inventories())
            _write_faces(folder, split)
            _write_machine(folder, checkpoint.progress.step if checkpoint else 0, ranks)
        yield _build(config, identity, split, tokenizer, origin, checkpoint, decoders, ranks)


def _agree(identity: dict[str, Any], split: Split, args: ModelArgs, ranks: Ranks) -> None:
    """Raise `PixWordError` unless all ranks have the same model, data, and documents that are still there of it."""
    digests = [source["digest"] for source in identity["data"]]
    vanished = [source.missing() if isinstance(source, KnownSource) else "" for source in split.train]
    ranks.agree(json.dumps([digests, vanished, args.to_dict()]).encode(), "data or a model")


def _with_steps(
    config: RunConfig, split: Split, tokenizer: Tokenizer | None, decoders: Decoders, ranks: Ranks
) -> RunConfig:
    """``--epochs`` as steps. How many batches an epoch has is known when it is over; the first group stands for all."""
    train = config.train
    if train.epochs is None:
        return config
    if any(source.endless for source in split.train):
        raise PixWordError("--epochs needs --data that ends, and built-in data does not; give --steps")
    loader = _loader(
        config, Encoder(config.model, tokenizer, SkipLog(), None, decoders), split.train, split.train_indices
    )
    with closing(loader.batches()) as batches:
        group, _, _ = next(batches)
        count = 1 + sum(1 for _ in takewhile(lambda batch: batch[0] == group, batches))
    epoch = count * len(loader) / loader.group_size / (train.accumulate * ranks.size)
    steps = max(1, round(train.epochs * epoch))
    if ranks.first:
        notice(f"epochs   {train.epochs:g} of {counted(len(loader), 'document')}: {counted(steps, 'step')}")
    return replace(config, train=replace(train, steps=steps, epochs=None))


def _start(config: RunConfig, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from, as the first rank finds it."""
    found = _find_checkpoint(config) if ranks.first else None
    told = ranks.share(json.dumps([asdict(found.progress), found.identity] if found else None).encode())
    if ranks.first or told == b"null":
        return found
    progress, identity = json.loads(told)
    return Checkpoint(config.train.out, Progress(**progress), identity)


def _find_checkpoint(config: RunConfig) -> Checkpoint | None:
    if not config.train.resume:
        return None
    folder = config.train.out
    for name in ("best", "final"):
        files.settle(folder / name)
    found = newest_checkpoint(folder / "checkpoints")
    if found is None:
        notice(f"--resume: {folder} has no complete checkpoint yet, starting at step 0")
    return found


def _known(folder: Path, checkpoint: Checkpoint | None, ranks: Ranks) -> list[Inventory] | None:
    """What the data held when the run began, as the first rank finds it; None for a new run, and for an old one."""
    if checkpoint is None or not checkpoint.identity:
        return None
    path = folder / LISTING
    content = ranks.share(files.perform("read", path, path.read_bytes) if ranks.first and path.exists() else b"")
    known = read_listing(content, [source["digest"] for source in checkpoint.identity["data"]])
    if content and known is None and ranks.first:
        notice(f"--resume: {path} is damaged or of other data, and is not used")
    return known


def _tokenizer(config: RunConfig, split: Split, checkpoint: Checkpoint | None) -> Tokenizer | None:
    """The run's tokenizer: of the run that is resumed, or as the data settings say."""
    given = config.data.tokenizer
    if checkpoint is not None and (given is None or not given.exists()):
        names = ("tokenizer.model", "tokenizer.json")
        saved = [config.train.out / name for name in names if (config.train.out / name).exists()]
        config = replace(config, data=replace(config.data, tokenizer=saved[0])) if saved else config
    tokenizer = choose_tokenizer(config.data, split.train, config.model.vocab_size, config.train.seed)
    if tokenizer is None and has_text(split.train):
        notice("vocab_size 6 leaves no room for words: the texts are dropped and the run is on images alone")
    if (new := config.adapt.new_words.split()) and tokenizer is None:
        raise PixWordError(f"--new-words: {config.adapt.init} has no tokenizer to add words to; leave them out")
    if tokenizer is not None and new:
        tokenizer, _ = add_words(tokenizer, new)
    if tokenizer is not None and config.adapt.init is not None and checkpoint is None:
        for line in missing_notes(tokenizer, some_texts(split.train, config.train.seed)):
            notice(line)
    return tokenizer


def _origin(config: RunConfig, checkpoint: Checkpoint | None) -> Origin | None:
    """What the run's model remembers of a language model; a resumed run has it in its checkpoint."""
    if checkpoint is None or ORIGIN not in checkpoint.identity:
        return origin_of(config.adapt)
    return Origin.from_config(checkpoint.identity)


def _share_tokenizer(tokenizer: Tokenizer | None, ranks: Ranks) -> Tokenizer | None:
    """The first rank's tokenizer."""
    name = ranks.share(tokenizer.filename.encode() if tokenizer else b"")
    contents = ranks.share(tokenizer.contents if tokenizer else b"")
    if ranks.first or not name:
        return tokenizer
    return (HuggingFaceTokenizer if name.endswith(b".json") else SentencePieceTokenizer)(contents)


def _write_settings(config: RunConfig, tokenizer: Tokenizer | None) -> None:
    folder = config.train.out
    files.make_folder(folder / "samples")
    files.replace_file(folder / "config.yaml", config.with_absolute_paths().to_yaml().encode())
    if tokenizer is not None:
        files.replace_file(folder / tokenizer.filename, tokenizer.contents)


def _write_faces(folder: Path, split: Split) -> None:
    """Each face that built-in text has, a line of `fonts.jsonl`: its name, family, side of the split and digest."""
    for source in text_sources(split.train)[:1]:
        faces = sorted(source.faces, key=lambda face: (face.family, face.name))
        lines = [{key: getattr(face, key) for key in ("name", "family", "held_out", "digest")} for face in faces]
        files.replace_file(folder / "fonts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def _write_machine(folder: Path, step: int, ranks: Ranks) -> None:
    """A line of `machines.jsonl` for this start: a run may be resumed elsewhere."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"step": step, "started": started, **machine_facts(), "ranks": ranks.size}
    files.append_text(folder / "machines.jsonl", json.dumps(line) + "\n")


def _build(
    config: RunConfig,
    identity: dict[str, Any],
    split: Split,
    tokenizer: Tokenizer | None,
    origin: Origin | None,
    checkpoint: Checkpoint | None,
    decoders: Decoders,
    ranks: Ranks,
) -> Run:
    folder, args = config.train.out, config.model
    progress = checkpoint.progress if checkpoint else Progress(skipped_bytes=0)
    if ranks.first:
        keep_metrics(folder, progress.step)
    skips = SkipLog(folder / "skipped.jsonl", progress.skipped_bytes) if ranks.first else SkipLog()
    cache = TokenCache(config.data.cache, args, config.data.cache_gb) if config.data.cache else None
    encoder = Encoder(args, tokenizer, skips, cache, decoders)
    loader = _loader(config, encoder, split.train, split.train_indices, config.data.caption_first)
    heldout_loader = _loader(config, encoder, split.heldout, split.heldout_indices)
    held: Sequence[int] | np.ndarray = []
    if ranks.first and split.heldout_indices is not None:
        held = split.heldout_indices
    heldout = heldout_documents(heldout_loader, held)
    for source in split.train:
        skips.leave_out(source.unusable)
        skips.unreadable(source)
    if progress.tried:
        skips.restore(progress.tried)
    model, optimizer = build_model(args, config.train), make_optimizer(config.train)
    start_from(model, config, resumed=checkpoint is not None)
    model.origin = origin
    mx.eval(model.parameters())
    if checkpoint is not None:
        _load(checkpoint, model, optimizer, ranks)
    scale = LossScale.of(args.compute_dtype, progress.scale, progress.scale_age)
    saved = replace(progress, in_a_row=0)
    return Run(
        config, folder, identity, model, optimizer, tokenizer, loader, skips, heldout, progress, saved, scale, ranks
    )


def _load(checkpoint: Checkpoint, model: PixWordModel, optimizer: optim.Optimizer, ranks: Ranks) -> None:
    """Put a checkpoint back, on all ranks as the first one reads it."""
    if ranks.first:
        load_checkpoint(checkpoint, model, optimizer)
        notice(f"resuming from {checkpoint.path}")
    else:
        optimizer.init(model.trainable_parameters())
        set_random_state(checkpoint.progress.random or [0, 0])
    model.update(ranks.share_tree(model.parameters()))
    optimizer.state = ranks.share_tree(optimizer.state)


def _loader(
    config: RunConfig, encoder: Encoder, sources: Sequence[Any], keep: np.ndarray | None, caption_first: float = 0.0
) -> Loader:
    d = config.data
    return Loader(
        sources, encoder, seed=config.train.seed, batch_tokens=d.batch_tokens, pack=d.pack, threads=d.threads,
        group_size=d.group_size, keep=keep, caption_first=caption_first,
    )  # fmt: skip


def build_model(args: ModelArgs, train: TrainArgs) -> PixWordModel:
    """A new model as a run starts with: seeded, and recomputing layers in the backward pass where settings say so."""
    mx.random.seed(train.seed)
    model = PixWordModel(args, train.pixel_queries)
    model.words_only = not train.boundary_weight and not (train.pixel_queries and train.dense_weight)
    if train.zero_init:
        zero_output_projections(model)
    recompute_layers(model, train)
    mx.eval(model.parameters())
    return model


def announce(run: Run) -> None:
    """Say what is about to be trained, on what and where."""
    c = run.config
    names = ", ".join(source.name for source in run.loader.sources)
    size = (
        f"{num_parameters(run.model) / 1e6:.2f}M parameters, {c.model.vocab_size} words + {c.model.num_pix} pix tokens"
    )
    notice(f"model    {c.adapt.init or c.preset}, {size}")
    if c.adapt.lora:
        trained = sum(array.size for array in dict(tree_flatten(run.model.trainable_parameters())).values())
        notice(f"adapters of rank {c.adapt.lora}, {trained / 1e6:.3f}M parameters are trained")
    sources = run.loader.sources
    count = "" if any(source.endless for source in sources) else f"{counted(sum(map(len, sources)), 'document')}, "
    notice(f"data     {names}; {count}{counted(len(run.heldout), 'document')} held out{left_out(sources)}")
    for note in data_notes(run.loader.sources):
        notice(note)
    notice(f"run      {run.folder}, steps {run.progress.step} to {c.train.steps}, on {mx.default_device().type.name}")
