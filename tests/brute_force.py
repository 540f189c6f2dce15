"""Pixels from the float64 reference, one at a time with all that came before; used by several tests."""

import itertools

import numpy as np
import reference as ref

from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.upw import LAYER_NAMES, TOP_NAMES

OPTION_NAMES = {  # of weights that the paper's program has not
    "imgblk.state_proj.weight": "image_block.state_proj.weight",
    "imgblk.summary.weight": "image_block.summary.window_proj.weight",
    "imgblk.summary_out.weight": "image_block.summary.out_proj.weight",
}


def reference_weights(model: PixWordModel) -> ref.Weights:
    """The model's weights under the names that the float64 reference knows."""
    own = {name: np.array(w) for name, w in model.plain_weights()[0].items()}
    weights = {upw: own[name] for upw, name in TOP_NAMES.items()}
    weights |= {theirs: own[name] for theirs, name in OPTION_NAMES.items() if name in own}
    for theirs, ours, count in (("", "", model.args.num_layers), ("imgblk.", "image_block.", model.args.image_layers)):
        for n, (upw, name) in itertools.product(range(count), LAYER_NAMES.items()):
            weights[f"{theirs}layers.{n}.{upw}.weight"] = own[f"{ours}layers.{n}.{name}.weight"]
    return weights


def reference_config(model: PixWordModel) -> ref.Config:
    """What the float64 reference must be told beside the weights."""
    a = model.args
    return ref.Config(
        a.num_heads, a.num_kv_heads, a.window_size, a.fold_factor, a.qk_norm, grid=a.grid,
        image_heads=a.image.num_heads, image_kv_heads=a.image.num_kv_heads, window_theta=a.image.rope_theta,
    )  # fmt: skip


def pixel_logits(
    weights: ref.Weights, cfg: ref.Config, words: list[int], windows: list[np.ndarray],
    size: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Logits ``[T, K]`` of each pixel from a whole pass over what lies before: full windows, and the open one cut.

    ``size`` is the image's height and width, where the model has options that ask for it.
    """
    num_words, rows = len(weights["tok_embeddings.weight"]), []
    widths = positions = None
    if size is not None:
        widths = ref.window_widths(*size, cfg.window_size)
        positions = ref.element_positions([words, np.zeros((*size, 3))], cfg)
    for n, window in enumerate(windows):
        for j in range(len(window)):
            shown = [*windows[:n], *([window[:j]] if j else [])]
            x = [weights["tok_embeddings.weight"][w].astype(np.float64) for w in words]
            states = ref.image_states(weights, cfg, shown, widths=widths) if shown else []
            counted = None if positions is None else positions[: len(x) + len(states)]
            rows.append(ref.sequence_logits(weights, cfg, np.array([*x, *states]), counted)[-1, num_words:])
    return np.array(rows)
