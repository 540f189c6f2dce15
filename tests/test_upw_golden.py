"""The paper's presets compute what they computed before this library had options of its own.

`golden/upw.json` holds logits and window states that the commit before the options gave. ``python
tests/test_upw_golden.py`` writes them anew, which only a change of the paper's own mathematics may call for.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_pixword.config.run import make_config
from mlx_pixword.model.batch import collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.pixels.windows import to_windows

GOLDEN = Path(__file__).parent / "golden/upw.json"
SMALL = {
    "hidden_size": 96, "num_heads": 3, "num_kv_heads": 3, "num_layers": 2, "image_layers": 2, "intermediate_size": 192,
    "image_size": 64, "max_seq_len": 64, "dtype": "float32",
}  # fmt: skip
PRESETS = {"upw-120m": {}, "upw-170m": {"vocab_size": 300}}
SIZES = ((32, 32), (20, 37))  # of the images: whole windows, and ragged ones
KEPT = 40  # numbers of each array, evenly chosen


def found(preset: str) -> dict[str, list[float]]:
    """Some logits and window states of a small model of a preset's kind, with weights that are functions of names."""
    args = make_config({"preset": preset, **SMALL, **PRESETS[preset]}).model
    model, rng = PixWordModel(args, 2), np.random.default_rng(0)
    weights = dict(tree_flatten(model.parameters()))
    shapes = [(name, weights[name].shape) for name in sorted(weights)]
    model.load_weights([(n, mx.array(rng.normal(len(s) == 1, 0.05, s).astype(np.float32))) for n, s in shapes])

    def document(height: int, width: int) -> Document:
        tokens = rng.integers(0, args.num_pix, (height, width))
        image = ImageTokens(*to_windows(tokens, args.window_size, args.num_pix), height, width)
        return make_document([[BOS, IMAGE], image, [END_IMAGE, *([7, 9, 11] if PRESETS[preset] else [])]], closed=True)

    batch = collate([[document(*size)] for size in SIZES], args, exact=True)
    return {"logits": _some(model(batch)), "states": _some(model.window_states(batch))}


def _some(array: mx.array) -> list[float]:
    flat = np.array(array).ravel()
    return [float(v) for v in flat[np.linspace(0, len(flat) - 1, KEPT).astype(int)]]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_papers_presets_compute_what_they_did(preset: str) -> None:
    golden = json.loads(GOLDEN.read_text())[preset]
    for name, values in found(preset).items():
        assert max(map(abs, golden[name])) > 0.3
        np.testing.assert_allclose(values, golden[name], rtol=0, atol=2e-6)  # sums in another order differ so much


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({preset: found(preset) for preset in PRESETS}, indent=1) + "\n")
