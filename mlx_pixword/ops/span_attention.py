"""The attention kernels: queries that see a span of keys each, and perhaps a key of their own.

B  rows    Q  query pixels a row    L  elements of a row, as keys    H  query heads    G  key heads    d  head size

`window_attention` and `conditional_attention` are these kernels with spans of their kind, and say what they compute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .dispatch.kernel import bucket
from .dispatch.load import build_kernel
from .exponentials import custom
from .span_build import FORWARD, KEY_GRAD, QUERY_GRAD, Build, Task, choose_build

SOURCES = (FORWARD, QUERY_GRAD, KEY_GRAD)
LARGEST_HEAD = 128  # fragments of larger ones do not fit into registers
MOST_PLACES = 2**16  # of a rotary table: the kernels keep places in 16 bits

Shape = tuple[Sequence[int], mx.Dtype]


class Rotary(NamedTuple):
    """How keys turn by their places.

    Args:
        table: float32 ``[2, L, d / 2]``, cosines and sines by place. With w the smallest integer whose square is at
            least L, place ``a w + b`` must turn as places ``a w`` and ``b`` one after the other, as the positions of a
            sequence do, and rows and columns of a window of w by w pixels: the kernels keep 2 w rows of the table.
        places: int32 ``[B, L]``, the place of each key; None: its index.
    """

    table: mx.array
    places: mx.array | None = None


def suits(q: mx.array, k: mx.array, places: int = 0) -> bool:
    """Whether the kernels can take queries and keys of these shapes; if not, the reference has to.

    ``places`` are those of the rotary table, 0 without one.
    """
    size = q.shape[-1]
    if size % 8 or size > LARGEST_HEAD or not q.size or not k.size or places > MOST_PLACES:
        return False
    return all(choose_build(_task(name, q, k, True, places)) for name in SOURCES)


def attend(spans: mx.array, rotary: Rotary | None = None) -> Callable[..., mx.array]:
    """The attention over spans, differentiable: ``(q, k, v, own_k, own_v)`` to ``y``; own keys may be left out.

    Args:
        spans: int32 ``[B, Q, 2]``, the first key that a query sees and the one after the last.
        rotary: how keys turn; a query turns as the last key of its span. None if they are rotated already.

    Returns:
        a function of ``q [B, Q, H, d]``, ``k, v [B, L, G, d]`` and ``own_k, own_v [B, Q, G, d]``; ``y`` is like ``q``.
    """

    def forward(*primals: mx.array) -> list[mx.array]:
        return _forward(primals, spans, rotary)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return _backward(primals, cotangents[0], outputs, spans, rotary)

    function = custom(forward)
    function.vjp(backward)
    return lambda *primals: function(*primals)[0]


def _forward(primals: Sequence[mx.array], spans: mx.array, rotary: Rotary | None) -> list[mx.array]:
    """Output like ``q``, and float32 ``[B, Q, H]``, log2 of the softmax's denominators."""
    q = primals[0]
    outputs = {"out": (q.shape, q.dtype), "sums": (q.shape[:3], mx.float32)}
    return _launch(FORWARD, _inputs(primals, spans, rotary), outputs)


def _backward(
    primals: Sequence[mx.array], dy: mx.array, outputs: Sequence[mx.array], spans: mx.array, rotary: Rotary | None
) -> tuple[mx.array, ...]:
    """Gradients of all primals."""
    q, k, v, *own = primals
    y, sums = outputs
    given = {"sums": sums, "out_grad": dy.astype(q.dtype)}
    results: dict[str, Shape] = {"query_grad": (q.shape, q.dtype), "products": (q.shape[:3], mx.float32)}
    if own:
        results["own_weights"] = ((*q.shape[:3], 2), mx.float32)
    dq, products, *weights = _launch(QUERY_GRAD, _inputs(primals, spans, rotary) | {"out": y} | given, results)
    results = {"key_grad": (k.shape, k.dtype), "value_grad": (v.shape, v.dtype)}
    dk, dv = _launch(KEY_GRAD, _inputs((q, k, v), spans, rotary) | {"products": products} | given, results)
    return (dq, dk, dv, *(_own_gradients(q, dy, weights[0], own[0].shape[2]) if own else ()))


def _own_gradients(q: mx.array, dy: mx.array, weights: mx.array, groups: int) -> tuple[mx.array, mx.array]:
    """Gradients of own keys and values ``[B, Q, G, d]`` from ``p`` and ``ds``, ``weights [B, Q, H, 2]``."""

    def over_heads(weight: mx.array, x: mx.array) -> mx.array:
        weighted = weight[..., None] * x.astype(mx.float32)  # [B, Q, H, d]
        return weighted.reshape(*x.shape[:2], groups, -1, x.shape[-1]).sum(axis=3).astype(x.dtype)

    return over_heads(weights[..., 1], q), over_heads(weights[..., 0], dy.astype(q.dtype))


def _inputs(primals: Sequence[mx.array], spans: mx.array, rotary: Rotary | None) -> dict[str, mx.array]:
    names = ("queries", "keys", "values", "own_keys", "own_values")
    inputs = dict(zip(names, primals, strict=False)) | {"spans": spans}
    if rotary is not None:
        inputs["rotary"] = rotary.table
        inputs |= {} if rotary.places is None else {"places": rotary.places}
    return inputs


def _launch(name: str, inputs: dict[str, mx.array], outputs: Mapping[str, Shape]) -> list[mx.array]:
    """Run ``metal/NAME.metal``: a threadgroup for a block of packed queries or of keys, a group of heads and a row."""
    q, k = inputs["queries"], inputs["keys"]
    (batch, _, heads, size), groups = q.shape, k.shape[2]
    places = inputs["rotary"].shape[1] if "rotary" in inputs else 0
    build = choose_build(_task(name, q, k, "own_keys" in inputs, places))
    if build is None:
        raise ValueError(f"no build of {name} fits heads of {size}, {k.shape[1]} keys and {places} places")
    flags = {"ROPE": "rotary", "PLACES": "places", "OWN": "own_keys"}
    kernel = build_kernel(
        name, tuple(inputs), tuple(outputs), tuple(flag for flag, needs in flags.items() if needs in inputs)
    )
    count = k.shape[1] if name == KEY_GRAD else q.shape[1] * heads // groups
    blocks = max(1, -(-count // (8 * build.rows * build.simdgroups)))
    shapes, dtypes = zip(*outputs.values(), strict=True)
    return list(
        kernel(
            inputs=list(inputs.values()),
            template=[("T", q.dtype), ("D", size), ("REPEAT", heads // groups), *_template(name, build)],
            grid=(blocks * 32 * build.simdgroups, groups, batch),
            threadgroup=(32 * build.simdgroups, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )
    )


def _template(name: str, build: Build) -> list[tuple[str, int]]:
    values = {"SIMDGROUPS": build.simdgroups, "TILE": build.tile}
    values |= {"ROWS": build.rows} if name == FORWARD else {"HELD": build.held}
    return list((values | ({"SIDE": build.side} if build.side else {})).items())


def _task(name: str, q: mx.array, k: mx.array, own: bool, places: int) -> Task:
    """Counts are rounded up to powers of two, so that shapes of one class have one build."""
    queries, keys = (bucket(x.shape[1]) for x in (q, k))
    return Task(name, q.shape[-1], q.dtype.size, queries * q.shape[2] // k.shape[2], keys, own, places)
