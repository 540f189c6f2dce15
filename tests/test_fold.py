"""Folding into windows and back: references against NumPy's path, and the Metal text against both in the emulator."""

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import floor, reports, traffic
from mutants import Mutant, assert_caught

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.ops import fold as module
from mlx_pixword.ops.dispatch import choose, trial
from mlx_pixword.ops.fold import FOLD, UNFOLD, fold_windows, unfold_windows
from mlx_pixword.pixels.colors import FOLD_FACTORS, fold_colors, num_pix_tokens, unfold_colors
from mlx_pixword.pixels.windows import to_windows

# height, width, fold factor, window size
CASES = [
    (16, 16, 16, 16), (48, 32, 16, 16), (37, 53, 16, 16), (5, 9, 8, 4), (9, 5, 32, 4), (33, 40, 1, 32), (7, 7, 128, 3),
    (40, 3, 2, 8), (3, 40, 4, 8), (6, 4, 256, 2), (5, 3, 64, 1), (20, 70, 16, 64),
    (1, 1, 16, 16), (1, 1, 16, 1), (1, 2, 1, 1), (2, 1, 256, 2), (1, 2, 16, 2), (2, 2, 16, 2), (2, 2, 16, 1),
]  # fmt: skip


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def wanted(rgb, fold_factor, window_size):
    """Windows and the picture after folding, by the NumPy path of the loader."""
    tokens = fold_colors(rgb, fold_factor)
    windows, _ = to_windows(tokens, window_size, num_pix_tokens(fold_factor))
    return windows, unfold_colors(tokens, fold_factor)


def check(case, fold, unfold, seed=0):
    """Both directions of one case, with whatever runs them."""
    height, width, fold_factor, window_size = case
    rgb = image(height, width, seed)
    windows, folded = wanted(rgb, fold_factor, window_size)
    found = np.array(fold(mx.array(rgb), fold_factor, window_size))
    assert found.dtype == np.int32 and np.array_equal(found, windows), case
    back = np.array(unfold(mx.array(windows), height, width, fold_factor, window_size))
    assert back.dtype == np.uint8 and np.array_equal(back, folded), case


def random_case(rng):
    height, width = (int(rng.integers(1, rng.choice([4, 24, 64]))) for _ in range(2))
    return height, width, int(rng.choice(FOLD_FACTORS)), int(rng.integers(1, rng.choice([3, 9, 34])))


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_references_are_the_path_of_the_loader(case):
    check(case, fold_windows, unfold_windows)


def test_references_on_random_shapes(rng):
    for seed in range(100):
        check(random_case(rng), fold_windows, unfold_windows, seed)


@pytest.mark.parametrize("fold_factor", FOLD_FACTORS)
def test_every_level_of_every_channel(fold_factor):
    rgb = np.zeros((16, 48, 3), np.uint8)
    for channel in range(3):
        rgb[:, 16 * channel :][:, :16, channel] = np.arange(256).reshape(16, 16)
    windows, folded = wanted(rgb, fold_factor, 7)
    assert np.array_equal(fold_windows(mx.array(rgb), fold_factor, 7), windows)
    assert np.array_equal(unfold_windows(mx.array(windows), 16, 48, fold_factor, 7), folded)


