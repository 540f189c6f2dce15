"""Shared by all tests. `mlx_pixword` comes first, so that MLX finds OpenBLAS."""

import mlx_pixword  # noqa: F401  # isort: skip

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import metal_emulator
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops.dispatch import choose, load

collect_ignore = [] if sys.platform == "linux" else ["test_openblas.py"]  # macOS has a BLAS of its own

SMALL: dict[str, Any] = {
    "vocab_size": 12, "fold_factor": 64, "image_size": 32, "window_size": 4, "hidden_size": 32, "num_heads": 4,
    "num_kv_heads": 2, "num_layers": 2, "image_layers": 2, "intermediate_size": 48, "max_seq_len": 128,
    "dtype": "float32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    mx.random.seed(0)


@pytest.fixture(autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of archives are kept where no other run finds them."""
    monkeypatch.setenv("PIXWORD_INDEX", str(tmp_path_factory.getbasetemp() / "index"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def small_model() -> Callable[..., PixWordModel]:
    """Build a small float32 model; keyword arguments change its `ModelArgs`."""

    def build(**changes: Any) -> PixWordModel:
        model = PixWordModel(ModelArgs(**SMALL | changes))
        mx.eval(model.parameters())
        return model

    return build


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of eight small pictures of several shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, (height, width) in enumerate([(20, 30), (16, 16), (9, 13), (1, 1), (40, 8), (12, 12), (5, 31), (17, 17)]):
        rgb = np.kron(rng.integers(0, 256, (3, 3, 3)), np.ones((height, width, 1)))[:height, :width]
        Image.fromarray(rgb.astype(np.uint8)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[metal_emulator.Report]]:
    """Metal kernels run in the emulator; gives the list to which every launch adds its report."""
    monkeypatch.setattr(load, "metal_kernel", metal_emulator.metal_kernel)
    load.build_kernel.cache_clear()
    metal_emulator.reports.clear()
    yield metal_emulator.reports
    load.build_kernel.cache_clear()
    metal_emulator.reports.clear()


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a Mac on which every kernel is faster."""
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "choose", lambda kernel, args: kernel.metal)
    for module in ("token_stack", "token_caches"):
        monkeypatch.setattr(f"mlx_pixword.inference.{module}.choose", lambda kernel, args: kernel.metal)
