"""Chat requests in OpenAI's form: from JSON to a document and settings, and from words to answers.

A message's texts and images follow each other as they stand, and so do the messages: the model knows no roles. Images
are data URLs; nothing is ever fetched.
"""

import base64
import binascii
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..common.errors import BadImage, PixWordError
from ..common.settings import build, shown
from ..data.decoders import Decoders
from ..inference.read import Reading, reading_of
from ..inference.settings import SampleArgs
from ..inference.words import Response, stream_generate
from ..inputs.processor import Part, Processor, tokens_of
from ..model.network import PixWordModel
from ..pixels.images import decode_image

DEFAULT_MODEL = "default_model"  # mlx-lm's name for the one that is there
STOP_WORDS = 4  # at most, as OpenAI's


class NotServed(PixWordError):
    """A model that this server does not have."""


@dataclass(frozen=True)
class SentImage:
    """An image from a request, not decoded yet; `Decoders` takes it."""

    name: str
    content: bytes
    cache_key: None = None

    def encoded(self) -> bytes:
        return self.content

    def rgb(self, image_size: int) -> np.ndarray:
        from io import BytesIO

        return decode_image(BytesIO(self.content), image_size)


@dataclass(frozen=True)
class ChatRequest:
    """One request, checked.

    Attributes:
        parts: texts and images in reading order.
        sample: settings of the sampling.
        stream: whether words are sent as they come.
        usage: whether a stream ends with the number of words.
        logprobs: whether each word's probability is told.
        stop: texts that end the answer and are no part of it.
    """

    parts: list[str | SentImage]
    sample: SampleArgs
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    stop: tuple[str, ...] = ()


def parse_request(body: Any, model: str, most_images: int, most_words: int) -> ChatRequest:
    """Check a request's JSON.

    Raises:
        NotServed: another model is asked for.
        PixWordError: what is wrong with the request.
    """
    if not isinstance(body, dict):
        raise PixWordError(f"the body must be a JSON object, got {type(body).__name__}")
    wanted = body.get("model", DEFAULT_MODEL)
    if wanted not in (model, DEFAULT_MODEL):
        raise NotServed(f"the model {shown(wanted)} is not served here; this server has {model!r}")
    if body.get("n", 1) != 1:
        raise PixWordError(f"n must be 1, got {shown(body['n'])}")
    if body.get("tools"):
        raise PixWordError("tools are not supported")
    parts = _parts(body.get("messages"))
    if (images := sum(isinstance(part, SentImage) for part in parts)) > most_images:
        raise PixWordError(f"the request has {images} images, at most {most_images} are taken")
    options = body.get("stream_options") or {}
    return ChatRequest(
        parts, _sample_args(body, most_words), _flag(body, "stream"),
        isinstance(options, dict) and options.get("include_usage") is True, _flag(body, "logprobs"), _stop(body),
    )  # fmt: skip


def _parts(messages: Any) -> list[str | SentImage]:
    if not isinstance(messages, list) or not messages:
        raise PixWordError("messages must be a list of at least one message")
    parts: list[str | SentImage] = []
    for n, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise PixWordError(f"messages[{n}] needs a content, a text or a list of parts")
        parts += [_part(part, f"messages[{n}].content[{m}]") for m, part in enumerate(content)]
    parts = [part for part in parts if part != ""]
    if not parts:
        raise PixWordError("the messages are empty; give a text or an image")
    return parts


def _part(part: Any, where: str) -> str | SentImage:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return SentImage(where, _decode_url(url, where))
    raise PixWordError(f'{where} must be {{"type": "text", "text": ...}} or {{"type": "image_url", "image_url": ...}}')


