"""Files for the tests of sources, and ways to look at what is read from them."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mlx_pixword.common.errors import PixWordError

REFERENCE = "<|image|>{}<|/image|>"


def png(color="red", size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = png() if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_chat(path, documents):
    records = [
        {
            "id": str(i),
            "image": image,
            "conversations": [
                {"from": "human", "value": "What?\n<image>"},
                *({"from": "gpt", "value": v} for v in values),
            ],
        }
        for i, (image, *values) in enumerate(documents)
    ]
    return write(path, json.dumps(records, ensure_ascii=False))


def shown(parts):
    """Parts with pictures as the red, green and blue of their first pixel."""
    return [part if isinstance(part, str) else tuple(part.rgb(8)[0, 0].tolist()) for part in parts]


def names(source):
    return [source.parts(i)[0].name for i in range(len(source))]


def refused(match, function, *arguments, **options):
    with pytest.raises(PixWordError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


def open_descriptors():
    return sum(1 for _ in Path("/dev/fd").iterdir())


RED, BLUE = (255, 0, 0), (0, 0, 255)


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG of a size, whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(bytes(100))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, idat))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
