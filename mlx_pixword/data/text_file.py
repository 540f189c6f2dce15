"""Many small crops with their captions in one file, `.pwtext`, read at random without loading it.

The file is an uncompressed `.npz` (``numpy.load`` reads it, without pickle): ``pixels-N`` uint8, crop after crop, each
``[h, w, 3]``; ``shard``, ``start``, ``height``, ``width`` say where a crop lies; ``text`` is UTF-8; further arrays hold
one value a crop, such as ``ink_height``; ``about.json`` explains what is numbered, such as ``face``.
"""

import io
import json
import mmap
import zipfile
from array import array as Column  # a list of plain numbers, in an eighth of its memory
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import PixWordError
from ..common.files import move, perform, sync_file
from .base import Picture, digest_of

SUFFIX = ".pwtext"
VERSION = 1
SHARD_BYTES = 2**26  # of pixels that are held while a file is written
_PLACES = ("shard", "start", "height", "width")


def write_text_file(
    path: Path, crops: Iterable[tuple[np.ndarray, str, Mapping[str, float]]], about: Mapping[str, Any]
) -> int:
    """Write crops ``(pixels, text, values)`` as they come; the file is there when it is whole.

    Args:
        path: the file; its folder must exist.
        crops: pixels uint8 ``[h, w, 3]``; all have the same names of values.
        about: plain values, kept as JSON.

    Returns:
        How many were written.
    """
    draft = path.with_name(f".{path.name}.draft")
    shard, held, columns, texts = 0, list[np.ndarray](), dict[str, "Column[Any]"](), list[bytes]()
    size = 0
    try:
        archive = perform("create", draft, lambda: zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED))
        with archive:
            for pixels, text, values in crops:
                if size + pixels.size > SHARD_BYTES and held:
                    _add(archive, draft, f"pixels-{shard}", np.concatenate(held))
                    shard, size, held = shard + 1, 0, []
                places = (shard, size, *pixels.shape[:2])
                for name, value in (*zip(_PLACES, places, strict=True), *values.items()):
                    columns.setdefault(name, Column("d" if isinstance(value, float) else "q")).append(value)
                held.append(pixels.ravel())
                texts.append(text.encode())
                size += pixels.size
            if not texts:
                raise PixWordError(f"no crops to write to {path}")
            _add(archive, draft, f"pixels-{shard}", np.concatenate(held))
            for name, column in columns.items():
                _add(archive, draft, name, _narrow(column))
            _add(archive, draft, "text", np.array(texts))
            content = json.dumps({"version": VERSION, **about}).encode()
            perform("write", draft, lambda: archive.writestr("about.json", content))
        sync_file(draft)
        move(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return len(texts)


def _narrow(values: "Column[Any]") -> np.ndarray:
    column = np.frombuffer(values, values.typecode)
    return column.astype(np.float32 if column.dtype.kind == "f" else np.int32)


def _add(archive: zipfile.ZipFile, path: Path, name: str, array: np.ndarray) -> None:
    def write() -> None:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    perform("write", path, write)


@dataclass(frozen=True)
class PackedCrop:
    """A `Picture` in a file of crops."""

    pixels: np.ndarray
    name: str
    cache_key: None = None

    def rgb(self, image_size: int) -> np.ndarray:
        """See ``Picture.rgb``; it is never scaled, or the height of its ink would be another than the file says."""
        if max(self.pixels.shape[:2]) > image_size:
            raise PixWordError(_too_large(self.name, max(self.pixels.shape[:2]), image_size))
        return self.pixels


def _too_large(name: str, side: int, image_size: int) -> str:
    return (
        f"{name} has {side} pixels on a side, and image_size is {image_size}; text would be made smaller than the file "
        f"says: raise image_size, or make the file with scripts/make_text.py --image-size {image_size}"
    )


class TextFile:
    """A `.pwtext` file as a source; safe to use from any thread.

    Attributes:
        columns: arrays of one value a crop, memory-mapped, such as ``ink_height``.
        about: what was written beside them.
    """

    endless, captioned = False, True

    def __init__(self, path: Path) -> None:
        self.name, self.unusable = str(path), list[tuple[str, str]]()
        try:
            self._members = _map(path)
            self.about: dict[str, Any] = json.loads(bytes(self._members.pop("about.json")[1]))
            arrays = {name.removesuffix(".npy"): _array(*member) for name, member in self._members.items()}
            shards = sum(name.startswith("pixels-") for name in arrays)
            self._shards = [arrays.pop(f"pixels-{n}") for n in range(shards)]
            self._text = arrays.pop("text")
            self._places = [arrays.pop(name) for name in _PLACES]
            self.columns: dict[str, np.ndarray] = arrays
            self._check()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
            raise PixWordError(f"{path} is no file of packed text, or a damaged one: {error}; make it again") from None

    def _check(self) -> None:
        if self.about.get("version") != VERSION:
            raise ValueError(f"version {self.about.get('version')}, this program reads {VERSION}")
        shard, start, height, width = (place.astype(np.int64) for place in self._places)
        lengths = {len(array) for array in (self._text, shard, start, height, width, *self.columns.values())}
        if lengths != {len(self._text)} or not len(self._text) or self._text.dtype.kind != "S":
            raise ValueError("its arrays do not belong together")
        sizes = np.array([shard.size for shard in self._shards])
        inside = (shard >= 0) & (shard < len(sizes)) & (start >= 0) & (height > 0) & (width > 0)
        if not inside.all() or (start + height * width * 3 > sizes[shard]).any():
            raise ValueError("crops lie outside its pixels")

    def __len__(self) -> int:
        return len(self._text)

    def check_room(self, image_size: int) -> None:
        """Raise `PixWordError` if a crop is larger than S."""
        sides = np.maximum(*self._places[2:]).astype(np.int64)
        largest = int(sides.argmax())
        if sides[largest] > image_size:
            raise PixWordError(_too_large(f"{self.name}, crop {largest}", int(sides[largest]), image_size))

    def crop(self, index: int) -> np.ndarray:
        """Pixels uint8 ``[h, w, 3]``, read-only."""
        shard, start, height, width = (int(place[index]) for place in self._places)
        pixels: np.ndarray = self._shards[shard][start : start + height * width * 3]
        return pixels.reshape(height, width, 3)

    def text(self, index: int) -> str:
        """What a crop says."""
        return bytes(self._text[index]).decode()

    def facts(self, index: int) -> dict[str, float]:
        """The further values of a crop."""
        return {name: column[index].item() for name, column in self.columns.items()}

    def parts(self, index: int) -> list[str | Picture]:
        """See ``Source.parts``."""
        return [PackedCrop(self.crop(index), f"{self.name}, crop {index}"), self.text(index)]

    def texts(self) -> Iterator[str]:
        """See ``Source.texts``."""
        return map(self.text, range(len(self)))

    def digest(self) -> str:
        """See ``Source.digest``: the checksums that the file keeps of its contents."""
        return digest_of(sorted((name, member[0]) for name, member in self._members.items()))

    def entries(self) -> Iterator[tuple[str, int]]:
        """What each document is made of: a crop of this very file."""
        digest = self.digest()
        return ((f"{digest} {crop}", -1) for crop in range(len(self)))

    def label(self, index: int) -> str:
        """What a message calls a document."""
        return f"crop {index} of {Path(self.name).name}"


def _map(path: Path) -> dict[str, tuple[int, memoryview]]:
    """Checksum and bytes of each member of an uncompressed zip file."""
    members = dict[str, tuple[int, memoryview]]()
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
            header = view[info.header_offset : info.header_offset + 30]
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            first = info.header_offset + 30 + name + extra
            if first + info.file_size > len(view):
                raise ValueError(f"{info.filename} is cut short")
            members[info.filename] = info.CRC, view[first : first + info.file_size]
    return members


def _array(_: int, content: memoryview) -> np.ndarray:
    """The array of one ``.npy`` member, without copying it."""
    start = io.BytesIO(content[:4096])
    if (version := np.lib.format.read_magic(start)) != (1, 0):
        raise ValueError(f"an array of version {version}")
    shape, _order, dtype = np.lib.format.read_array_header_1_0(start)
    if len(shape) != 1 or dtype.hasobject:
        raise ValueError("an array of an unknown kind")
    return np.frombuffer(content, dtype, shape[0], start.tell())
