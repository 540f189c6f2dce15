"""Losses over any number of documents."""

from collections.abc import Sequence

import numpy as np

from ..data.pack import bucket_batches
from ..model.batch import collate
from ..model.document import Document
from ..model.losses import LossSums, loss_sums
from ..model.network import PixWordModel


class LossMeter:
    """Mean losses over any number of documents, unweighted: nats a word, a boundary pixel and a query pixel."""

    def __init__(self, model: PixWordModel, batch_tokens: int, pixel_queries: int = 0) -> None:
        self._model, self._batch_tokens, self._pixel_queries = model, batch_tokens, pixel_queries
        self._totals = np.zeros(6)

    def add(self, documents: Sequence[Document]) -> None:
        args = self._model.args
        for rows in bucket_batches([[document] for document in documents], self._batch_tokens):
            batch = collate(rows, args, pixel_queries=self._pixel_queries)
            sums = loss_sums(*self._model.forward(batch), batch, args.vocab_size)
            self._totals += np.array([value.item() for value in sums])

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
