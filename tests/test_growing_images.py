"""Decoding: every pixel's logits against float64, prompts of different lengths, and few operations."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference as ref
from brute_force import pixel_logits, reference_weights

from mlx_pixword.common.errors import PixWordError
from mlx_pixword.config.run import make_config
from mlx_pixword.inference.growing_images import GrowingImages, choose_token_layers
from mlx_pixword.inference.likelihood import score_document
from mlx_pixword.inference.token_layers import TokenLayers
from mlx_pixword.inference.token_layers_numpy import NumpyTokenLayers
from mlx_pixword.model.document import BOS, IMAGE, Document, ImageTokens, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import to_windows
from mlx_pixword.weights.lora import adapter_config, add_adapters

Build = Callable[..., PixWordModel]
WORDS = [BOS, 7, 9, IMAGE]


def image(rng: np.random.Generator, model: PixWordModel, height: int, width: int) -> ImageTokens:
    tokens = rng.integers(0, model.args.num_pix, (height, width))
    return ImageTokens(*to_windows(tokens, model.args.window_size, model.args.num_pix), height, width)


def pixels(images: list[ImageTokens]) -> list[np.ndarray]:
    """Tokens ``[N]`` of each pixel in window order."""
    return [
        np.array([image.windows[n, j] for image in images])
        for n, length in enumerate(images[0].lengths)
        for j in range(length)
    ]


def all_logits(
    model: PixWordModel, kind: type[TokenLayers], documents: list[Document], images: list[ImageTokens]
) -> np.ndarray:
    """Logits ``[N, T, K]`` while the images are put."""
    rows = kind(model.args)
    decoder = GrowingImages(model, documents, images[0].lengths.tolist(), rows)
    found = [np.array(decoder.logits)]
    for tokens in pixels(images)[:-1]:
        decoder.put(rows.keep(mx.array(tokens)))
        found.append(np.array(decoder.logits))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((5, 7), {}),
        ((5, 7), {"qk_norm": True, "num_kv_heads": 1}),
        ((9, 9), {"qk_norm": True}),  # more pixels than colours: the first layer's table is used
        ((2, 9), {"num_kv_heads": 4, "image_layers": 1}),
        ((1, 1), {}),
    ],
)
def test_logits_agree_with_float64(
    small_model: Build,
    rng: np.random.Generator,
    size: tuple[int, int],
    changes: dict[str, Any],
    kind: type[TokenLayers],
) -> None:
    model = small_model(**changes)
    model.norm.weight = mx.random.uniform(0.5, 2, (32,))
    model.head.weight = 10 * model.head.weight
    picture, args = image(rng, model, *size), model.args
    windows = [row[:length] for row, length in zip(picture.windows, picture.lengths, strict=True)]
    cfg = ref.Config(args.num_heads, args.num_kv_heads, 4, 64, qk_norm=args.qk_norm)
    expected = pixel_logits(reference_weights(model), cfg, WORDS, windows)
    found = all_logits(model, kind, [make_document([WORDS])], [picture])[0]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
def test_prompts_of_different_lengths_change_nothing(
    small_model: Build, rng: np.random.Generator, kind: type[TokenLayers]
) -> None:
    """Words, an image and words, and nothing, side by side and each alone."""
    model = small_model(qk_norm=True)
    shown = image(rng, model, 5, 6)
    documents = [make_document([[BOS, *[8] * 9, IMAGE]]), make_document([[BOS, 4], shown, [5, 7, IMAGE]])]
    documents += [make_document([[BOS, IMAGE]]), documents[0]]
    images = [image(rng, model, 5, 6) for _ in documents]
    together = all_logits(model, kind, documents, images)
    for found, document, picture in zip(together, documents, images, strict=True):
        alone = all_logits(model, kind, [document], [picture])[0]
        assert np.abs(found - alone).max() < 1e-5


@pytest.mark.parametrize("qk_norm", [False, True])
def test_half_types_stay_near_float32(small_model: Build, rng: np.random.Generator, qk_norm: bool) -> None:
    model = small_model(qk_norm=qk_norm)
    half = small_model(qk_norm=qk_norm, dtype="bfloat16")
    half.update(model.parameters())
    picture = image(rng, model, 5, 6)
    exact, near = (all_logits(m, TokenLayers, [make_document([WORDS])], [picture]) for m in (model, half))
    assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()


LAYERS: list[dict[str, Any]] = [  # of language models
    {"attention_bias": True, "head_dim": 12, "rope_scaling": "none"},
    {"qk_norm": True, "qk_norm_weights": True, "rope_scaling": "linear", "rope_factor": 2.0},
    {"no_rope_every": 2, "num_layers": 3, "attention_bias": True, "output_bias": True, "mlp_bias": True},
]
OPTIONS: dict[str, Any] = {"positions": "grid", "summary": "concat", "image_hidden_size": 16, "image_num_heads": 2}


@pytest.mark.parametrize("kind", [TokenLayers, NumpyTokenLayers])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("changes", [OPTIONS, *LAYERS, {**LAYERS[0], **OPTIONS, "summary_rank": 6}])
def test_pixels_are_drawn_with_the_probabilities_that_they_score(
    small_model: Build, rng: np.random.Generator, changes: dict[str, Any], adapters: bool, kind: type[TokenLayers]
) -> None:
    """Whatever layers and adapters a model has: what is drawn comes from the conditionals of the likelihood."""
    model = small_model(**changes)
    for _, module in model.named_modules():
        if isinstance(module, nn.RMSNorm):
            module.weight = mx.random.uniform(0.5, 2, module.weight.shape)
    model.head.weight = 10 * model.head.weight
    if adapters:
        add_adapters(model, adapter_config(model, 2, 4.0, image_block=True))
        for _, module in model.named_modules():
            if "lora_b" in module:
                module.lora_b = 0.2 * mx.random.normal(module.lora_b.shape)
    picture = image(rng, model, 6, 7)
    document = make_document([WORDS, picture])
    _, expected = score_document(model, document)
    steps = kind(model.args)
    decoder = GrowingImages(model, [make_document([WORDS])], picture.lengths.tolist(), steps, (6, 7))
    for scored, tokens in zip(expected, pixels([picture]), strict=True):
        logits = np.array(decoder.logits, np.float64)[0]
        found = logits[tokens[0]] - np.log(np.exp(logits).sum())
        assert found == pytest.approx(scored, abs=1e-4)
        decoder.put(steps.keep(mx.array(tokens)))


def test_what_is_not_finite_is_refused(small_model: Build) -> None:
    model = small_model()
    decoder = GrowingImages(model, [make_document([WORDS])], [2])
    decoder.check()
    decoder.put(decoder.same_for_all(3))
    decoder.check()
    decoder.logits = decoder.logits * float("inf")
    with pytest.raises(PixWordError, match="not finite"):
        decoder.check()


def test_numpy_computes_in_float32_on_a_cpu_alone(small_model: Build) -> None:
    assert type(choose_token_layers(small_model().args)) is NumpyTokenLayers
    assert type(choose_token_layers(small_model(dtype="bfloat16").args)) is TokenLayers


VIEWS = {"Broadcast", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "View complex64", "View float32"}


@pytest.mark.parametrize(("qk_norm", "most"), [(True, 75), (False, 67)])
@pytest.mark.parametrize(("offset", "writes"), [(0, 5), (5, 2)])
def test_a_pixel_takes_few_operations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qk_norm: bool, most: int, offset: int, writes: int
) -> None:
    """Of two image and three language layers on a GPU, where a fast operation is one.

    Caches of the language block are written by a window's first pixel alone. Attention's stand-in is one operation.
    """
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *_: -x)
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda q, k, v, **_: mx.concatenate([q, k, v], axis=2)[:, :, :1]
    )
    monkeypatch.setattr(
        "mlx_pixword.inference.token_layers.swiglu", lambda gate, up: -gate * up
    )  # silu is one on a GPU
    args = make_config({"preset": "tiny", "dtype": "float32", "num_kv_heads": 4, "qk_norm": qk_norm}).model
    model = PixWordModel(args)
    decoder = GrowingImages(model, [make_document([[BOS, IMAGE]])] * 2, [16] * 64, TokenLayers(args))
    for _ in range(16 + offset):
        decoder.put(decoder.same_for_all(1))
        mx.eval(decoder.logits)
    tokens = decoder.same_for_all(2)
    mx.eval(tokens)
    decoder.put(tokens)
    mx.export_to_dot(str(tmp_path / "g.dot"), decoder.logits)
    labels = Counter(re.findall(r'label ="([^"]*)"', (tmp_path / "g.dot").read_text()))
    assert labels.pop("SliceUpdate") == 2 * writes  # keys and values of so many layers
    found = sum(count for name, count in labels.items() if name not in VIEWS)
    assert most - 5 < found <= most
