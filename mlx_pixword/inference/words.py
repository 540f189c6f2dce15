"""Reading: words after a document of words and images. Filters, penalties and key-value caches are mlx-lm's.

B  rows    V  words    K  pix tokens

What follows is always a word, so the softmax covers the V words alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..common.errors import PixWordError
from ..common.threads import outlive_this_thread
from ..inputs.processor import Part, Processor
from ..model.args import ModelArgs
from ..model.batch import Batch
from ..model.document import BOS, END_IMAGE, EOS, IMAGE, PAD, SPECIAL_WORDS, UNK
from ..model.network import PixWordModel
from ..ops.dispatch.choose import forward_only
from .filters import filtered
from .margins import with_margins
from .settings import SampleArgs
from .word_steps import WordSteps, numpy_pays

Chooser = Callable[[list[list[int]], mx.array], tuple[mx.array, mx.array]]

NEVER_GENERATED = (UNK, BOS, PAD, IMAGE, END_IMAGE)


class Step(NamedTuple):
    """One word of every row: ids ``[B]``, their natural-log probabilities, and whether it is the last step."""

    words: list[int]
    log_probabilities: list[float]
    last: bool


@dataclass(frozen=True)
class Response:
    """One step of a stream.

    Attributes:
        text: what this step adds.
        token: the word id.
        tokens: words generated so far.
        prompt_elements: words and windows read.
        prompt_seconds, seconds: time to read the prompt, and to generate since then.
        finish_reason: None while going on, "stop" at ``</s>``, "length" at a limit.
        log_probability: natural log of the word's probability.
    """

    text: str
    token: int
    tokens: int
    prompt_elements: int
    prompt_seconds: float
    seconds: float
    finish_reason: str | None
    log_probability: float = 0.0


def stream_generate(
    model: PixWordModel, processor: Processor, parts: Sequence[Part], **sample_args: Any
) -> Iterator[Response]:
    """Generate words after a document, one step at a time.

    Args:
        model, processor: from `pw.load`.
        parts: texts, images and word ids in reading order.
        sample_args: fields of `SampleArgs`: max_tokens, temp, top_p, top_k, min_p, repetition_penalty, seed
            (None: another one every time).

    Example:
        >>> for response in pw.stream_generate(model, processor, [image]):
        ...     print(response.text, end="", flush=True)
    """
    start = time.perf_counter()
    batch = processor(parts)
    words, shown, prompt_seconds = list[int](), "", 0.0
    elements = batch.elements.shape[1]
    for (word,), (log_probability,), last in generate_words(model, batch, SampleArgs(**sample_args)):
        prompt_seconds = prompt_seconds or time.perf_counter() - start
        words += [] if word == EOS else [word]
        done = word == EOS or last
        text = text_so_far(processor, words, done)
        seconds = time.perf_counter() - start - prompt_seconds
        reason = "stop" if word == EOS else "length" if last else None
        yield Response(text[len(shown) :], word, len(words), elements, prompt_seconds, seconds, reason, log_probability)
        shown = text
        if done:
            return


def text_so_far(processor: Processor, words: Sequence[int], done: bool) -> str:
    """The text of the words of a stream; a character that is not finished at its end waits for its bytes.

    All words are decoded together, so that what was shown adds up to what a tokenizer makes of them as a whole. The
    streaming detokenizers of mlx-lm begin anew behind a line break, which costs tokenizers of the kind of Llama's the
    space there, or count damaged bytes in another way.
    """
    text = processor.decode(words)
    return text if done else text.rstrip("\ufffd")


def generate_text(model: PixWordModel, processor: Processor, parts: Sequence[Part], **sample_args: Any) -> str:
    """The words that follow a document, as one text; arguments as `stream_generate`."""
    return "".join(response.text for response in stream_generate(model, processor, parts, **sample_args))


def generate_batch(model: PixWordModel, processor: Processor, batch: Batch, **sample_args: Any) -> list[str]:
    """The words that follow each row of a batch, generated together."""
    rows: list[list[int]] = [[] for _ in batch.documents]
    done = [False] * len(rows)
    for words, _, _ in generate_words(model, batch, SampleArgs(**sample_args)):
        done = [d or w == EOS for d, w in zip(done, words, strict=True)]
        for row, word, over in zip(rows, words, done, strict=True):
            row += [] if over else [word]
        if all(done):
            break
    return [processor.decode(row) for row in rows]


def require_words(args: ModelArgs) -> None:
    """Raise `PixWordError` for a model that knows no words."""
    if args.vocab_size <= len(SPECIAL_WORDS):
        raise PixWordError("this model was trained on images alone and knows no words; it can draw, and not read")


def generate_words(model: PixWordModel, batch: Batch, args: SampleArgs) -> Iterator[Step]:
    """Words step by step; the next step is under way meanwhile.

    Probabilities are the model's own, over all V words, however the words are sampled: those of `log_likelihood`. Of
    several margins it is the geometric mean.
    """
    require_words(model.args)
    batch, margins = with_margins(batch, model.args, args.margins or model.calibration.margins, args.max_tokens)
    lengths = [sum(map(len, row)) for row in batch.documents]
    limit = min(args.max_tokens, model.args.max_seq_len - max(lengths) + 1)
    outlive_this_thread()
    if numpy_pays(model):
        yield from _words_by_numpy(model, batch, args, limit, margins)
        return
    choose = _chooser(model.args.vocab_size, args, margins)
    cache = _make_cache(model, lengths, batch.elements.shape[1])
    after = [row[-1].positions(model.args.grid)[1] for row in batch.documents]  # positions of the first words
    shift = mx.array(after) - mx.array(lengths)  # of positions over places
    at_end = mx.array(lengths)[:, None, None] - 1
    with forward_only():
        x = model.read(batch, model.states_in_chunks(batch), cache)  # [B, L, D]
        logits = model.logits(mx.take_along_axis(x, at_end, axis=1))[:, 0]  # [B, V + K], of the last elements alone
    for layer_cache in cache:
        layer_cache.finalize()
    history: list[list[int]] = [[] for _ in lengths[::margins]]
    chosen = choose(history, logits)
    for n in range(limit):
        words, log_probabilities = chosen
        if n + 1 < limit and args.repetition_penalty == 1:  # the penalty needs the words themselves first
            chosen = choose(history, _extend(model, mx.repeat(words, margins), cache, shift))
            mx.async_eval(*chosen)
        ids: list[int] = words.tolist()  # type: ignore[assignment]
        for row, word in zip(history, ids, strict=True):
            row.append(word)
        yield Step(ids, log_probabilities.tolist(), n + 1 == limit)  # type: ignore[arg-type]
        if n + 1 < limit and args.repetition_penalty != 1:
            chosen = choose(history, _extend(model, mx.repeat(words, margins), cache, shift))


def _words_by_numpy(model: PixWordModel, batch: Batch, args: SampleArgs, limit: int, margins: int) -> Iterator[Step]:
    """The same by token steps of NumPy; the likeliest words are chosen there too, and others as ever."""
    greedy = args.repetition_penalty == 1 and args.temperature(0.0) == 0
    choose = None if greedy else _chooser(model.args.vocab_size, args, margins)
    steps = WordSteps(model, batch, max(limit, 0))
    history: list[list[int]] = [[] for _ in batch.documents[::margins]]
    for n in range(limit):
        if choose is None:
            words, log_probabilities = _likeliest(steps.logits, margins)
        else:
            words, log_probabilities = map(np.array, choose(history, mx.array(steps.logits)))
        ids = words.tolist()
        for row, word in zip(history, ids, strict=True):
            row.append(word)
        yield Step(ids, log_probabilities.tolist(), n + 1 == limit)
        if n + 1 < limit:
            steps.put([word for word in ids for _ in range(margins)])


def _likeliest(logits: np.ndarray, margins: int) -> tuple[np.ndarray, np.ndarray]:
    """Words ``[B]`` and their natural-log probabilities, of logits ``[B margins, V]``."""
    top = logits.max(axis=1, keepdims=True)
    scores = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    scores = scores.reshape(-1, margins, scores.shape[1]).mean(axis=1)
    allowed = scores.copy()
    allowed[:, list(NEVER_GENERATED)] = -np.inf
    words = allowed.argmax(axis=1)
    return words, np.take_along_axis(scores, words[:, None], axis=1)[:, 0]


def _extend(model: PixWordModel, words: mx.array, cache: list[Any], shift: mx.array) -> mx.array:
    return model.extend(words[:, None], (cache[0].offset + shift)[:, None], cache)[:, -1]


def _make_cache(model: PixWordModel, lengths: list[int], width: int) -> list[Any]:
    from mlx_lm.models.cache import BatchKVCache  # mlx-lm takes over a second to import

    caches = [BatchKVCache([0] * len(lengths)) for _ in model.layers]
    for layer_cache in caches:
        layer_cache.prepare(right_padding=[width - length for length in lengths])
    return caches


def _chooser(num_words: int, args: SampleArgs, margins: int) -> Chooser:
    """``choose(history, logits [B margins, V + K]) -> words [B], their log-probabilities [B]``.

    MLX's global random state stays as it is.
    """
    from mlx_lm.sample_utils import make_logits_processors

    penalty, temperature = args.repetition_penalty, args.temperature(0.0)
    penalize = make_logits_processors(repetition_penalty=penalty if penalty != 1 else None)
    never = mx.zeros(num_words).at[mx.array(NEVER_GENERATED)].add(-mx.inf)
    key = mx.random.key(args.chosen_seed())

    def choose(history: list[list[int]], logits: mx.array) -> tuple[mx.array, mx.array]:
        nonlocal key
        scores = logits[:, :num_words]
        scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        scores = scores.reshape(-1, margins, num_words).mean(axis=1) if margins > 1 else scores
        logits = scores + never
        for process in penalize:
            rows = [process(mx.array(past), logits[n : n + 1]) for n, past in enumerate(history)]
            logits = mx.concatenate(rows)
        words = mx.argmax(logits, axis=-1)
        if temperature > 0:
            key, now = mx.random.split(key)
            words = mx.random.categorical(filtered(logits, args) / temperature, key=now)
        return words, mx.take_along_axis(scores, words[:, None], axis=1)[:, 0]

    return choose
