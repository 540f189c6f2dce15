"""What the kernels are built as: registers, threadgroup memory, tiles, and one text for every class of arguments."""

import gc
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_emulator import Call, noting_kernel, reports
from span_attention import make_case

from mlx_pixword.ops import attention, decode_step, exponentials, span_build
from mlx_pixword.ops.conditional_attention import CONDITIONAL_ATTENTION
from mlx_pixword.ops.decode_step import DECODE_STEP
from mlx_pixword.ops.dispatch import load, trial
from mlx_pixword.ops.dispatch.kernel import Kernel
from mlx_pixword.ops.fold import FOLD, UNFOLD
from mlx_pixword.ops.span_attention import _task
from mlx_pixword.ops.span_build import FORWARD, KEY_GRAD, QUERY_GRAD, Task, choose_build, registers, threadgroup_bytes
from mlx_pixword.ops.survey import KERNELS
from mlx_pixword.ops.window_attention import WINDOW_ATTENTION

TASKS = [
    Task(kernel, size, width, rows, keys, own, 0 if own else keys)
    for kernel, size, width, rows, keys, own in itertools.product(
        (FORWARD, QUERY_GRAD, KEY_GRAD), range(8, 129, 8), (2, 4), (1, 32, 512, 4096), (4, 16, 256, 1024), (False, True)
    )
]

# --- registers and threadgroup memory ---------------------------------------------------------------------------------


