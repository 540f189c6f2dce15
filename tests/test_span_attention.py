"""The attention kernels, their exact Metal text run by the emulator, against float64."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from metal_emulator import floor, reports, traffic
from mlx.utils import tree_flatten
from span_attention import Case, difference, expected, make_case

from mlx_pixword.config.run import make_config
from mlx_pixword.inputs.processor import Processor
from mlx_pixword.model.batch import collate
from mlx_pixword.model.losses import loss_sums, weighted_loss
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.ops import conditional_attention, window_attention
from mlx_pixword.ops.dispatch import choose
from mlx_pixword.ops.rotary import inverse_frequencies
from mlx_pixword.ops.span_attention import attend

TOLERANCE = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).rpartition(".")[2])

SHAPES = [  # kind; rows, queries, keys, key heads, query heads a key head, head size
    ("window", (2, 0, 16, 1, 2, 16)),
    ("window", (1, 0, 1, 1, 1, 8)),
    ("window", (3, 0, 49, 2, 1, 32)),
    ("window", (1, 0, 100, 1, 3, 96)),
    ("window", (2, 0, 33, 1, 4, 128)),
    ("window", (1, 0, 256, 1, 2, 64)),
    ("scattered", (2, 0, 16, 1, 2, 16)),
    ("scattered", (2, 0, 64, 1, 2, 32)),
    ("read", (2, 1, 256, 1, 2, 64)),
    ("read", (3, 5, 20, 2, 6, 32)),
    ("read", (1, 70, 64, 1, 2, 128)),
    ("own", (1, 1, 1, 1, 1, 8)),
    ("own", (2, 20, 13, 2, 2, 64)),
    ("own", (1, 300, 61, 1, 1, 64)),
    ("own", (1, 7, 5, 1, 8, 96)),
    ("own", (2, 45, 70, 1, 5, 128)),
    ("own", (3, 33, 7, 1, 7, 32)),
]


@DTYPES
@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=str)
def test_output_and_gradients_agree_with_float64(emulated: Any, kind: str, shape: tuple[int, ...], dtype: Any) -> None:
    case = make_case(kind, shape, dtype)
    assert difference(case.run(), expected(case)) < TOLERANCE[dtype]
    assert len(reports) == 3


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(emulated: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = ("window", "read", "own")[seed % 3]
    shape = (rng.integers(1, 4), rng.integers(1, 90), rng.integers(1, 150), rng.integers(1, 3), rng.integers(1, 9))
    case = make_case(kind, (*map(int, shape), int(rng.choice([32, 64, 96, 128]))), mx.float32, seed)
    assert difference(case.run(), expected(case)) < 1e-5


def test_the_largest_window(emulated: Any) -> None:
    case = make_case("window", (1, 0, 1024, 1, 1, 32))
    case.spans[:, :, 1] = np.arange(1, 1025)  # all valid
    assert difference(case.run(), expected(case)) < 1e-5


@DTYPES
@pytest.mark.parametrize("kind", ["window", "read", "own"])
def test_extreme_scores(emulated: Any, kind: str, dtype: Any) -> None:
    """Scores of 10,000s: nothing overflows. Rounded to 16 bits before or after a turn, such a score means another."""
    case = make_case(kind, (1, 20, 40, 1, 2, 32), dtype, scale=100.0)
    found, wanted = case.run(), expected(case)
    assert all(np.isfinite(array).all() for array in found)
    if dtype == mx.float32:  # a weight's relative error is that of the score, 6e-8, times the score
        assert difference(found, wanted) < 1e-2


def test_broken_numbers_come_out(emulated: Any) -> None:
    case = make_case("window", (1, 0, 20, 1, 1, 16))
    case.spans[:, :, 1] = np.arange(1, 21)
    case.arrays[0][0, 3] = np.nan
    y = case.run()[0]
    assert np.isnan(y[0, 3]).all() and np.isfinite(y[0, 4:]).all()


def test_arguments_need_not_be_contiguous(emulated: Any) -> None:
    case = make_case("own", (2, 9, 11, 2, 2, 32))
    plain = attend(mx.array(case.spans))(*case.arguments())
    turned = [x.swapaxes(1, 2).astype(mx.float32).swapaxes(1, 2) for x in case.arguments()]
    assert mx.array_equal(plain, attend(mx.array(case.spans))(*turned))


# --- traffic ----------------------------------------------------------------------------------------------------------

CEILINGS = [  # forward and backward; a pixel's span ends with itself, a query pixel's before its window
    ("window", (1, 0, 256, 1, 2, 64), 1.4, 1.9),
    ("window", (2, 0, 256, 2, 2, 64), 1.55, 2.0),
    ("own", (1, 196 * 3, 199, 1, 2, 64), 1.25, None),
    ("own", (1, 196 * 16, 199, 1, 2, 64), 1.29, None),
]


@pytest.mark.parametrize(("kind", "shape", "forward", "backward"), CEILINGS, ids=str)
def test_traffic(emulated: Any, kind: str, shape: tuple[int, ...], forward: float, backward: float | None) -> None:
    """Bytes that pass through device memory, over inputs once and outputs once."""
    case = make_case(kind, shape)
    queries, keys = case.spans.shape[1], shape[2]
    case.spans[..., 0] = 0
    case.spans[..., 1] = np.arange(1, keys + 1) if kind == "window" else 2 + np.arange(queries) * 196 // queries
    assert difference(case.run(), expected(case)) < 1e-5
    first, *others = reports
    assert traffic(first) <= forward * floor(first)
    if backward:
        q, k, v = (array.size * 4 for array in case.arrays)
        once = 3 * q + k + v + case.spans.nbytes + 8 * case.rotary.size + q // shape[5]  # q, y, dy, k, v, sums
        assert sum(map(traffic, others)) <= backward * (once + q + k + v)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("kind", ["window", "own"])
def test_threadgroup_memory(emulated: Any, kind: str, size: int, dtype: Any) -> None:
    make_case(kind, (1, 256, 64, 1, 2, size), dtype).run()
    assert len(reports) == 3
    assert max(report.threadgroup_bytes for report in reports) <= 32768


# --- the operations, and the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [None, [[0, 255, 100], [3, 3, 254]]])
def test_window_attention_with_the_model_s_frequencies(emulated: Any, reads: Any, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((2, 256, heads, 32)).astype(np.float32) for heads in (4, 2, 2))
    q = q if reads is None else q[:, :3]
    places = None if reads is None else mx.array(reads)
    arrays = [mx.array(array) for array in (q, k, v)]
    found = window_attention.launch(*arrays, places, 5e5)
    ends = np.broadcast_to(np.arange(1, 257), (2, 256)) if reads is None else np.array(reads) + 1
    spans = np.stack([np.zeros_like(ends), ends], axis=-1).astype(np.int32)
    exact = np.arange(256)[:, None] * inverse_frequencies(32, 5e5)
    wanted = expected(Case([q, k, v], spans, exact, None, np.zeros_like(q), mx.float32))[0]
    assert difference([np.array(found)], [wanted]) < 1e-5
    assert difference([np.array(window_attention.reference(*arrays, places, 5e5))], [wanted]) < 1e-5


OPTIONS = {"positions": "grid", "summary": "concat", "image_hidden_size": 32, "image_num_kv_heads": 1}


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": False, "num_kv_heads": 1}, OPTIONS], ids=["tiny", "changed", "grid"]
)
def test_the_model_with_every_kernel_emulated(
    emulated: Any, changes: dict[str, Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folding, loss and gradients of `tiny`, on two packed documents of words and a ragged image, with query pixels."""
    args = make_config({"preset": "tiny", "dtype": "float32", **changes}).model
    model, processor = PixWordModel(args), Processor(args)
    images = [mx.array(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((10, 13), (4, 5))]

    def loss() -> mx.array:
        documents = [processor.document([[7, 8], image, [9]], closed=True) for image in images]
        batch = collate([documents], args, pixel_queries=3, seed=(0,))
        sums = loss_sums(*model.forward(batch), batch, args.vocab_size)
        return weighted_loss(sums, mx.array(float(batch.num_targets)), 50.0, 1.0, 1.0)

    plain = nn.value_and_grad(model, loss)()
    assert not reports
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "choose", lambda kernel, args: kernel.metal)
    emulated_ones = nn.value_and_grad(model, loss)()
    assert len(reports) == len(images) + 3 * (args.image_layers + args.num_layers)
    for (name, wanted), (_, found) in zip(tree_flatten(plain), tree_flatten(emulated_ones), strict=True):
        assert np.abs(np.array(found - wanted)).max() <= 1e-5 * max(np.abs(np.array(wanted)).max(), 1e-2), name


