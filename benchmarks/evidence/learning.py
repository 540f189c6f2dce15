"""One model and its optimiser: steps at a given learning rate, development loss, readings; state to arrays and back.

B  rows of a batch    L  elements of a row    V  words    K  pix tokens
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_pixword.inference.words import NEVER_GENERATED
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch
from mlx_pixword.model.document import EOS, NO_TARGET, SPECIAL_WORDS, Document
from mlx_pixword.model.losses import loss_sums
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.exponentials import logsumexp
from mlx_pixword.training.optimizer import is_hidden_matrix, zero_output_projections

from .arms import Arm, Shape, model_args
from .batches import batch_of
from .characters import CharacterTokenizer
from .fronts import PatchModel
from .masking import MaskedPatches

MUON, ADAM = 0.02, 0.01  # of which a run's rate is a multiple
FRONT = 0.2  # Muon's step on a front end's hidden matrices, relative to the language block's: the same for every arm
CLIP = 1.0


def make_model(arm: Arm, args: ModelArgs, seed: int) -> PixWordModel:
    """A new model; output projections of its layers and its head begin at zero."""
    mx.random.seed(seed)
    model = PixWordModel(args, arm.pixel_queries) if arm.is_pixel else PatchModel(arm, args)
    zero_output_projections(model)
    mx.eval(model.parameters())
    return model


def make_optimizer() -> tuple[optim.MultiOptimizer, tuple[float, ...]]:
    """Muon for hidden matrices, AdamW for the rest, and their learning rates at rate 1."""
    rates = (FRONT * MUON, MUON, ADAM)
    muon = [optim.Muon(rate, weight_decay=0.0) for rate in rates[:2]]
    adam = optim.AdamW(rates[2], betas=[0.9, 0.95], weight_decay=0.0)
    filters = [
        lambda name, _: is_hidden_matrix(name) and name.startswith("image_block."),
        lambda name, _: is_hidden_matrix(name),
    ]
    return optim.MultiOptimizer([*muon, adam], filters), rates


def word_nats(logits: mx.array, targets: mx.array, num_words: int, least: int = 0) -> tuple[mx.array, mx.array]:
    """Nats of the targets that are words, softmax over the V words alone, and their number.

    Args:
        logits: ``[B, L, V or V + K]``.
        targets: int32 ``[B, L]``.
        num_words: V.
        least: words below it do not count; `</s>` always does.
    """
    chosen = (targets != NO_TARGET) & (targets < num_words) & ((targets >= least) | (targets == EOS))
    logits = logits[..., :num_words]
    right = mx.take_along_axis(logits, mx.where(chosen, targets, 0)[..., None], axis=-1)[..., 0]
    return mx.sum((logsumexp(logits) - right) * chosen), mx.sum(chosen)


def objective(model: PixWordModel, arm: Arm, batch: Batch, task: str = "read") -> mx.array:
    """The loss of a batch in nats: of words alone if the batch was made for that.

    ``task`` "read" is the arm's own objective; "pixels" (pixel arms) predicts pixels alone, without captions.
    """
    alone = batch.scored is not None
    (logits, query_logits), batch, words = model.scored(batch), batch.counted, model.args.vocab_size
    if alone or not arm.is_pixel or arm.objective == "words":
        nats, count = word_nats(logits, batch.targets, words)
        return nats / count
    sums = loss_sums(logits, query_logits, batch, words)
    pixels, number = sums.boundary_nats + sums.dense_nats, sums.boundary_pixels + sums.dense_pixels
    if task == "pixels":
        return pixels / number
    if arm.objective == "sum":
        return (sums.word_nats + pixels) / (sums.words + number)
    return sums.word_nats / sums.words + arm.pixel_weight * pixels / number


@dataclass
class Learner:
    """A model in training.

    Attributes:
        arm, args: what it is.
        model: float32.
        optimizer: with rates that are set at every step; ``rates`` are those at rate 1, one for each part of it.
        masked: what masked-patch pretraining learns beside the model, while it lasts.
    """

    arm: Arm
    args: ModelArgs
    model: PixWordModel
    optimizer: optim.MultiOptimizer
    rates: tuple[float, ...]
    masked: MaskedPatches | None = None

    @classmethod
    def new(cls, arm: Arm, shape: Shape, seed: int) -> "Learner":
        args = model_args(arm, shape)
        optimizer, rates = make_optimizer()
        model = make_model(arm, args, seed)
        optimizer.init(model.trainable_parameters())
        return cls(arm, args, model, optimizer, rates)

    def gradient(self, batch: Batch, task: str = "read") -> tuple[mx.array, Any]:
        """Loss and gradients."""
        return nn.value_and_grad(self.model, lambda: objective(self.model, self.arm, batch, task))()

    def step(self, batch: Batch, rate: float, task: str = "read") -> float:
        """Update by one batch at ``rate`` times the base rates; returns the loss."""
        loss, grads = self.gradient(batch, task)
        return self._update(loss, grads, rate)

    def masked_step(self, batch: Batch, rng: np.random.Generator, rate: float) -> float:
        """Update by masked-patch pretraining."""
        self.masked = self.masked or MaskedPatches(self.args)
        return self._update(*self.masked.step(self.model, batch, rng, rate * ADAM), rate)

    def _update(self, loss: mx.array, grads: Any, rate: float) -> float:
        grads, _ = optim.clip_grad_norm(grads, CLIP)
        for optimizer, base in zip(self.optimizer.optimizers, self.rates, strict=True):
            optimizer.learning_rate = base * rate
        self.optimizer.update(self.model, grads)
        mx.eval(self.state(), loss)
        return float(np.array(loss))

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, mx.array]:
        """Weights and optimiser state by name; arrays are never changed in place, so this is a snapshot."""
        trees = {name: part() for name, (part, _) in self._parts().items()}
        return {f"{name}.{k}": v for name, tree in trees.items() for k, v in dict(tree_flatten(tree)).items()}

    def restore(self, state: Mapping[str, mx.array]) -> None:
        """Put a snapshot back."""
        self.masked = MaskedPatches(self.args) if any(k.startswith("mask.") for k in state) else None
        for name, (_, put) in self._parts().items():
            length = len(name) + 1
            put(tree_unflatten([(k[length:], v) for k, v in state.items() if k.startswith(f"{name}.")]))
        mx.eval(self.state())

    def _parts(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
        """How each part of the state is taken and put back."""
        parts = {"model": (self.model.parameters, self.model.update), "optimizer": _state_of(self.optimizer)}
        if self.masked is not None:
            head = self.masked.head
            parts |= {"mask": (head.parameters, head.update), "mask_optimizer": _state_of(self.masked.optimizer)}
        return parts

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def nats_per_character(self, documents: Sequence[Document], rows: int = 128) -> float:
        """Mean nats of characters and ``</s>`` given what comes before them, over documents with their text."""
        total, count = 0.0, 0
        for _, batch in self._batches(documents, rows):
            logits, _ = self.model.scored(batch, self.model.states_in_chunks(batch))
            targets = batch.counted.targets
            nats, number = word_nats(logits, targets, self.args.vocab_size, len(SPECIAL_WORDS))
            total, count = total + float(np.array(nats)), count + int(np.array(number))
        return total / count

    def nats_per_pixel(self, documents: Sequence[Document], rows: int = 64) -> float:
        """Mean nats of the pixels that the arm's objective predicts, over documents; pixel arms only."""
        total = np.zeros(2)
        for _, batch in self._batches(documents, rows, words=False):
            sums = loss_sums(*self.model.forward(batch), batch, self.args.vocab_size)
            pairs = (sums.boundary_nats + sums.dense_nats, sums.boundary_pixels + sums.dense_pixels)
            total += np.array([float(np.array(value)) for value in pairs])
        return float(total[0] / total[1])

    def read(self, documents: Sequence[Document], rows: int = 128) -> list[str]:
        """What the model reads in documents that end with what they say, each up to its first wrong character.

        Greedy decoding sees what it wrote before, which is the text itself until the first mistake. So one pass with
        the text in its place gives the same reading up to there and the same exact matches, without a step a character.
        """
        readings = [""] * len(documents)
        never = mx.zeros(self.args.vocab_size).at[mx.array(NEVER_GENERATED)].add(-mx.inf)
        for some, batch in self._batches(documents, rows):
            logits, _ = self.model.scored(batch, self.model.states_in_chunks(batch))
            guesses = np.array(mx.argmax(logits[..., : self.args.vocab_size] + never, axis=-1))  # [B, c]
            for n, guess, target in zip(some, guesses, np.array(batch.counted.targets), strict=True):
                readings[n] = until_mistake(guess, target)
        return readings

    def _batches(self, documents: Sequence[Document], rows: int, words: bool = True) -> Iterator[tuple[Any, Batch]]:
        """Which documents, and a batch of them; similar lengths go together."""
        order = sorted(range(len(documents)), key=lambda n: len(documents[n]))
        for start in range(0, len(order), rows):
            some = order[start : start + rows]
            yield some, batch_of(self.arm, self.args, [documents[n] for n in some], words=words)


def until_mistake(guesses: np.ndarray, targets: np.ndarray) -> str:
    """The characters guessed, ``[c]``, up to the first that is not the target's."""
    chosen = (targets == EOS) | (targets >= len(SPECIAL_WORDS))
    guesses, targets = guesses[chosen], targets[chosen]
    wrong = np.flatnonzero(guesses != targets)
    return CharacterTokenizer().decode(guesses[: wrong[0] + 1 if len(wrong) else None].tolist())


def _state_of(optimizer: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: optimizer.state, lambda state: setattr(optimizer, "state", state)