def test_fragments_leave_registers_for_everything_else() -> None:
    """32-bit registers a thread: M1 and M2 have 128, and fragments take at most 96, two for each 8x8 of float32."""
    builds = [(task, build) for task in TASKS if (build := choose_build(task))]
    counts = [counted(task, build) for task, build in builds]
    assert counts == [registers(task, build) for task, build in builds]
    assert 90 < max(counts) <= 96
    many = [build.simdgroups for (_, build), count in zip(builds, counts, strict=True) if count > 76]
    assert many and max(many) <= 4 and max(build.simdgroups for _, build in builds) == 16
    assert all(threadgroup_bytes(task, build) <= 32768 for task, build in builds)
    assert all(build.tile <= max(8, -(-others(task) // 8) * 8) for task, build in builds)
    assert all(build.simdgroups <= max(1, -(-own(task) // 8)) for task, build in builds)


def others(task: Task) -> int:
    return task.rows if task.kernel == KEY_GRAD else task.keys


def own(task: Task) -> int:
    return task.keys if task.kernel == KEY_GRAD else task.rows


def counted(task: Task, build: span_build.Build) -> int:
    """From the declarations of the kernel's text: arrays of `float2` with their lengths, and what is loaded."""
    values = {"FRAGMENTS": task.size // 8, "ROWS": build.rows, "TILE": build.tile, "HELD": build.held}
    arrays = {
        FORWARD: ["ROWS * FRAGMENTS", "ROWS * FRAGMENTS", "ROWS * TILE // 8"],  # q, y, s
        QUERY_GRAD: ["HELD", "HELD", "FRAGMENTS"],  # q, g, dq
        KEY_GRAD: ["HELD", "HELD", "FRAGMENTS", "FRAGMENTS"],  # k, v, dk, dv
    }[task.kernel]
    kept = sum(eval(length, {}, values) for length in arrays)
    passing = 1 if task.kernel == FORWARD else 4  # a key or a value; or a key and a value, and s and dp
    parked = 2 if build.held < task.size // 8 and task.kernel != FORWARD else 0
    return 2 * (kept + passing + parked)


def test_the_count_is_of_the_texts_declarations() -> None:
    """The arrays that the count knows are those that the texts declare; no other array of pairs lives in a thread."""
    declared = {
        FORWARD: ["q[ROWS][FRAGMENTS]", "y[ROWS][FRAGMENTS]", "s[ROWS][TILE / 8]"],
        QUERY_GRAD: ["q[HELD]", "g[HELD]", "dq[FRAGMENTS]"],
        KEY_GRAD: ["k[HELD]", "v[HELD]", "dk[FRAGMENTS]", "dv[FRAGMENTS]"],
    }
    for name, arrays in declared.items():
        lines = [line.strip() for line in load.read_source(f"{name}.metal").split("\n")]
        found = [line[len("float2 ") : -1].split(", ") for line in lines if line.startswith("float2 ") and "[" in line]
        assert list(itertools.chain(*found)) == arrays


def test_a_lane_of_a_token_step_keeps_a_sum_for_each_number_of_a_head() -> None:
    """And no other array, so that the largest head that it takes leaves registers for everything else."""
    text = load.read_source("decode_step.metal")
    lines = [line.strip() for line in text.split("\n") if line.strip().startswith("float") and "];" in line]
    assert [re.findall(r"(\w+)\[(\w+)\]", line.partition("//")[0]) for line in lines] == [[("sums", "S")]]
    assert max(size for size in range(8, 129, 2) if decode_step.suits(256, 1, 1, size, 256)) == 96


@pytest.mark.parametrize("size", [64, 128])
def test_threadgroup_memory_is_what_the_builds_say(emulated: Any, size: int) -> None:
    case = make_case("window", (1, 0, 36, 1, 2, size))
    case.run()
    q, k = case.arguments()[:2]
    for report, kernel in zip(reports, (FORWARD, QUERY_GRAD, KEY_GRAD), strict=True):
        task = _task(kernel, q, k, False, 36)
        build = choose_build(task)
        assert build and abs(report.threadgroup_bytes - threadgroup_bytes(task, build)) <= 64  # alignment


# --- texts ------------------------------------------------------------------------------------------------------------


def texts() -> dict[str, str]:
    return {path.name: load.read_source(path.name) for path in load.metal_folder().glob("*.*") if path.suffix != ".md"}


def test_fragments_are_matrices_inside_one_multiplication_alone() -> None:
    """Arrays of `simdgroup_matrix` are reported to spill; pairs stay in registers."""
    header = texts()["header.h"]
    body = header[header.index("multiply_add(") :].split("\n}\n")[0]
    for word in ("simdgroup_matrix", "simdgroup_multiply_accumulate", "thread_elements"):
        assert sum(text.count(word) for text in texts().values()) == body.count(word) > 0


def test_no_angle_is_computed_in_a_kernel() -> None:
    for name, text in texts().items():
        code = "\n".join(line.partition("//")[0] for line in text.split("\n"))
        assert not {"cos", "sin", "sincos"} & set("".join(c if c.isalnum() else " " for c in code).split()), name


def test_pairs_are_loaded_as_one() -> None:
    header = texts()["header.h"]
    assert "reinterpret_cast<const device metal::vec<T, 2>*>" in header and "float(p[0]), float(p[1])" in header


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _unlaunched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches are noted, and give zeros."""
    monkeypatch.setattr(load, "metal_kernel", partial(noting_kernel, calls))
    load.build_kernel.cache_clear()
    yield
    load.build_kernel.cache_clear()


calls: list[Call] = []


def launched(kernel: Kernel, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Name, text and threads of every launch of results and gradients, in order; nothing runs."""
    calls.clear()
    places = [i for i, arg in enumerate(args) if isinstance(arg, mx.array) and i not in kernel.constants]
    places = [i for i in places if mx.issubdtype(args[i].dtype, mx.floating)] if kernel.trained else []
    shape = args[0].shape
    mx.eval(trial.results(kernel.metal, args, trial.Probe(places, [mx.zeros(shape, args[0].dtype)])))
    return [(call.name, call.source, call.threadgroup) for call in calls]


def windows(rng: np.random.Generator) -> tuple[Any, ...]:
    count, side, groups, repeat = (int(rng.choice(some)) for some in ((1, 3, 40, 70), (2, 4), (1, 2), (1, 2)))
    size, reads = 8, int(rng.choice([0, 1, 3, 4]))
    q = mx.zeros((count, reads or side**2, groups * repeat, size))
    k = mx.zeros((count, side**2, groups, size))
    chosen = mx.zeros((count, reads), mx.int32) if reads else None
    grid = (mx.zeros((2, side**2, size // 2)), mx.zeros(k.shape[:2], mx.int32)) if rng.random() < 0.5 else (None, None)
    return q, k, k, chosen, 5e5, *grid


def queries(rng: np.random.Generator) -> tuple[Any, ...]:
    rows, count, length = (int(rng.choice(some)) for some in ((1, 2, 40), (1, 3, 4, 300, 500), (9, 16, 100, 600)))
    size = 128
    own, k = mx.zeros((rows, count, 1, size)), mx.zeros((rows, length, 1, size))
    return mx.zeros((rows, count, 2, size)), own, own, k, k, mx.zeros((rows, count, 2), mx.int32)


def layers(rng: np.random.Generator) -> tuple[Any, ...]:
    depth, rows, places, recents = (int(rng.choice(some)) for some in ((1, 2), (1, 2, 3), (1, 5, 30), (1, 4)))
    widths = mx.zeros((depth, 16, 24)), mx.zeros((depth, 8, 16)), mx.zeros((depth, 16, 16)), mx.zeros((depth, 8, 16))
    old, young = mx.zeros((depth, rows, 1, places, 8)), mx.zeros((depth, rows, 1, recents, 8))
    bias = mx.zeros((rows, places)) if rng.random() < 0.5 else None
    shape = decode_step.Shape(1, True, 1e-5)
    return mx.zeros((rows, 16)), *widths, old, old, young, young, mx.zeros((rows, 4, 2)), bias, places - 1, 0, shape


def pictures(rng: np.random.Generator) -> tuple[Any, ...]:
    height, width, side = (int(rng.choice(some)) for some in ((1, 2, 40, 300), (1, 2, 35, 2000), (1, 4, 16)))
    return mx.zeros((height, width, 3), mx.uint8), 16, side


def tokens(rng: np.random.Generator) -> tuple[Any, ...]:
    picture, fold_factor, side = pictures(rng)
    height, width, _ = picture.shape
    count = -(-height // side) * -(-width // side)
    return mx.zeros((count, side**2), mx.int32), height, width, fold_factor, side


RANDOM = {
    "window_attention": windows, "conditional_attention": queries, "decode_step": layers, "fold_colors": pictures,
    "unfold_colors": tokens,
}  # fmt: skip


@pytest.mark.usefixtures("_unlaunched")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_equal_classes_launch_equal_texts(kernel: Kernel, rng: np.random.Generator) -> None:
    """One of a class is tried for all, so none may be built otherwise."""
    draw: Callable[[np.random.Generator], tuple[Any, ...]] = RANDOM[kernel.name]
    known: dict[Any, Any] = {}
    met = 0
    for _ in range(50):
        args = draw(rng)
        met += kernel.key(args) in known
        for some in (args, kernel.example(*args)):
            found = launched(kernel, some)
            assert known.setdefault(kernel.key(some), found) == found
        assert kernel.key(kernel.example(*args)) == kernel.key(args)
    assert met > 5


def test_equal_classes_have_equal_builds_at_every_head_size(rng: np.random.Generator) -> None:
    """Of the attention kernels, over sizes at which tracing launches would take minutes."""
    known: dict[Any, Any] = {}
    met = 0
    for number in range(600):
        kernel, args = (some_windows, some_queries)[number % 2](rng)
        for some in (args, kernel.example(*args)):
            key, found = kernel.key(some), builds(kernel, some)
            met += key in known
            assert known.setdefault(key, found) == found
        assert kernel.key(args) == kernel.key(kernel.example(*args))
    assert met > 600


def builds(kernel: Kernel, args: tuple[Any, ...]) -> list[span_build.Build | None]:
    """Of the forward pass and the gradients of queries and of keys."""
    own = kernel is CONDITIONAL_ATTENTION
    q, k = args[0], args[3 if own else 1]
    return [
        choose_build(_task(name, q, k, own and name != KEY_GRAD, 0 if own else k.shape[1]))
        for name in (FORWARD, QUERY_GRAD, KEY_GRAD)
    ]


def some_heads(rng: np.random.Generator) -> tuple[int, int, int, mx.Dtype]:
    groups, repeat, size = (int(rng.choice(some)) for some in ((1, 2, 12), (1, 2, 4), (8, 16, 64, 96, 128)))
    return groups * repeat, groups, size, (mx.float32, mx.bfloat16)[int(rng.integers(2))]


def some_windows(rng: np.random.Generator) -> tuple[Kernel, tuple[Any, ...]]:
    heads, groups, size, dtype = some_heads(rng)
    count, side, reads = (int(rng.choice(some)) for some in ((1, 3, 31, 33, 4000), (1, 4, 5, 16, 32), (0, 1, 3, 17)))
    k = blank(count, side**2, groups, size, dtype=dtype)
    chosen = blank(count, reads, dtype=mx.int32) if reads else None
    return WINDOW_ATTENTION, (blank(count, reads or side**2, heads, size, dtype=dtype), k, k, chosen, 5e5)


def some_queries(rng: np.random.Generator) -> tuple[Kernel, tuple[Any, ...]]:
    heads, groups, size, dtype = some_heads(rng)
    rows, length = (int(rng.choice(some)) for some in ((1, 3, 40), (1, 9, 33, 199, 500, 513, 4180)))
    count = int(rng.choice([1, 3, 63, 200, 255, 257, 784, 5000]))
    q, own = (blank(rows, count, n, size, dtype=dtype) for n in (heads, groups))
    k = blank(rows, length, groups, size, dtype=dtype)
    return CONDITIONAL_ATTENTION, (q, own, own, k, k, blank(rows, count, 2, dtype=mx.int32))


# --- trials -----------------------------------------------------------------------------------------------------------


def blank(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    """Zeros that take no memory."""
    return mx.broadcast_to(mx.zeros([1] * len(shape), dtype), shape)


def upw() -> dict[str, tuple[Kernel, tuple[Any, ...]]]:
    """`upw-120m` on 21 images of 224 px, as `evaluate` batches them; on a screen; and with one window of 32 px.

    And what takes room in other ways: many queries of short sequences, and eight query heads of 128 a key head.
    """
    window, large, own, sequence = (blank(*shape, 6, 64) for shape in ((4116, 256), (1, 1024), (21, 784), (21, 4180)))
    short, many, wide = blank(64, 33, 6, 64), blank(64, 4000, 6, 64), blank(196, 256, 4, 128)
    spans, matrices = mx.zeros((21, 784, 2), mx.int32), [(768, 1536), (768, 768), (768, 4608), (2304, 768)]
    caches = [blank(12, 1, 6, places, 64) for places in (199, 199, 1, 1)]
    shape = decode_step.Shape(12, False, 1e-5)
    return {
        "windows": (WINDOW_ATTENTION, (blank(4116, 256, 12, 64), window, window, None, 5e5)),
        "one large window": (WINDOW_ATTENTION, (blank(1, 1024, 12, 64), large, large, None, 5e5)),
        "queries": (CONDITIONAL_ATTENTION, (blank(21, 784, 12, 64), own, own, sequence, sequence, spans)),
        "short sequences": (
            CONDITIONAL_ATTENTION,
            (blank(64, 4000, 12, 64), many, many, short, short, blank(64, 4000, 2, dtype=mx.int32)),
        ),
        "few key heads": (WINDOW_ATTENTION, (blank(196, 256, 32, 128), wide, wide, None, 5e5)),
        "layers": (
            DECODE_STEP,
            (blank(1, 768), *(blank(12, *m) for m in matrices), *caches, blank(1, 32, 2), None, 198, 0, shape),
        ),
        "fold": (FOLD, (blank(2160, 3840, 3, dtype=mx.uint8), 16, 16)),
        "unfold": (UNFOLD, (blank(135 * 240, 256, dtype=mx.int32), 2160, 3840, 16, 16)),
    }


@pytest.mark.parametrize("name", upw())
def test_a_trial_takes_little_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak bytes of a whole trial, above what there was before; a kernel's launch stands for its reference's work.

    As on a fast GPU, where a round has several launches, of which the last is waited for.
    """
    kernel, args = upw()[name]
    for setting, value in {"ROUND_SECONDS": 1e9, "MOST_LAUNCHES": 4, "ROUNDS": 1}.items():
        monkeypatch.setattr(trial, setting, value)
    for module in (attention, exponentials):  # MLX's own operations, as on a Mac
        monkeypatch.setattr(module, "polynomials_pay", lambda elements: False)
    twin = Kernel(kernel.name, kernel.reference, kernel.reference, kernel.example, kernel.trained, kernel.constants)
    mx.eval([arg for arg in args if isinstance(arg, mx.array)])
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert not trial.examine(twin, args).error
    assert mx.get_peak_memory() - before < 256e6


def test_the_page_has_the_builds() -> None:
    page = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8")
    names = {FORWARD: "forward", QUERY_GRAD: "gradient of queries", KEY_GRAD: "gradient of keys"}
    for kernel, size, own in [(k, s, False) for s in (64, 128) for k in names] + [(FORWARD, 64, True)]:
        task = Task(kernel, size, 4, 512, 256, own, 0 if own else 256)
        build = choose_build(task)
        assert build
        count = build.simdgroups * build.rows * 8 // (1 if kernel == KEY_GRAD else 2)
        parked = f", {size // 8 - build.held} fragments of each operand parked" if build.held < size // 8 else ""
        name = f"{names[kernel]}{' with own keys' if own else ''}, $d = {size}$"
        line = f"| {name} | {build.simdgroups} | {count} | {registers(task, build)}{parked} |"
        assert f"{line} {threadgroup_bytes(task, build):,} |" in page