def test_references_are_traced():
    rgb = image(5, 9)
    windows, folded = wanted(rgb, 16, 4)
    there_and_back = mx.compile(lambda x: unfold_windows(fold_windows(x, 16, 4), 5, 9, 16, 4))
    assert np.array_equal(there_and_back(mx.array(rgb)), folded) and (windows == 4096).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fold_windows(mx.zeros((2, 2, 3)), 16, 2), "must be uint8"),
        (lambda: fold_windows(mx.zeros((2, 2, 4), mx.uint8), 16, 2), r"got mlx.core.uint8 \[2, 2, 4\]"),
        (lambda: fold_windows(mx.zeros((1, 2, 2, 3), mx.uint8), 16, 2), "must be uint8"),
        (lambda: fold_windows(mx.zeros((2, 2, 3), mx.uint8), 15, 2), "power of two"),
        (lambda: fold_windows(mx.zeros((2, 2, 3), mx.uint8), 16, 0), "window size 0"),
        (lambda: fold_windows(mx.zeros((0, 2, 3), mx.uint8), 16, 2), "got 2x0"),
        (lambda: fold_windows(mx.zeros((1, 1, 3), mx.uint8), 16, 2**15 + 1), "cut it into pieces"),
        (lambda: unfold_windows(mx.zeros((1, 4), mx.int32), 3, 2, 16, 2), r"windows int32 \[2, 4\], got .*\[1, 4\]"),
        (lambda: unfold_windows(mx.zeros((1, 4)), 2, 2, 16, 2), r"got mlx.core.float32 \[1, 4\]"),
        (lambda: unfold_windows(mx.zeros((1, 4), mx.int32), 2, 2, 3, 2), "power of two"),
        (lambda: unfold_windows(mx.zeros((1, 4), mx.int32), 2, 0, 16, 2), "got 0x2"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(PixWordError, match=message):
        call()


def test_shape_classes_hold_many_images_and_split_what_differs():
    def of(height, width, *settings):
        return FOLD.key((mx.zeros((height, width, 3), mx.uint8), *settings))

    assert of(100, 100, 16, 16) == of(104, 96, 16, 16) == of(101, 99, 16, 16)
    assert len({of(100, 100, 16, 16), of(200, 100, 16, 16), of(100, 100, 8, 16), of(100, 100, 16, 8)}) == 4
    assert of(1, 2, 16, 16) != of(1, 3, 16, 16)  # 6 and 9 elements: another address space


# --- the Metal text ---------------------------------------------------------------------------------------------------


def run_both(cases, seed=0):
    for case in cases:
        check(case, FOLD.metal, UNFOLD.metal, seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_right_and_move_every_byte_once(emulated, case):
    run_both([case])
    folding, unfolding = reports
    assert not folding.errors and not unfolding.errors
    height, width, _, window_size = case
    windows = -(-height // window_size) * -(-width // window_size)
    pixels, tokens = height * width, windows * window_size**2
    small = 3 * pixels < 8  # an input in the constant address space is not counted
    assert traffic(folding) == (0 if small else 3 * pixels) + 4 * tokens
    assert traffic(unfolding) == (0 if tokens < 8 else 4 * pixels) + 3 * pixels
    assert traffic(folding) <= floor(folding) and traffic(unfolding) <= floor(unfolding)
    assert folding.threadgroup_bytes == unfolding.threadgroup_bytes == 0


def test_kernels_on_random_shapes(emulated, rng):
    for seed in range(60):
        run_both([random_case(rng)], seed)


@pytest.mark.parametrize("fold_factor", FOLD_FACTORS)
def test_kernels_at_every_level_of_every_channel(emulated, fold_factor):
    rgb = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3), -1).astype(np.uint8).reshape(64, 64, 3)
    windows, folded = wanted(rgb, fold_factor, 9)
    assert np.array_equal(FOLD.metal(mx.array(rgb), fold_factor, 9), windows)
    assert np.array_equal(UNFOLD.metal(mx.array(windows), 64, 64, fold_factor, 9), folded)


def test_images_that_are_views(emulated):
    rgb = mx.array(image(20, 30))
    for view in (rgb[2:19, 5:], rgb[:, ::2], rgb.transpose(1, 0, 2), rgb[..., ::-1]):
        windows, folded = wanted(np.array(view), 16, 8)
        assert np.array_equal(FOLD.metal(view, 16, 8), windows)
        columns = mx.contiguous(mx.array(windows).T).T  # the same values, column by column
        assert np.array_equal(UNFOLD.metal(columns, *view.shape[:2], 16, 8), folded)


def test_dispatch_verifies_the_kernels_and_then_runs_them(emulated, monkeypatch):
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "_decisions", {})
    monkeypatch.setattr(trial, "race", lambda runs: [1.0, 2.0])  # the emulator's speed says nothing
    monkeypatch.delenv("PIXWORD_KERNELS", raising=False)
    for case in ((37, 53, 16, 16), (1, 2, 16, 2), (37, 53, 16, 16)):
        check(case, fold_windows, unfold_windows)
    assert len(reports) == 2 * (2 + 2 + 1)  # a trial and a call, and for a known class a call
    found = choose.decisions()
    assert [decision.kernel for decision in found] == ["fold_colors", "unfold_colors"] * 2
    assert all(decision.used for decision in found)


