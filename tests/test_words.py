"""Reading: caches change nothing, sampling obeys its settings, and forbidden words never appear."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
import tokenizers
from PIL import Image

import mlx_pixword as pw
from mlx_pixword import generate
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inference import word_steps
from mlx_pixword.inference.settings import SampleArgs
from mlx_pixword.inference.words import (
    NEVER_GENERATED,
    Step,
    generate_batch,
    generate_text,
    generate_words,
    stream_generate,
)
from mlx_pixword.inputs.processor import Part, Processor
from mlx_pixword.inputs.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, train_tokenizer
from mlx_pixword.model.document import BOS, EOS, SPECIAL_WORDS
from mlx_pixword.model.network import PixWordModel

Build = Callable[..., PixWordModel]


def parts(rng: np.random.Generator, height: int = 9, width: int = 6, words: int = 2) -> list[Part]:
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8), list(rng.integers(6, 12, words))]


def without_cache(model: PixWordModel, processor: Processor, document: list[Part], count: int) -> list[int]:
    """Greedy words from whole forward passes."""
    words: list[int] = []
    for _ in range(count):
        logits = np.array(model(processor([*document, words] if words else document)))[0, -1, : model.args.vocab_size]
        logits[list(NEVER_GENERATED)] = -np.inf
        words.append(int(logits.argmax()))
        if words[-1] == EOS:
            break
    return words


def test_cached_words_are_those_of_whole_forward_passes(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor = Processor(model.args)
    documents = [parts(rng), parts(rng, 1, 1, 5), parts(rng, 16, 13, 1)]
    batch = processor.batch(documents)
    found = [step for step, _, _ in generate_words(model, batch, SampleArgs(max_tokens=12))]
    for row, document in enumerate(documents):
        expected = without_cache(model, processor, document, 12)
        assert [step[row] for step in found][: len(expected)] == expected
        alone = [step[0] for step, _, _ in generate_words(model, processor(document), SampleArgs(max_tokens=12))]
        assert alone[: len(expected)] == expected


def force(model: PixWordModel, word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one word the likeliest everywhere."""
    monkeypatch.setattr(word_steps, "SMALL", 0)  # token steps of NumPy do not ask the model for logits
    classes = model.args.vocab_size + model.args.num_pix
    model.logits = lambda x: mx.broadcast_to(mx.arange(classes) == word, (*x.shape[:-1], classes)).astype(mx.float32)


@pytest.mark.parametrize("temp", [0.0, 5.0])
def test_special_words_and_pixels_are_never_generated(
    small_model: Build, rng: np.random.Generator, temp: float
) -> None:
    model = small_model()
    model.head.weight = 0 * model.head.weight  # all classes equally likely
    batch = Processor(model.args).batch([parts(rng)] * 8)
    words = {w for step, _, _ in generate_words(model, batch, SampleArgs(max_tokens=40, temp=temp)) for w in step}
    assert words <= {EOS, *range(6, 12)}
    assert len(words) > 3 or temp == 0


