"""Losses over any number of documents.

B  rows    L  elements of a row    Q  query pixels a row    D  hidden size    V  words    K  pix tokens
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..data.pack import bucket_batches
from ..model.batch import collate
from ..model.document import Document
from ..model.losses import LossSums, boundary_sums, query_sums
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only

LOGITS = 2**21  # that are made at a time


class LossMeter:
    """Mean losses over any number of documents, unweighted: nats a word, a boundary pixel and a query pixel.

    No gradient is needed, so windows and logits are computed some at a time: a batch takes less memory than a step.
    """

    def __init__(self, model: PixWordModel, batch_tokens: int, pixel_queries: int = 0) -> None:
        self._model, self._batch_tokens, self._pixel_queries = model, batch_tokens, pixel_queries
        self._totals = np.zeros(6)

    @forward_only()
    def add(self, documents: Sequence[Document]) -> None:
        args = self._model.args
        for rows in bucket_batches([[document] for document in documents], self._batch_tokens):
            batch = collate(rows, args, pixel_queries=self._pixel_queries)
            x, z = self._model.read_all(batch, self._model.states_in_chunks(batch))
            for logits, targets in self._some(x, batch.targets):
                sums = boundary_sums(logits, targets, args.vocab_size)
                self._totals += np.array([value.item() for value in sums])
            if z is None or batch.query_targets is None or batch.query_weights is None:
                continue
            for logits, targets, weights in self._some(z, batch.query_targets, batch.query_weights):
                self._totals[4:] += np.array([value.item() for value in query_sums(logits, targets, weights)])

    def _some(self, x: mx.array, *others: mx.array) -> Iterator[tuple[mx.array, ...]]:
        """Logits ``[n, V + K]`` of some of the states ``[.., .., D]`` at a time, and their part of ``[.., ..]``."""
        mx.eval(x)
        arrays = [x.reshape(-1, x.shape[-1]), *(other.reshape(-1) for other in others)]
        size = max(1, LOGITS // (self._model.args.vocab_size + self._model.args.num_pix))
        for start in range(0, len(arrays[0]), size):
            states, *values = [array[start : start + size] for array in arrays]
            yield self._model.logits(states), *values

    def means(self) -> dict[str, float]:
        """``word_loss``, ``boundary_loss`` and ``dense_loss``; a part without targets is left out."""
        return mean_losses(self._totals)

    def loss(self, word_weight: float, boundary_weight: float, dense_weight: float) -> float:
        """The objective of training over all documents: weighted nats by all targets; not a number without any."""
        nats = np.dot(self._totals[::2], [word_weight, boundary_weight, dense_weight])
        return float(nats / self._totals[1::2].sum()) if self._totals[1::2].sum() else float("nan")


def mean_losses(sums: Sequence[float] | LossSums | np.ndarray) -> dict[str, float]:
    """``word_loss``, ``boundary_loss`` and ``dense_loss`` from sums; a part without targets is left out."""
    values = [float(value) for value in sums]
    parts = zip(("word_loss", "boundary_loss", "dense_loss"), values[::2], values[1::2], strict=True)
    return {name: nats / count for name, nats, count in parts if count}
