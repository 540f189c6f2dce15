"""Evaluation: what is computed some at a time is what is computed at once, and readings are as long as they need be."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import SMALL

from mlx_pixword.evaluation import meter, readings
from mlx_pixword.evaluation.meter import LossMeter
from mlx_pixword.inference.words import generate_text
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model import network
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import Document
from mlx_pixword.model.losses import loss_sums
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]


@pytest.fixture
def documents(rng: np.random.Generator) -> list[Document]:
    """Images of several sizes, each followed by words."""
    processor = Processor(ModelArgs(**SMALL))
    found = []
    for height, width, words in ((9, 6, 3), (4, 4, 1), (16, 13, 7), (8, 8, 2), (30, 20, 12)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found.append(processor.document([image, rng.integers(6, 12, words).tolist()], closed=True))
    return found


@pytest.mark.parametrize("pixels", [1, 48, 10**6])
@pytest.mark.parametrize("ours", [{}, {"positions": "grid", "summary": "concat"}])
def test_states_in_chunks_are_those_of_all_windows(
    small_model: Build, documents: list[Document], monkeypatch: pytest.MonkeyPatch, pixels: int, ours: dict[str, Any]
) -> None:
    model = small_model(**ours)
    a = model.args
    batch = collate([[d] for d in documents], a, exact=True, pixel_queries=3)
    monkeypatch.setattr(network, "CHUNK_PIXELS", pixels)
    difference = model.states_in_chunks(batch) - model.window_states(batch)
    assert batch.windows.shape[0] > 20
    assert np.abs(np.array(difference)).max() < 1e-5


@pytest.mark.parametrize("queries", [0, 3])
def test_losses_in_pieces_are_those_of_whole_batches(
    small_model: Build, documents: list[Document], monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    model, a = small_model(), small_model().args
    expected = np.zeros(6)
    for document in documents:
        batch = collate([[document]], a, pixel_queries=queries)
        sums = loss_sums(*model.forward(batch), batch, a.vocab_size)
        expected += np.array([value.item() for value in sums])
    monkeypatch.setattr(meter, "LOGITS", 500)
    monkeypatch.setattr(network, "CHUNK_PIXELS", 64)
    losses = LossMeter(model, 1, queries)  # one document a batch, as query pixels depend on what is in a batch
    losses.add(documents)
    assert losses.means() == pytest.approx(meter.mean_losses(expected), rel=1e-4)
    weights = np.array([2.0, 1.0, 3.0])
    assert losses.loss(*weights) == pytest.approx(expected[::2] @ weights / expected[1::2].sum(), rel=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10**6])
def test_readings_do_not_depend_on_what_is_read_with_them(
    small_model: Build, documents: list[Document], batch_tokens: int
) -> None:
    model = small_model()
    processor = Processor(model.args)
    pairs = readings.read_documents(model, processor, documents, batch_tokens)
    for document, (read, written) in zip(documents, pairs, strict=True):
        words = [int(word) for word in document.elements[-int(written.count(" ")) - 1 :]]
        assert [int(word) for word in written.split()] == words
        most = len(words) + len(words) // 4 + readings.SPARE_WORDS
        assert read == generate_text(model, processor, [document.images[0]], max_tokens=most)


def test_batches_of_readings_stay_within_their_tokens_and_the_sequence(documents: list[Document]) -> None:
    for tokens, longest in ((1, 128), (60, 128), (200, 128), (10**6, 128), (10**6, 60)):
        batches = readings._batches(documents, tokens, longest)
        assert sorted(n for batch in batches for n in batch) == list(range(len(documents)))
        for batch in batches:
            prompt = max(readings._prompt_length(documents[n]) for n in batch)
            words = max(readings._most_words(documents[n], longest) for n in batch)
            assert len(batch) == 1 or (len(batch) * (prompt + words) <= tokens and prompt + words <= longest + 1)
    assert len(readings._batches(documents, 10**6, 128)) == 1


def test_logits_are_made_for_the_last_elements_alone(
    small_model: Build, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them would take many times the memory of anything else."""
    model, sizes = small_model(), list[int]()
    logits = model.logits

    def counted(x: mx.array) -> mx.array:
        sizes.append(x.size // x.shape[-1])
        return logits(x)

    model.logits = counted
    readings.read_documents(model, Processor(model.args), documents, 10**6)
    assert set(sizes) == {len(documents)}