def test_one_build_serves_all_images_and_settings(emulated, monkeypatch):
    built = []
    build = module.build_kernel
    monkeypatch.setattr(module, "build_kernel", lambda *names: built.append(build(*names)) or built[-1])
    run_both([(20, 30, 16, 8), (40, 30, 8, 16), (9, 9, 256, 4)])
    assert len(built) == 6 and len(set(map(id, built))) == 2


# --- mutants ----------------------------------------------------------------------------------------------------------

HARD = [(5, 7, 16, 4), (8, 6, 64, 3), (3, 4, 1, 8), (1, 2, 32, 1), (2, 1, 256, 2)]  # they reach every mutant

FOLD_MUTANTS = [
    Mutant("settings exchanged", "bits = layout[0], side = layout[1]", "bits = layout[1], side = layout[0]"),
    Mutant("columns not cut", "columns = min(side, uint(rgb_shape[1]) - left)", "columns = side"),
    Mutant("rows not cut", "rows = min(side, uint(rgb_shape[0]) - top)", "rows = side"),
    Mutant("columns cut at the height", "min(side, uint(rgb_shape[1])", "min(side, uint(rgb_shape[0])"),
    Mutant("rows cut at the width", "min(side, uint(rgb_shape[0])", "min(side, uint(rgb_shape[1])"),
    Mutant("columns cut at the image", "uint(rgb_shape[1]) - left", "uint(rgb_shape[1])"),
    Mutant("rows cut at the image", "uint(rgb_shape[0]) - top", "uint(rgb_shape[0])"),
    Mutant("no bound", "if (place.x < rows * columns)", "if (true)"),
    Mutant("bound one too far", "place.x < rows * columns", "place.x <= rows * columns"),
    Mutant("bound one too near", "place.x < rows * columns", "place.x + 1 < rows * columns"),
    Mutant(
        "padding between pixels", "place.x < rows * columns", "place.x / side < rows && place.x % side < columns",
    ),
    Mutant("padding not set", "uint token = 1u << (3 * shift);", "uint token;"),
    Mutant("padding 0", "1u << (3 * shift)", "0"),
    Mutant("padding one less", "1u << (3 * shift)", "(1u << (3 * shift)) - 1"),
    Mutant("rows of whole windows", "place.x / columns", "place.x / side"),
    Mutant("columns of whole windows", "place.x % columns", "place.x % side"),
    Mutant("window column ignored", "+ left + place.x", "+ place.x"),
    Mutant("window row ignored", "(top + place.x / columns)", "(place.x / columns)"),
    Mutant("stride of the height", "* uint(rgb_shape[1]) + left", "* uint(rgb_shape[0]) + left"),
    Mutant("two bytes a pixel", "rgb + 3 *", "rgb + 2 *"),
    Mutant("one bit too few", "shift = 8 - bits", "shift = 7 - bits"),
    Mutant("blue not folded", "token = uint(pixel[2]) >> bits", "token = uint(pixel[2])"),
    Mutant("green not folded", "(uint(pixel[1]) >> bits)", "uint(pixel[1])"),
    Mutant("red not folded", "(uint(pixel[0]) >> bits)", "uint(pixel[0])"),
    Mutant("red and blue exchanged", "token = uint(pixel[2]) >> bits", "token = uint(pixel[0]) >> bits"),
    Mutant("fourth channel", "token = uint(pixel[2]) >> bits", "token = uint(pixel[3]) >> bits"),
    Mutant("windows by column", "place.z * threads_per_grid.y + place.y", "place.y * threads_per_grid.z + place.z"),
    Mutant("window row not stored", "(place.z * threads_per_grid.y + place.y)", "place.y"),
    Mutant("window column not stored", "(place.z * threads_per_grid.y + place.y)", "(place.z * threads_per_grid.y)"),
    Mutant("one place further", "+ place.x] = int(token)", "+ place.x + 1] = int(token)"),
    Mutant("device alone", "auto pixel", "const device uint8_t* pixel"),
]  # fmt: skip

