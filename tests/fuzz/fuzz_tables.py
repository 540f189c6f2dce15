"""Fuzzing tables of images and texts, CSV and TSV, and captions kept as one object of JSON, COCO's among them."""

import json
import random
import tempfile
from pathlib import Path

from fuzz_texts import read_through
from fuzzing import Target, broken, random_edits
from odd_json import odd_json

NAMES = ("a.csv", "a.tsv", "captions_x.json")
TABLES = (
    'file_name,text\na.png,one\nb.png,"two, with a comma\nand a line"\n\n\xfc.png,\'""\'\n',
    "a.png;eins\nb.png;zwei\n",
    'id\tImage\tcaption\n1\ta.png\t\u65e5\u672c\u8a9e\n2\tb c.png\t"quoted"\n',
    "a.png\tone\tor two\nb.png\tthree\n",
    "text,x.png\n",
)
COCO = {
    "info": {"year": 2017}, "licenses": [],
    "images": [{"id": n, "file_name": f"{n}.jpg", "coco_url": f"http://x/{n}.jpg"} for n in range(4)],
    "annotations": [{"id": n, "image_id": n % 3, "caption": f" a caption {n}\n"} for n in range(5)],
}  # fmt: skip


def check(data: bytes) -> None:
    """The first byte says which kind of file the others are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAMES[(data[0] if data else 0) % 3]
        path.write_bytes(data[1:])
        read_through(path)


def seeds() -> list[bytes]:
    objects = [json.dumps(COCO), json.dumps({"a.png": "one", "\xfc.jpg": "\ud800"}, indent=1)]
    kinds = (0, 0, 1, 1, 0, 2, 2)
    return [bytes([kind]) + text.encode() for kind, text in zip(kinds, (*TABLES, *objects), strict=True)]


def remake(seed: bytes, rng: random.Random) -> bytes:
    """Change what an object says; move the cells of a table."""
    kind, content = seed[:1], seed[1:]
    if NAMES[seed[0] % 3].endswith(".json"):
        return kind + odd_json(content, rng)
    lines = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(rng.randint(1, 4)):
        cells = rng.choice(lines)
        cells.insert(rng.randint(0, len(cells)), rng.choice(WORDS))
        if rng.random() < 0.3:
            lines.append(rng.choice(lines))
    return broken(kind + b"\n".join(map(b",".join, lines)), random_edits(rng)[:2], WORDS)


WORDS = (
    b",", b";", b"\t", b"|", b'"', b'""', b'"\n', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"a.png", b"file_name", b"text", b"label", b"../a.png", b"/etc/hostname.png",
    b"x" * 140_000, b"," * 3000, b'"image_id"', b'"file_name": 3', b'"annotations": [', b"<|image|>", b"<image>",
    b"\\ud800", b"9" * 5000, b"[" * 1200, b"1e999", b"NaN",
)  # fmt: skip
TARGET = Target("tables", seeds, check, WORDS, remake=remake)