def test_a_seed_gives_the_same_words_and_another_seed_others(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor, document = Processor(model.args), parts(rng)
    texts = [generate_text(model, processor, document, temp=2.0, seed=s, max_tokens=30) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temp": 1e-6}])
def test_narrow_sampling_is_greedy(small_model: Build, rng: np.random.Generator, narrow: dict[str, Any]) -> None:
    model = small_model()
    processor, document = Processor(model.args), parts(rng)
    greedy = generate_text(model, processor, document, max_tokens=10)
    assert generate_text(model, processor, document, **{"temp": 1.0, "max_tokens": 10} | narrow) == greedy


def test_repetition_penalty_changes_repeated_words(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor, document = Processor(model.args), parts(rng)
    batch = processor.batch([document, document])
    plain = [step for step, _, _ in generate_words(model, batch, SampleArgs(max_tokens=12))]
    varied = [step for step, _, _ in generate_words(model, batch, SampleArgs(max_tokens=12, repetition_penalty=1000.0))]
    assert varied[0] == plain[0]  # nothing to repeat yet
    assert len({w for w, _ in varied}) > len({w for w, _ in plain})
    assert all(a == b for a, b in varied)  # equal rows stay equal


def test_a_stream_adds_up_and_says_why_it_ended(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor, document = Processor(model.args), parts(rng)
    responses = list(stream_generate(model, processor, document, max_tokens=5))
    assert "".join(r.text for r in responses) == generate_text(model, processor, document, max_tokens=5)
    assert responses[-1].finish_reason in ("stop", "length")
    assert all(r.finish_reason is None for r in responses[:-1])
    assert responses[0].prompt_elements == 1 + 2 + 6 + 2  # <s>, marks, 3x2 windows, two words


LINES = "the price is 12.50\n the next line, a ,b\n  é😀 漢字"


def llama_like() -> Tokenizer:
    """Sentencepiece with a space put before every text, and bytes for what it has no piece for."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LINES.split("é")[0]] * 3), model_writer=model, model_type="bpe", vocab_size=300,
        hard_vocab_limit=False, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def hugging_face(kind: str) -> Tokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    module = getattr(tokenizers.pre_tokenizers, kind)
    model.pre_tokenizer, model.decoder = module(), getattr(tokenizers.decoders, kind)()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet() if kind == "ByteLevel" else []
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=letters, special_tokens=["<unk>"], show_progress=False
    )
    model.train_from_iterator([LINES], trainer)
    return HuggingFaceTokenizer(model.to_str().encode())


@pytest.mark.parametrize("kind", ["own", "llama", "ByteLevel", "Metaspace"])
def test_streams_add_up_for_every_kind_of_tokenizer(
    small_model: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Line breaks with spaces behind them, characters of several bytes, and bytes that are no characters."""
    own = {"own": lambda: train_tokenizer([LINES.split("é")[0]], 300), "llama": llama_like}
    tokenizer = own.get(kind, lambda: hugging_face(kind))()
    model = small_model(vocab_size=tokenizer.vocab_size)
    processor = Processor(model.args, tokenizer)
    for ids in (tokenizer.encode(LINES), *rng.integers(6, tokenizer.vocab_size, (50, 12)).tolist()):
        steps = [Step([word], [0.0], n + 1 == len(ids)) for n, word in enumerate(ids)]
        monkeypatch.setattr("mlx_pixword.inference.words.generate_words", lambda *_, steps=steps: iter(steps))
        texts = [response.text for response in stream_generate(model, processor, parts(rng))]
        assert "".join(texts) == tokenizer.decode(ids) and len(texts) == len(ids)
        assert not any(text.endswith("\ufffd") for text in texts[:-1])


@pytest.mark.parametrize(("word", "reason", "count"), [(EOS, "stop", 0), (7, "length", 4)])
def test_end_of_text_stops(
    small_model: Build, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, word: int, reason: str, count: int
) -> None:
    model = small_model()
    force(model, word, monkeypatch)
    responses = list(stream_generate(model, Processor(model.args), parts(rng), max_tokens=4))
    assert (responses[-1].finish_reason, responses[-1].tokens) == (reason, count)


def test_generation_stops_at_the_end_of_the_sequence(small_model: Build) -> None:
    model = small_model(max_seq_len=70)
    processor = Processor(model.args)
    document: list[Part] = [[7] * 66]  # with <s>: 67 elements, so 70 - 67 more can be fed
    steps = list(generate_words(model, processor(document), SampleArgs(max_tokens=50)))
    assert len(steps) == 4
    assert steps[-1].last


def test_sampling_leaves_the_random_state_alone_and_needs_none(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor, document = Processor(model.args), parts(rng)
    settings = {"temp": 2.0, "top_p": 0.9, "min_p": 0.01, "top_k": 5, "max_tokens": 12}
    texts = []
    for state in (1, 2):
        mx.random.seed(state)
        before = np.array(mx.random.state[0]).tolist()
        texts.append(generate_text(model, processor, document, seed=3, **settings))
        assert np.array(mx.random.state[0]).tolist() == before
    assert texts[0] == texts[1]
    model.head.weight = 0 * model.head.weight
    free = {generate_text(model, processor, document, seed=None, temp=2.0, max_tokens=30) for _ in range(12)}
    assert len(free) >= 3  # a text may be empty, and several may


def test_more_likely_words_than_there_are_are_all_words(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    document = parts(rng)
    found = [generate_text(model, Processor(model.args), document, temp=1.0, top_k=k, max_tokens=9) for k in (0, 9999)]
    assert found[0] == found[1]


def test_a_batch_of_texts_equals_single_texts(small_model: Build, rng: np.random.Generator) -> None:
    model = small_model()
    processor = Processor(model.args)
    documents = [parts(rng), parts(rng, 4, 4, 3)]
    together = generate_batch(model, processor, processor.batch(documents), max_tokens=8)
    assert together == [generate_text(model, processor, d, max_tokens=8) for d in documents]
    assert BOS not in [int(w) for text in together for w in text.split()]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"temp": -1.0}, {"temp": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0},
        {"top_k": -1}, {"seed": -1}, {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PixWordError, match="must"):
        SampleArgs(**wrong)


def test_a_model_of_images_alone_says_that_it_cannot_read(
    small_model: Build, rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(vocab_size=len(SPECIAL_WORDS))
    processor, image = Processor(model.args), rng.integers(0, 256, (9, 6, 3), dtype=np.uint8)
    words = "this model was trained on images alone and knows no words; it can draw, and not read"
    for ask in (
        lambda: generate_text(model, processor, [image]),
        lambda: generate_batch(model, processor, processor([image])),
        lambda: pw.read(model, processor, Image.fromarray(image)),
    ):
        with pytest.raises(PixWordError, match=words):
            ask()
    Image.fromarray(image).save(tmp_path / "a.png")
    command = ["--model", str(pw.save_model(model, None, tmp_path / "model")), "--image", str(tmp_path / "a.png")]
    for flags in ([], ["--each"], ["--jsonl"], ["--out-image", str(tmp_path / "b.png"), "--then-words"]):
        with pytest.raises(PixWordError, match=words):
            generate.main([*command, *flags])
    assert capsys.readouterr().out == "" and not (tmp_path / "b.png").exists()