def _decode_url(url: str, where: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise PixWordError(f"{where}: images must be data URLs, data:image/png;base64,...; got {shown(url[:60])}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise PixWordError(f"{where}: the image's data URL is not base64") from None


def _sample_args(body: Mapping[str, Any], most_words: int) -> SampleArgs:
    """Sampling as OpenAI and mlx-lm name it; what is null or left out has its default."""
    names = {f.name for f in fields(SampleArgs)} - {"temp", "max_tokens"}
    values = {name: body[name] for name in sorted(names) if body.get(name) is not None}
    values["temp"] = body.get("temperature", None)
    words = (
        body.get("max_completion_tokens") if body.get("max_completion_tokens") is not None else body.get("max_tokens")
    )
    values |= {} if words is None else {"max_tokens": words}
    if values.get("repetition_penalty") == 0:  # mlx-lm's way to say none
        del values["repetition_penalty"]
    args = build(SampleArgs, values, "the request")
    if args.max_tokens > most_words:
        raise PixWordError(f"max_tokens must be at most {most_words}, got {args.max_tokens}")
    return args


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise PixWordError(f"{name} must be true or false, got {shown(value)}")
    return bool(value)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > STOP_WORDS or not all(isinstance(s, str) and s for s in stop):
        raise PixWordError(f"stop must be a text or up to {STOP_WORDS} texts, got {shown(body['stop'])}")
    return tuple(stop)


def respond(model: PixWordModel, processor: Processor, decoders: Decoders, request: ChatRequest) -> Iterator[Response]:
    """Decode the images in processes of their own, and generate the answer word by word.

    Raises:
        PixWordError: an image that cannot be used, with its place, or a document that is too long.
    """
    parts: list[Part] = []
    for part in request.parts:
        if isinstance(part, SentImage):
            try:
                parts.append(tokens_of(decoders.rgb(part, processor.args.image_size), processor.args))
            except BadImage as error:
                raise PixWordError(f"{part.name}: {error}") from error
        else:
            parts.append(part)
    yield from stream_generate(model, processor, parts, **vars(request.sample))


class Answer:
    """Builds what is sent: chunks while words come, or the whole at the end."""

    def __init__(self, request: ChatRequest, model: PixWordModel, processor: Processor, name: str) -> None:
        self._request, self._model, self._processor, self._name = request, model, processor, name
        self._id, self._created = f"chatcmpl-{uuid.uuid4()}", int(time.time())
        self._words, self._scores = list[int](), list[float]()
        self._last: Response | None = None
        self._reason = "stop"

    def texts(self, responses: Iterable[Response]) -> Iterator[tuple[str, Response]]:
        """Texts to send, without a stop text; what may be the start of one waits."""
        held = ""
        for response in responses:
            self._last = response
            self._words.append(response.token)
            self._scores.append(response.log_probability)
            text, stopped = cut_at(held + response.text, self._request.stop)
            done = stopped or response.finish_reason is not None
            ready = len(text) if done else len(text) - overlap(text, self._request.stop)
            held = text[ready:]
            yield text[:ready], response
            if done:
                self._reason = "stop" if stopped else response.finish_reason or "stop"
                return

    def chunk(self, text: str, response: Response) -> dict[str, Any]:
        """A part of a stream."""
        delta = {"role": "assistant", "content": text} if text else {"role": "assistant"}
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if self._request.logprobs:
            choice["logprobs"] = {"content": [self._logprob(response.token, response.log_probability)]}
        return self._envelope("chat.completion.chunk") | {"choices": [choice]}

    def end_of_stream(self) -> list[dict[str, Any]]:
        """The parts that end a stream: why it ended and how sure the whole is, and how long it is if that was asked."""
        choice = {"index": 0, "delta": {}, "finish_reason": self._reason, "confidence": self._reading().confidence}
        chunks = [self._envelope("chat.completion.chunk") | {"choices": [choice]}]
        if self._request.usage:
            chunks.append(self._envelope("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        return chunks

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one piece; ``confidence`` is ours, everything else OpenAI's."""
        message = {"role": "assistant", "content": text}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": self._reason}
        if self._request.logprobs:
            pairs = zip(self._words, self._scores, strict=True)
            choice["logprobs"] = {"content": [self._logprob(word, score) for word, score in pairs]}
        choice["confidence"] = self._reading().confidence
        return self._envelope("chat.completion") | {"choices": [choice], "usage": self._usage()}

    def _reading(self) -> Reading:
        return reading_of(self._processor, self._words, self._scores, self._model.calibration)

    def _logprob(self, word: int, score: float) -> dict[str, Any]:
        token = self._processor.decode([word])
        return {"token": token, "id": word, "logprob": score, "bytes": list(token.encode()), "top_logprobs": []}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._name}

    def _usage(self) -> dict[str, int]:
        prompt = self._last.prompt_elements if self._last else 0
        words = self._last.tokens if self._last else 0
        return {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of some stop texts, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def overlap(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the start of a stop text."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)