UNFOLD_MUTANTS = [
    Mutant("settings exchanged", "bits = layout[0], side = layout[1]", "bits = layout[1], side = layout[0]"),
    Mutant("columns not cut", "columns = min(side, width - window.x * side)", "columns = side"),
    Mutant("columns cut at the image", "width - window.x * side)", "width)"),
    Mutant("one window a row too few", "(width + side - 1) / side", "width / side"),
    Mutant("one window a row too many", "(width + side - 1) / side", "(width + side) / side"),
    Mutant("window column ignored", "/ side) + window.x;", "/ side);"),
    Mutant("window row ignored", "number = window.y *", "number = 0 *"),
    Mutant("places of a window too few", "number * side * side", "number * side * columns"),
    Mutant("row inside ignored", "+ inside.y * columns", ""),
    Mutant("column inside ignored", "columns + inside.x]", "columns]"),
    Mutant("row and column exchanged", "inside.y * columns + inside.x", "inside.x * columns + inside.y"),
    Mutant("one bit too few", "shift = 8 - bits", "shift = 7 - bits"),
    Mutant("red not spread", "(token << bits)", "token"),
    Mutant("green not spread", "token >> shift << bits", "token >> shift"),
    Mutant("green of red", "token >> shift << bits", "token << bits"),
    Mutant("blue of green", "token >> (2 * shift)", "token >> shift"),
    Mutant("centre rounded up", "((1u << bits) - 1) / 2", "(1u << bits) / 2"),
    Mutant("no centre", "((1u << bits) - 1) / 2", "0"),
    Mutant("stride of the height", "pixel.y * width + pixel.x", "pixel.y * threads_per_grid.y + pixel.x"),
    Mutant("two bytes a pixel", "rgb + 3 *", "rgb + 2 *"),
    Mutant("green unwritten", "color[1] =", "color[0] ="),
    Mutant("fourth channel", "color[2] =", "color[3] ="),
]  # fmt: skip


@pytest.mark.parametrize("mutant", FOLD_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_of_folding_are_noticed(emulated, mutant):
    assert_caught("fold_colors.metal", mutant, lambda: run_both(HARD))


@pytest.mark.parametrize("mutant", UNFOLD_MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_of_unfolding_are_noticed(emulated, mutant):
    assert_caught("unfold_colors.metal", mutant, lambda: run_both(HARD))


def test_without_a_mutant_the_same_check_passes(emulated):
    run_both(HARD)


def test_a_mutant_that_changes_nothing_is_reported(emulated):
    def check_one():
        run_both(HARD[:1])

    with pytest.raises(AssertionError, match="nothing noticed the mutant 'a space'"):
        assert_caught(
            "fold_colors.metal", Mutant("a space", "rows * columns)", "rows * columns )"), lambda: run_both(HARD[:1])
        )
    with pytest.raises(LookupError, match="occurs 0 times"):
        assert_caught("fold_colors.metal", Mutant("gone", "no such text", ""), check_one)
