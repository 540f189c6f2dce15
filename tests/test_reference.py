"""The float64 reference checked against what needs no model: formulas, hand-made numbers, and itself."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import reference as ref

CFG = ref.Config(heads=4, kv_heads=2, window_size=4, fold_factor=64)
SIZES = {"D": 32, "heads": 4, "kv_heads": 2, "layers": 2, "image_layers": 2, "ffn": 48, "V": 11, "f": 64}


@pytest.fixture(scope="module")
def weights() -> ref.Weights:
    return ref.random_weights(np.random.default_rng(0), **SIZES)


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_imports_neither_mlx_nor_the_library() -> None:
    tree = ast.parse(Path(ref.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"math", "collections.abc", "dataclasses", "numpy"}


@pytest.mark.parametrize("fold_factor", [1, 16, 64, 256])
def test_fold_is_the_formula(fold_factor: int) -> None:
    rgb, levels = image(5, 7), 256 // fold_factor
    expected = (rgb.astype(int) // fold_factor) @ np.array([1, levels, levels**2])
    assert np.array_equal(ref.fold(rgb, fold_factor), expected)


def test_windows_of_a_ragged_image_by_hand() -> None:
    found = ref.windows(np.arange(15).reshape(3, 5), 2)
    assert [w.tolist() for w in found] == [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]


def test_one_pixel_is_one_window(weights: ref.Weights) -> None:
    rgb = image(1, 1)
    assert [w.tolist() for w in ref.part_windows(rgb, CFG)] == [ref.fold(rgb, 64).ravel().tolist()]
    assert ref.logits(weights, CFG, [[1, 4], rgb, [5]]).shape == (4, 11 + 64)


def test_frequencies_at_both_ends_and_between() -> None:
    plain = 500000.0 ** (-2 * np.arange(32) / 64)
    scaled = ref.inverse_frequencies(64, 500000.0)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 2048, wavelength > 8192
    assert np.array_equal(scaled[short], plain[short])
    assert np.allclose(scaled[long], plain[long] / 8, rtol=1e-15)
    between = ~short & ~long
    assert between.any()
    assert np.all((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8))


def test_rope_is_a_complex_rotation_of_neighbours() -> None:
    x, frequencies = np.random.default_rng(1).normal(size=(3, 6)), np.array([1.0, 0.1, 0.01])
    positions = np.array([0, 2, 9])
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * positions[:, None] * frequencies)
    found = ref.rope(x, positions, frequencies)
    assert np.allclose(found[:, 0::2] + 1j * found[:, 1::2], turned, atol=1e-15)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 14), (31, 45)])
def test_local_and_global_positions_are_the_same_function(
    weights: ref.Weights, size: tuple[int, int], qk_norm: bool
) -> None:
    cfg = ref.Config(heads=4, kv_heads=2, window_size=4, fold_factor=64, qk_norm=qk_norm)
    found = ref.part_windows(image(*size), cfg)
    local = ref.image_states(weights, cfg, found, "local")
    assert local.dtype == np.float64
    assert np.abs(local - ref.image_states(weights, cfg, found, "global")).max() < 1e-12


def test_positions_matter_inside_a_window(weights: ref.Weights) -> None:
    window = np.array([1, 2, 3, 4, 5])
    swapped = np.array([2, 1, 3, 4, 5])
    a, b = ref.image_states(weights, CFG, [window, swapped])
    assert np.abs(a - b).max() > 1e-3


def test_windows_do_not_see_each_other(weights: ref.Weights) -> None:
    found = ref.part_windows(image(9, 14), CFG)
    alone = np.concatenate([ref.image_states(weights, CFG, [window]) for window in found])
    assert np.array_equal(alone, ref.image_states(weights, CFG, found))


def test_logits_are_causal(weights: ref.Weights) -> None:
    parts: list[ref.Part] = [[1, 7, 4], image(6, 5), [5, 9]]
    whole = ref.logits(weights, CFG, parts)
    assert whole.shape == (3 + 4 + 2, 11 + 64)
    assert np.abs(ref.logits(weights, CFG, parts[:2]) - whole[:-2]).max() < 1e-12
    changed = ref.logits(weights, CFG, [[1, 7, 4], image(6, 5), [5, 8]])
    assert np.abs(changed[-1] - whole[-1]).max() > 1e-3


def test_boundary_targets_by_hand() -> None:
    rgb = np.zeros((2, 6, 3), np.uint8)
    rgb[0, 0], rgb[0, 4] = (255, 0, 0), (0, 64, 255)  # first pixels of the two windows: 3 and 0 + 4 * 1 + 16 * 3
    parts: list[ref.Part] = [[1, 4], rgb, [5, 9]]
    assert ref.boundary_targets(parts, CFG, 11) == [4, 11 + 3, 11 + 52, 5, 9, None]
    assert ref.boundary_targets(parts, CFG, 11, closed=True)[-1] == 2


def test_loss_by_hand() -> None:
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [1.0, 1.0, 1.0]])
    targets = [0, 2, 1, None]  # two words and one pixel, with V = 2
    words, pixels = -math.log(0.5) - math.log(0.3), -math.log(0.8)
    assert ref.boundary_loss(logits, targets, 2) == pytest.approx((words + pixels) / 3, rel=1e-14)
    assert ref.boundary_loss(logits, targets, 2, a=5, b=0.5) == pytest.approx((5 * words + 0.5 * pixels) / 3, rel=1e-14)


def test_equal_logits_cost_log_of_the_classes(weights: ref.Weights) -> None:
    parts: list[ref.Part] = [[1, 4], image(6, 5), [5]]
    blank = weights | {"output.weight": np.zeros((75, 32), np.float32)}
    targets = ref.boundary_targets(parts, CFG, 11, closed=True)
    found = ref.boundary_loss(ref.logits(blank, CFG, parts), targets, 11)
    assert found == pytest.approx(math.log(75), rel=1e-14)
