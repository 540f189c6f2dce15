"""Fuzzing texts: UPW text files, lines of JSON and LLaVA's array, each opened as a source and read to the end."""

import json
import random
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from fuzzing import Finding, Target, broken, random_edits
from odd_json import odd_json

from mlx_pixword.common.errors import BadImage
from mlx_pixword.data.decoders import Decoders
from mlx_pixword.data.sources import open_source
from mlx_pixword.inputs.tokenizer import Tokenizer, train_tokenizer

NAMES = ("a.txt", "a.jsonl", "chat.json")
MOST = 20  # documents and pictures that are read of an input
TEXTS = (
    "Some words <|image|>a.png<|/image|> more words, and <|image|> b/c.jpg <|/image|>\n" * 3,
    "\ufeffünï 日本語 \U0001f600 \x00 \u2028 <|image|>ü.png<|/image|>",
    "<|image|>/etc/hostname<|/image|><|image|>../a.png<|/image|>",
)


def check(data: bytes) -> None:
    """The first byte says which kind of file the others are, and whether references may leave their folder."""
    kind = data[0] if data else 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[kind % 3]
        path.write_bytes(data[1:])
        read_through(path, allow_outside=kind % 2 == 1)


def read_through(path: Path, allow_outside: bool = False) -> None:
    """Open a file as a source and use what it gives as a run does."""
    source = open_source(path, allow_outside=allow_outside)
    source.digest()
    if len(list(source.entries())) != len(source):  # type: ignore[attr-defined]
        raise Finding("entries", "the listing does not have every document")
    documents = [source.parts(index) for index in range(min(len(source), MOST))]
    pictures = [part for document in documents for part in document if not isinstance(part, str)]
    if len(source) <= MOST and [p for d in documents for p in d if isinstance(p, str)] != list(source.texts()):
        raise Finding("texts", "the texts of the documents are not those of the source")
    for picture in pictures[:MOST]:
        if not picture.name.startswith("/dev") and "/proc" not in picture.name:
            _look(picture)
    for text in islice(source.texts(), MOST):
        _encode(text)


def _look(picture: object) -> None:
    try:
        _tools().decoders.rgb(picture, 16)
    except BadImage as error:
        if str(error).startswith("it crashes"):
            raise Finding("decoder", str(error)) from error


def _encode(text: str) -> None:
    tokenizer: Tokenizer = _tools().tokenizer
    ids = tokenizer.encode(text)
    if not all(6 <= i < tokenizer.vocab_size or i == 0 for i in ids):
        raise Finding("words", "a text became special words")
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\u2581", " ")
    if tokenizer.decode(ids) != whole:
        raise Finding("words", f"{whole[:80]!r} became {tokenizer.decode(ids)[:80]!r}")


@cache
def _tools() -> SimpleNamespace:
    return SimpleNamespace(decoders=Decoders(5.0), tokenizer=train_tokenizer(list(TEXTS), 400))


def seeds() -> list[bytes]:
    lines = [
        json.dumps({"text": TEXTS[0]}),
        json.dumps({"image": "a.png", "caption": "ünï \ud800"}),
        json.dumps({"image": "b.png", "caption": TEXTS[1]}, ensure_ascii=False),
    ]
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": TEXTS[1]}]
    chat = json.dumps([{"id": "1", "image": "a.png", "conversations": turns}] * 3)
    contents = [*TEXTS, "\n".join(lines), "\r\n\r\n".join(lines), chat]
    kinds = (0, 3, 3, 1, 4, 2)
    return [bytes([kind]) + content.encode("utf-8", "replace") for kind, content in zip(kinds, contents, strict=True)]


def remake(seed: bytes, rng: random.Random) -> bytes:
    """Change what the JSON of records says."""
    kind, lines = seed[:1], [seed[1:]] if NAMES[seed[0] % 3] == "chat.json" else seed[1:].splitlines()
    if NAMES[seed[0] % 3] == "a.txt":
        return broken(seed, random_edits(rng), WORDS)
    return kind + b"\n".join(odd_json(line, rng) if line else line for line in lines)


WORDS = (
    b"<|image|>", b"<|/image|>", b"<|image|>x<|/image|>", b'{"text": "', b'"}\n', b'{"image": "a", "caption": ""}\n',
    b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\0", b"../", b"/" * 300, b"9" * 5000, b"[" * 1200,
    b'{"a":' * 500, b"1e999", b"NaN", b"\xef\xbb\xbf", b",", b"]", b'"image"', b'"conversations": [', b"\r", b"\x0b",
)  # fmt: skip
TARGET = Target("texts", seeds, check, WORDS, remake=remake)
