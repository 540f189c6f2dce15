"""Bytes moved and held, against graphs of the model, peaks of MLX's allocator, and hand counts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_pixword.config.run import make_config
from mlx_pixword.model import layers
from mlx_pixword.model.args import ModelArgs, key_width, matrix_parameters, parameters
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.planning.costs import drawing_flops, image_load
from mlx_pixword.planning.footprint import drawing_work, layer_bytes, optimizer_work, training_memory, training_work

Build = Callable[..., PixWordModel]
FREE = (  # views, and the few rows of the rotary table that all heads share
    "Reshape", "Broadcast", "Transpose", "ExpandDims", "Squeeze", "Unflatten", "Flatten", "Slice", "Split", "Gather",
)  # fmt: skip
BYTES = {mx.float32: 4, mx.bfloat16: 2}


# --- moved ------------------------------------------------------------------------------------------------------------


def moved(function: Callable[[mx.array], mx.array], x: mx.array) -> int:
    """Bytes that a function's operations read and write; what a broadcast repeats is free."""
    events: list[dict[str, Any]] = []
    mx.export_function(events.append, function, x)
    primitives = [event for event in events if event["type"] == "primitive"]
    repeated = {array[0] for event in primitives if event["name"] == "Broadcast" for array in event["outputs"]}
    arrays = [a for e in primitives if e["name"] not in FREE for a in [*e["inputs"], *e["outputs"]]]
    return sum(int(np.prod(shape)) * BYTES[dtype] for name, shape, dtype in arrays if name not in repeated)


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"qk_norm": True}, {"intermediate_size": 128}])
def test_bytes_of_a_layer_are_those_of_its_operations(
    small_model: Build, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Norms and attention, which are one kernel each on a GPU, are stood in for by one operation each."""
    monkeypatch.setattr("mlx_pixword.ops.exponentials.polynomials_pay", lambda *_: False)
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: mx.abs(x))
    monkeypatch.setattr(
        layers, "attention", lambda q, k, v, scale, mask: mx.concatenate([q, k, v], axis=1)[:, : q.shape[1]]
    )
    model, rows = small_model(**changes), 64
    args, layer = model.args, model.layers[0]
    rotary = mx.zeros((2, rows, args.head_size // 2))
    mx.eval(rotary)
    found = moved(lambda x: layer(x, rotary, "causal"), mx.zeros((1, rows, args.hidden_size), args.compute_dtype))
    number = BYTES[args.compute_dtype]
    weights = matrix_parameters(args) * (4 if number == 4 else 8)
    stood_in = 2 * number * rows * key_width(args)  # written by `concatenate`, and not by attention
    joined = 2 * number * rows * args.hidden_size  # the heads, which the graph flattens after a transposition
    assert found == layer_bytes(args, rows, rows) + weights + stood_in - joined


def test_training_moves_what_it_computes_again(small_model: Build) -> None:
    args = small_model().args
    loads = [image_load(args, 32, 32, recompute=r, chunk=c) for r, c in [(False, 0), (True, 0), (True, 16)]]
    plain, recomputed, chunked = (training_work(args, load) for load in loads)
    assert plain.bytes < recomputed.bytes < chunked.bytes < 2 * plain.bytes
    assert (plain.kernels, recomputed.kernels) == (50 * 3 * (2 + 2), 50 * 4 * (2 + 2))
    assert chunked.kernels == 50 * (4 * 4 * 2 + 4 * 2)


@pytest.mark.parametrize(("muon", "passes"), [(False, 7), (True, 5)])
def test_bytes_of_an_optimizer_step(small_model: Build, muon: bool, passes: int) -> None:
    args = small_model().args
    total, hidden = parameters(args), 4 * matrix_parameters(args)
    work = optimizer_work(args, muon, 3)
    assert work.bytes == 4 * ((2 * 3 + 3) * total + 7 * (total - hidden) + passes * hidden)
    assert bool(work.flops) == muon


def test_drawing_reads_weights_once_for_all_images(small_model: Build) -> None:
    args = small_model().args
    one, two, many = (drawing_work(args, 5, 6, 2, count) for count in (1, 2, 16))
    assert one.flops == drawing_flops(args, 5, 6, 2) and many.flops == 16 * one.flops
    assert many.bytes - one.bytes == 15 * (two.bytes - one.bytes)
    weights = 29 * 4 * (4 * matrix_parameters(args) + 64 * args.hidden_size)  # 29 pixels, float32, 64 pix tokens
    rows = 29 * 4 * layer_bytes(args, 1, 1)
    image_keys = sum(range(1, 17)) + sum(range(1, 9)) + sum(range(1, 5)) + 1
    language_keys = 16 * 3 + 8 * 4 + 4 * 5 + 1 * 6
    assert one.bytes == weights + rows + 2 * 4 * key_width(args) * 2 * (image_keys + language_keys)
    assert one.kernels == many.kernels == 29 * (4 * 15 + 10)


# --- held -------------------------------------------------------------------------------------------------------------


def test_weights_gradients_and_moments() -> None:
    args = make_config({"preset": "upw-120m"}).model
    load = image_load(args, 224, 224)
    total, hidden = parameters(args), 17 * matrix_parameters(args)
    assert training_memory(args, load, muon=False, accumulate=1)[:3] == (4 * total, 4 * total, 8 * total)
    assert training_memory(args, load, muon=True, accumulate=2)[:3] == (4 * total, 8 * total, 8 * total - 4 * hidden)


MEASURE = """
import json, sys
import mlx_pixword, mlx.core as mx, mlx.nn as nn, numpy as np
from mlx.utils import tree_flatten
from mlx_pixword.ops import attention, exponentials
from mlx_pixword.training.device import recompute_layers
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.training.chunked_gradient import make_chunked_gradient
from mlx_pixword.config.train import TrainArgs
from mlx_pixword.training.step import _objective

mx.set_default_device(mx.cpu)
exponentials.polynomials_pay = attention.polynomials_pay = lambda *_: False  # MLX's own operations, as on a GPU
for changes, queries, options in json.loads(sys.argv[1]):
    args = ModelArgs(**changes)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    row = [make_document([[BOS, IMAGE], tokens_of(rgb, args), [END_IMAGE]])]
    batch = collate([row], args, exact=True, pixel_queries=queries)
    model = PixWordModel(args)
    mx.eval(model.parameters(), batch.arrays())
    settings = TrainArgs(**options)
    recompute_layers(model, settings)
    gradient = nn.value_and_grad(model, _objective(model, settings))
    if settings.window_chunk:
        gradient = make_chunked_gradient(
            model, _objective(model, settings), settings.window_chunk, [mx.default_stream(mx.cpu)], False
        )
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    (loss, _), grads = gradient(batch.arrays(), mx.array(1.0))
    mx.eval(loss, grads)
    print(mx.get_peak_memory() - before - sum(g.nbytes for _, g in tree_flatten(grads)))
    del gradient, loss, grads, model
"""
WIDE = {
    "fold_factor": 32, "image_size": 64, "window_size": 16, "hidden_size": 96, "num_heads": 4, "num_kv_heads": 2,
    "num_layers": 2, "image_layers": 3, "intermediate_size": 288, "max_seq_len": 64, "dtype": "float32",
}  # fmt: skip
CASES: list[tuple[dict[str, Any], int, dict[str, Any]]] = [
    ({**make_config({"preset": "tiny"}).model.to_dict(), "dtype": "float32"}, 3, {}),
    (WIDE, 0, {}),
    (WIDE, 4, {"grad_checkpoint": True}),
    (WIDE, 0, {"window_chunk": 4}),
    (WIDE, 4, {"window_chunk": 4, "grad_checkpoint": True}),
    ({**WIDE, "dtype": "bfloat16"}, 0, {"window_chunk": 8}),
]


def test_activations_are_near_the_peaks_of_the_allocator() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    command = [sys.executable, "-c", MEASURE, json.dumps(CASES)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    for (changes, queries, options), peak in zip(CASES, map(int, output.split()), strict=True):
        args = ModelArgs(**changes)
        load = image_load(
            args,
            64,
            64,
            pixel_queries=queries,
            chunk=options.get("window_chunk", 0),
            recompute="grad_checkpoint" in options,
        )
        assert 0.8 < training_memory(args, load, muon=False, accumulate=1).activations / peak < 1.25, (
            changes,
            options,
        )