@pytest.mark.parametrize(("size", "suits"), [(8, True), (128, True), (20, False), (136, False)])
def test_other_head_sizes_run_the_reference(size: int, suits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(choose, "_metal_available", lambda: True)
    monkeypatch.setattr(choose, "choose", lambda kernel, args: tried.append(kernel.name) or kernel.reference)
    x = mx.ones((1, 4, 1, size))
    window_attention.window_attention(x, x, x, None, 5e5)
    conditional_attention.conditional_attention(x, x, x, x, x, mx.zeros((1, 4, 2), mx.int32))
    assert tried == (["window_attention", "conditional_attention"] if suits else [])


def test_the_fused_rivals_are_the_same_functions(rng: np.random.Generator) -> None:
    q, k, v, own_k, own_v = (mx.array(rng.standard_normal((2, 9, n, 16)).astype(np.float32)) for n in (4, 2, 2, 2, 2))
    reads, spans = mx.array(rng.integers(0, 9, (2, 9))), mx.array(np.sort(rng.integers(0, 10, (2, 9, 2)), axis=-1))
    for module, arguments in (
        (window_attention, (q, k, v, None, 5e5)),
        (window_attention, (q, k, v, reads, 5e5)),
        (conditional_attention, (q, own_k, own_v, k, v, spans)),
    ):
        assert mx.abs(module.fused(*arguments) - module.reference(*arguments)).max().item() < 1e-5
