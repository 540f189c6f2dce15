"""Pixels from the float64 reference, one at a time with all that came before; used by several tests."""

import itertools

import numpy as np
import reference as ref
from mlx.utils import tree_flatten

from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.upw import LAYER_NAMES, TOP_NAMES


def reference_weights(model: PixWordModel) -> ref.Weights:
    """The model's weights under the names that the float64 reference knows."""
    own = {name: np.array(w) for name, w in dict(tree_flatten(model.parameters())).items()}
    weights = {upw: own[name] for upw, name in TOP_NAMES.items()}
    for theirs, ours, count in (("", "", model.args.num_layers), ("imgblk.", "image_block.", model.args.image_layers)):
        for n, (upw, name) in itertools.product(range(count), LAYER_NAMES.items()):
            weights[f"{theirs}layers.{n}.{upw}.weight"] = own[f"{ours}layers.{n}.{name}.weight"]
    return weights


def pixel_logits(weights: ref.Weights, cfg: ref.Config, words: list[int], windows: list[np.ndarray]) -> np.ndarray:
    """Logits ``[T, K]`` of each pixel from a whole pass over what lies before: full windows, and the open one cut."""
    num_words, rows = len(weights["tok_embeddings.weight"]), []
    for n, window in enumerate(windows):
        for j in range(len(window)):
            shown = [*windows[:n], *([window[:j]] if j else [])]
            x = [weights["tok_embeddings.weight"][w].astype(np.float64) for w in words]
            states = ref.image_states(weights, cfg, shown) if shown else []
            rows.append(ref.sequence_logits(weights, cfg, np.array([*x, *states]))[-1, num_words:])
    return np.array(rows)
