"""Several processes that train one model, on one machine or more, by MLX's own distributed engine.

Rank 0 writes. Every rank plans all batches and computes its own: of as many as there are ranks, the one with its
number.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..common.errors import PixWordError

T = TypeVar("T")
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # set by mlx.launch and by MPI's launchers


class RankLost(PixWordError):
    """Another rank ended, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; of size 1, every method gives back what it is given.

    Attributes:
        rank, size: number of this process, and how many there are.
        timeout: seconds that a rank waits for the others before it ends.
    """

    rank: int = 0
    size: int = 1
    timeout: float = 600.0

    @property
    def first(self) -> bool:
        """True for the rank that writes."""
        return self.rank == 0

    def total(self, values: mx.array) -> mx.array:
        """The sum over all ranks of an array of any shape."""
        return values if self.size == 1 else self._wait(lambda: mx.distributed.all_sum(values))

    def average(self, gradients: Any) -> Any:
        """The mean over all ranks of a tree of arrays."""
        return gradients if self.size == 1 else self._wait(lambda: nn.average_gradients(gradients))

    def share(self, content: bytes) -> bytes:
        """The first rank's bytes, on every rank."""
        if self.size == 1:
            return content
        length = int(np.array(self.total(mx.array([len(content) if self.first else 0]))[0]))
        own = np.frombuffer(content, np.uint8) if self.first else np.zeros(length, np.uint8)
        return bytes(np.array(self.total(mx.array(own.astype(np.int32)))).astype(np.uint8)) if length else b""

    def share_tree(self, tree: Any) -> Any:
        """The first rank's arrays, on every rank; all ranks give trees of the same form."""
        if self.size == 1:
            return tree
        leaves = sorted(dict(tree_flatten(tree)).items())  # in the same order on all ranks
        shared = [(name, self.total(array if self.first else mx.zeros_like(array))) for name, array in leaves]
        return tree_unflatten(shared)

    def agree(self, content: bytes, what: str) -> None:
        """Raise `PixWordError` on every rank whose content is not the first rank's."""
        digest = hashlib.sha256(content).digest()
        same = self.share(digest) == digest
        others = int(np.array(self.total(mx.array([0 if same else 1]))[0]))
        if others:
            raise PixWordError(f"{others} of {self.size} ranks have {what} other than rank 0; give all ranks the same")

    def _wait(self, function: Callable[[], T]) -> T:
        timer = threading.Timer(self.timeout, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            result = function()
            mx.eval(result)
            return result
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank} has lost another rank ({error})") from error
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        print(f"error: rank {self.rank} has waited {self.timeout:g} seconds for another rank", flush=True)
        os._exit(2)


def find_ranks(timeout: float) -> Ranks:
    """The ranks that ``mlx.launch`` started together; one alone where nothing was launched."""
    if not any(name in os.environ for name in _LAUNCHED):
        return Ranks()
    group = mx.distributed.init()
    return Ranks(group.rank(), group.size(), timeout)


def own_part(batches: Sequence[T], ranks: Ranks) -> list[T]:
    """What of a step's batches this rank computes."""
    return list(batches[ranks.rank :: ranks.size])
