"""The attention kernels: queries that see a span of keys each, and perhaps a key of their own.

B  rows    Q  query pixels a row    L  elements of a row, as keys    H  query heads    G  key heads    d  head size

`window_attention` and `conditional_attention` are these kernels with spans of their kind, and say what they compute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from .dispatch.load import build_kernel
from .exponentials import custom

SOURCES = ("attention", "attention_query_grad", "attention_key_grad")
MOST_SIMDGROUPS = 8  # of a threadgroup

LARGEST_HEAD = 128  # tiles of larger ones do not fit into threadgroup memory

Shape = tuple[Sequence[int], mx.Dtype]


def suits(q: mx.array, k: mx.array) -> bool:
    """Whether the kernels can take queries and keys of these shapes; if not, the reference has to."""
    size = q.shape[-1]
    return size % 8 == 0 and size <= LARGEST_HEAD and q.size > 0 and k.size > 0


def attend(spans: mx.array, frequencies: mx.array | None = None) -> Callable[..., mx.array]:
    """The attention over spans, differentiable: ``(q, k, v, own_k, own_v)`` to ``y``; own keys may be left out.

    Args:
        spans: int32 ``[B, Q, 2]``, the first key that a query sees and the one after the last.
        frequencies: uint32 ``[d / 2]`` turns a position by units of 2^-32: keys stand at their number, a query at
            the end of its span less one. None if keys and queries are rotated already.

    Returns:
        a function of ``q [B, Q, H, d]``, ``k, v [B, L, G, d]`` and ``own_k, own_v [B, Q, G, d]``; ``y`` is like ``q``.
    """

    def forward(*primals: mx.array) -> list[mx.array]:
        return _forward(primals, spans, frequencies)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return _backward(primals, cotangents[0], outputs, spans, frequencies)

    function = custom(forward)
    function.vjp(backward)
    return lambda *primals: function(*primals)[0]


def _forward(primals: Sequence[mx.array], spans: mx.array, frequencies: mx.array | None) -> list[mx.array]:
    """Output like ``q``, and float32 ``[B, Q, H]``, log2 of the softmax's denominators."""
    q = primals[0]
    outputs = {"out": (q.shape, q.dtype), "sums": (q.shape[:3], mx.float32)}
    rows = 4 if len(primals) > 3 and q.shape[-1] <= 64 else 2  # more rows read a long prefix less often
    return _launch("attention", _inputs(primals, spans, frequencies), outputs, q.shape[1] * _repeat(primals), rows)


def _backward(
    primals: Sequence[mx.array], dy: mx.array, outputs: Sequence[mx.array], spans: mx.array, frequencies: Any
) -> tuple[mx.array, ...]:
    """Gradients of all primals."""
    q, k, v, *own = primals
    y, sums = outputs
    heads, rows = q.shape[:3], q.shape[1] * _repeat(primals)
    given = {"sums": sums, "out_grad": dy.astype(q.dtype)}
    results: dict[str, Shape] = {"query_grad": (q.shape, q.dtype), "products": (heads, mx.float32)}
    if own:
        results["own_weights"] = ((*heads, 2), mx.float32)
    inputs = _inputs(primals, spans, frequencies) | {"out": y} | given
    dq, products, *weights = _launch("attention_query_grad", inputs, results, rows, 2 if q.shape[-1] <= 64 else 1)
    results = {"key_grad": (k.shape, k.dtype), "value_grad": (v.shape, v.dtype)}
    inputs = _inputs((q, k, v), spans, frequencies) | {"products": products} | given
    dk, dv = _launch("attention_key_grad", inputs, results, k.shape[1], 1)
    return (dq, dk, dv, *(_own_gradients(q, dy, weights[0], own[0].shape[2]) if own else ()))


def _own_gradients(q: mx.array, dy: mx.array, weights: mx.array, groups: int) -> tuple[mx.array, mx.array]:
    """Gradients of own keys and values ``[B, Q, G, d]`` from ``p`` and ``ds``, ``weights [B, Q, H, 2]``."""

    def over_heads(weight: mx.array, x: mx.array) -> mx.array:
        weighted = weight[..., None] * x.astype(mx.float32)  # [B, Q, H, d]
        return weighted.reshape(*x.shape[:2], groups, -1, x.shape[-1]).sum(axis=3).astype(x.dtype)

    return over_heads(weights[..., 1], q), over_heads(weights[..., 0], dy.astype(q.dtype))


def _inputs(primals: Sequence[mx.array], spans: mx.array, frequencies: mx.array | None) -> dict[str, mx.array]:
    names = ("queries", "keys", "values", "own_keys", "own_values")
    inputs = dict(zip(names, primals, strict=False)) | {"spans": spans}
    return inputs if frequencies is None else inputs | {"frequencies": frequencies}


def _repeat(primals: Sequence[mx.array]) -> int:
    return primals[0].shape[2] // primals[1].shape[2]


def _launch(
    name: str, inputs: dict[str, mx.array], outputs: Mapping[str, Shape], rows: int, fragments: int
) -> list[mx.array]:
    """Run ``metal/NAME.metal``: a threadgroup for a block of ``rows``, a group of heads and a batch row.

    A simdgroup takes ``fragments`` times 8 of the rows: packed queries, or keys.
    """
    q, k = inputs["queries"], inputs["keys"]
    (batch, _, heads, size), groups = q.shape, k.shape[2]
    flags = {"ROPE": "frequencies", "OWN": "own_keys"}
    kernel = build_kernel(
        name, tuple(inputs), tuple(outputs), tuple(flag for flag, needs in flags.items() if needs in inputs)
    )
    simdgroups = max(1, min(MOST_SIMDGROUPS, -(-rows // (8 * fragments))))
    blocks = max(1, -(-rows // (8 * fragments * simdgroups)))
    shapes, dtypes = zip(*outputs.values(), strict=True)
    return list(
        kernel(
            inputs=list(inputs.values()),
            template=[
                *(("T", q.dtype), ("D", size), ("REPEAT", heads // groups)),
                *(("SIMDGROUPS", simdgroups), ("ROWS", fragments)),
            ],
            grid=(blocks * 32 * simdgroups, groups, batch),
            threadgroup=(32 * simdgroups, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )
    )
