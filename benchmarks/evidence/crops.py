"""Crops drawn beforehand: training, development and test sets, and the facts of the test set that analyses need.

The test set takes strings and font families that are not in training. Development crops are of the training side, other
draws: what is chosen by them says nothing of the held-out families. Real sets come from a folder, if there is one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.common.files import make_folder
from mlx_pixword.config.data import TEXT_KINDS
from mlx_pixword.data.fonts import Face, find_faces, package_folders
from mlx_pixword.data.text_file import TextFile, write_text_file
from mlx_pixword.data.text_images import TextSource, TextStyle

from .files import pack_column, pack_texts, read_json, unpack_column, unpack_texts, write_json
from .plan import CLUTTER, CONTRASTS, MAIN_HEIGHTS, OTHER_HEIGHTS, TEST_KINDS, Plan

LENGTH = 8  # characters of the longest string
LEAST_CONTRAST = 0.08
TRAIN_HEIGHTS = ((4.0, 10.0),) * 30 + ((10.0, 16.0), (16.0, 32.0))  # training crops take turns through these
TRAIN_SEED, DEV_SEED, TEST_SEED = 11, 12, 13
CLIMB, PARTS = "climb", 8  # development crops along the curriculum, in parts of as many as there are of all variety

Row = tuple[np.ndarray, str, dict[str, float]]


@dataclass(frozen=True)
class TestSet:
    """What is known of the test crops, in their order.

    Attributes:
        texts: what they say.
        kinds: "numbers", "words", or the name of a real set.
        families: of the face, or the document of a real crop.
        heights, contrasts, clutter: of each crop.
        digest: of all this and the pixels.
    """

    texts: list[str]
    kinds: np.ndarray
    families: np.ndarray
    heights: np.ndarray
    contrasts: np.ndarray
    clutter: np.ndarray
    digest: str


def evidence_faces() -> list[Face]:
    """The package's faces and those of the font packages, which the extra ``evidence`` brings."""
    return find_faces(package_folders())[0]


def prepare_crops(plan: Plan, results: Path, scratch: Path) -> None:
    """Draw the crops of a plan, unless they are there, and keep the test set's facts."""
    make_folder(scratch)
    faces = evidence_faces()
    size = plan.shape.image_size
    counts = {"train": plan.train_crops, "dev": plan.dev_crops, CLIMB: PARTS * plan.dev_crops}
    for name, count in counts.items():
        path = scratch / f"{name}.pwtext"
        half = 0 if name == "dev" else plan.train_crops // 2  # over which the curriculum goes
        if not path.exists():
            seed = TRAIN_SEED if name == "train" else DEV_SEED
            sources = [_source(faces, size, seed, False, heights, 0.2, (LEAST_CONTRAST, 1.0), TEXT_KINDS, 1.0, half)
                       for heights in TRAIN_HEIGHTS]  # fmt: skip
            write_text_file(path, _drawn_rows(sources, name, count, half), {"seed": seed})
    path = scratch / "test.pwtext"
    if not path.exists():
        rows = list(_test_rows(plan, faces))
        write_text_file(path, ((p, t, f) for p, t, f, *_ in rows), {"seed": TEST_SEED})
        _keep_test_set(results / "tests.json", rows)


def open_crops(scratch: Path, name: str) -> TextFile:
    """One of the files that `prepare_crops` wrote."""
    path = scratch / f"{name}.pwtext"
    if not path.exists():
        raise PixWordError(f"{path} is missing; run `python benchmarks/evidence prepare` with the same --scratch")
    return TextFile(path)


def _source(
    faces: list[Face], size: int, seed: int, held_out: bool, heights: tuple[float, float], clutter: float,
    contrast: tuple[float, float], kinds: tuple[str, ...], distort: float, curriculum: int = 0,
) -> TextSource:  # fmt: skip
    style = TextStyle(kinds, heights, contrast, clutter, distort, LENGTH, curriculum=curriculum)
    return TextSource(seed, held_out, style, size, faces)


def _drawn_rows(sources: list[TextSource], name: str, count: int, half: int) -> Iterator[Row]:
    """Crops of all variety, then in training as many along the curriculum, see `Order`; or along the curriculum alone.

    Sources draw their curriculum at ``0 .. half``, and everything behind it.
    """
    for n in tqdm(range(count), desc=name, disable=None):
        number = {"dev": n, CLIMB: n * half // count}.get(name, n + half if n < half else n - half)
        yield _row(sources[n % len(sources)], number)


def _row(source: TextSource, number: int) -> Row:
    pixels, text, facts = source.render(number)
    return pixels, text, {name: facts[name] for name in ("characters", "ink_height", "left", "top")}


def _test_rows(plan: Plan, faces: list[Face]) -> Iterator[tuple[np.ndarray, str, dict[str, float], str, str, Any]]:
    """Rows, then kind, family and ``(height, contrast, clutter)``."""
    size = plan.shape.image_size
    cells = product((*MAIN_HEIGHTS, *OTHER_HEIGHTS), CONTRASTS, CLUTTER, TEST_KINDS)
    for height, contrast, clutter, kind in tqdm(list(cells), desc="test", disable=None):
        count = plan.main_cell if height in MAIN_HEIGHTS else plan.other_cell
        source = _source(
            faces, size, TEST_SEED, True, (height, height), clutter, (contrast, contrast), (kind,), 0.0
        )  # fmt: skip
        for n in range(count):
            family = source.crop(n).face.family
            yield *_row(source, n), kind, family, (height, contrast, clutter)


def _keep_test_set(path: Path, rows: list[Any]) -> None:
    digest = hashlib.sha256()
    for pixels, text, *_ in rows:
        digest.update(repr((pixels.shape, text)).encode() + pixels.tobytes())
    heights, contrasts, clutter = zip(*(row[5] for row in rows), strict=True)
    write_json(path, {
        "digest": digest.hexdigest(), "crops": len(rows), "texts": pack_texts([row[1] for row in rows]),
        "kinds": pack_texts([row[3] for row in rows]), "families": pack_texts([row[4] for row in rows]),
        "heights": pack_column(np.array(heights, np.float32)),
        "contrasts": pack_column(np.array(contrasts, np.float32)), "clutter": pack_column(np.array(clutter, np.int8)),
    })  # fmt: skip


def kept_test_set(results: Path) -> TestSet:
    """The facts of the test crops, as they were kept."""
    kept = read_json(results / "tests.json")
    heights, contrasts, clutter = (unpack_column(kept[name]) for name in ("heights", "contrasts", "clutter"))
    kinds, families = (np.array(unpack_texts(kept[name])) for name in ("kinds", "families"))
    return TestSet(unpack_texts(kept["texts"]), kinds, families, heights, contrasts, clutter, kept["digest"])
