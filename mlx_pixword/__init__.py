"""One generative model that reads and writes pixels and words, on MLX.

Names are imported when they are first used, so that `import mlx_pixword` stays under 0.2 s.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._blas import load_openblas

if TYPE_CHECKING:
    from .args import ModelArgs
    from .batch import Batch
    from .colors import fold_colors, unfold_colors
    from .drawing import generate_image, generate_images
    from .errors import PixWordError
    from .generation import generate_text, stream_generate
    from .hub import load, save_model
    from .kernels.colors import fold_windows, unfold_windows
    from .likelihood import LogLikelihood, log_likelihood
    from .model import PixWordModel
    from .processor import Processor

__version__ = "0.1.0"

_HOME = {
    "Batch": "batch",
    "LogLikelihood": "likelihood",
    "ModelArgs": "args",
    "PixWordError": "errors",
    "PixWordModel": "model",
    "Processor": "processor",
    "fold_colors": "colors",
    "fold_windows": "kernels.colors",
    "generate_image": "drawing",
    "generate_images": "drawing",
    "generate_text": "generation",
    "load": "hub",
    "log_likelihood": "likelihood",
    "save_model": "hub",
    "stream_generate": "generation",
    "unfold_colors": "colors",
    "unfold_windows": "kernels.colors",
}
__all__ = [
    "Batch",
    "LogLikelihood",
    "ModelArgs",
    "PixWordError",
    "PixWordModel",
    "Processor",
    "fold_colors",
    "fold_windows",
    "generate_image",
    "generate_images",
    "generate_text",
    "load",
    "log_likelihood",
    "save_model",
    "stream_generate",
    "unfold_colors",
    "unfold_windows",
]

if _advice := load_openblas():
    print(f"mlx_pixword: {_advice}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_pixword' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
