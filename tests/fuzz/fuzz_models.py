"""Fuzzing model directories: one of their files is replaced, and the folder is loaded and, if it loads, used."""

import json
import random
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
from fuzzing import Finding, Target, broken, random_edits
from odd_json import odd_json

import mlx_pixword as pw
from mlx_pixword.inputs.tokenizer import Tokenizer, train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel

NAMES = ("config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "model.safetensors.index.json")
SMALL = {
    "fold_factor": 128, "image_size": 8, "window_size": 4, "hidden_size": 8, "num_heads": 2, "num_kv_heads": 1,
    "num_layers": 1, "image_layers": 1, "intermediate_size": 8, "max_seq_len": 16, "dtype": "float32",
}  # fmt: skip
TEXT = "some words, ünï 123"


def check(data: bytes) -> None:
    """The first byte says which file the others replace."""
    name = NAMES[data[0] % len(NAMES) if data else 0]
    good = _good()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(good, folder)
        if name == "tokenizer.json":
            (folder / "tokenizer.model").unlink()
        (folder / name).write_bytes(data[1:])
        _, processor = pw.load(folder)
        if processor.tokenizer is not None:
            _use(processor.tokenizer)


def _use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    if not all(i == 0 or 6 <= i < tokenizer.vocab_size for i in ids):
        raise Finding("words", f"ids {ids} of {tokenizer.vocab_size}")
    tokenizer.decode([*ids, *range(min(tokenizer.vocab_size, 300))])


@cache
def _good() -> Path:
    folder = Path(tempfile.mkdtemp()) / "model"
    tokenizer = train_tokenizer([TEXT, "a few more"], 300)
    mx.random.seed(0)
    pw.save_model(PixWordModel(ModelArgs(**SMALL, vocab_size=tokenizer.vocab_size)), tokenizer, folder)  # type: ignore[arg-type]
    return folder


def seeds() -> list[bytes]:
    files = [(_good() / name).read_bytes() for name in NAMES[:3]] + [_tokenizer_json(), b'{"weight_map": {}}']
    return [bytes([kind]) + content for kind, content in enumerate(files)]


def _tokenizer_json() -> bytes:
    """A small byte-level BPE of as many words as the good model has."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    size = json.loads((_good() / "config.json").read_text())["vocab_size"] - 6
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: i for i, letter in enumerate([*letters, *(f"w{n}" for n in range(size))][:size])}
    model = Model(models.BPE(words, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return model.to_str().encode()


def remake(seed: bytes, rng: random.Random) -> bytes:
    """Change what the JSON of a file says: all of it, or a header with the length and the tensors around it."""
    kind, content = seed[:1], seed[1:]
    if NAMES[seed[0]].endswith(".json"):
        return kind + odd_json(content, rng)
    if NAMES[seed[0]].endswith(".safetensors"):
        (length,) = struct.unpack("<Q", content[:8])
        header = odd_json(content[8 : 8 + length], rng)
        return kind + struct.pack("<Q", len(header)) + header + content[8 + length :]
    return broken(seed, random_edits(rng), WORDS)


WORDS = (
    b'"dtype"', b'"shape":[', b'"data_offsets":[0,0]', b"4611686018427387904,", b"-1", b"0,", b"1e999", b"NaN",
    b"9" * 5000, b"1" + b"0" * 400, b"[" * 1200, b'{"a":' * 500, b'"F64"', b'"BF16"', b"\\ud800", b"\\n", b"\xff",
    b"\0", b"null", b"true", b'"__metadata__":{"a":3},', b'"__metadata__":3,',
    b'"x\\ny":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},', b'"num_layers": 99999,',
    b'"window_size": 2147483647,', b'"type":"WordPiece"', b'"unk_token":"x"', b'"added_tokens":[',
    b'{"id":4294967295,"content":"x","special":true}', b'"Split"', b'"pattern":{"Regex":"(a+)+$"}', b'"rope_theta": ',
)  # fmt: skip
TARGET = Target("models", seeds, check, WORDS, remake=remake)
