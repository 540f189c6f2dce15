"""JSON that is kept, and long columns inside it: compressed, so that 20,000 readings of a run take some 60 kB."""

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import make_folder, replace_file

SEPARATOR = "\x1f"  # between texts; no face has it


def read_json(path: Path) -> Any:
    """A JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PixWordError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PixWordError(f"{path} is not JSON, or a damaged file: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there as a whole or as it was before."""
    make_folder(path.parent)
    replace_file(path, (json.dumps(value, indent=1, allow_nan=True) + "\n").encode())


def pack_texts(texts: Sequence[str]) -> str:
    """Texts as one string of base64."""
    return base64.b64encode(zlib.compress(SEPARATOR.join(texts).encode(), 9)).decode()


def unpack_texts(packed: str) -> list[str]:
    """The texts of `pack_texts`."""
    return zlib.decompress(base64.b64decode(packed)).decode().split(SEPARATOR)


def pack_column(values: np.ndarray) -> dict[str, str]:
    """A column of numbers, with its type."""
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
    return {"dtype": values.dtype.str, "data": data}


def unpack_column(packed: dict[str, str]) -> np.ndarray:
    """The column of `pack_column`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), packed["dtype"])
