"""One generative model that reads and writes pixels and words, on MLX.

Names are imported when they are first used, so that `import mlx_pixword` stays under 0.2 s.
"""

import sys
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .common.blas import load_openblas

if TYPE_CHECKING:
    from .common.errors import PixWordError
    from .inference.animation import Animation, animate
    from .inference.draw import generate_image, generate_images
    from .inference.likelihood import LogLikelihood, log_likelihood
    from .inference.read import Reading, read
    from .inference.words import generate_text, stream_generate
    from .inputs.processor import Processor
    from .model.args import ModelArgs
    from .model.batch import Batch
    from .model.network import PixWordModel
    from .ops.fold import fold_windows, unfold_windows
    from .pixels.colors import fold_colors, unfold_colors
    from .weights.directory import load, save_model
    from .weights.upload import Card, push_to_hub, save_pretrained

__version__ = "0.1.0"

_HOME = {
    "Animation": "inference.animation",
    "Batch": "model.batch",
    "Card": "weights.upload",
    "LogLikelihood": "inference.likelihood",
    "ModelArgs": "model.args",
    "PixWordError": "common.errors",
    "PixWordModel": "model.network",
    "Processor": "inputs.processor",
    "Reading": "inference.read",
    "animate": "inference.animation",
    "fold_colors": "pixels.colors",
    "fold_windows": "ops.fold",
    "generate_image": "inference.draw",
    "generate_images": "inference.draw",
    "generate_text": "inference.words",
    "load": "weights.directory",
    "log_likelihood": "inference.likelihood",
    "read": "inference.read",
    "push_to_hub": "weights.upload",
    "save_model": "weights.directory",
    "save_pretrained": "weights.upload",
    "stream_generate": "inference.words",
    "unfold_colors": "pixels.colors",
    "unfold_windows": "ops.fold",
}
__all__ = [
    "Animation",
    "Batch",
    "Card",
    "LogLikelihood",
    "ModelArgs",
    "PixWordError",
    "PixWordModel",
    "Processor",
    "Reading",
    "animate",
    "fold_colors",
    "fold_windows",
    "generate_image",
    "generate_images",
    "generate_text",
    "load",
    "log_likelihood",
    "read",
    "push_to_hub",
    "save_model",
    "save_pretrained",
    "stream_generate",
    "unfold_colors",
    "unfold_windows",
]

_MOVED = {  # modules by the places that they had before there were folders
    "colors": "pixels.colors",
    "drawing": "inference.draw",
    "errors": "common.errors",
    "generation": "inference.words",
    "hub": "weights.directory",
    "images": "pixels.images",
    "likelihood": "inference.likelihood",
    "processor": "inputs.processor",
    "tokenizer": "inputs.tokenizer",
    "windows": "pixels.windows",
}


class _Moved(MetaPathFinder, Loader):
    """Finds and loads modules under their old names, for programs that were written before."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == __name__ and old in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = _MOVED[module.__name__.rpartition(".")[2]]
        warnings.warn(f"{module.__name__} is {__name__}.{new} now", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(f".{new}", __name__)


sys.meta_path.append(_Moved())

if (_advice := load_openblas()) and sys.stderr is not None:  # None would be standard output
    with suppress(OSError):
        print(f"mlx_pixword: {_advice}", file=sys.stderr)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_pixword' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
