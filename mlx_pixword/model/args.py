"""The shape of a model, `config.json`: all that data and words need to know of it."""

from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from ..common.errors import PixWordError
from ..common.settings import build, setting
from ..pixels.colors import COLOR_FEATURES, num_levels, num_pix_tokens
from ..pixels.windows import check_geometry

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
METADATA_KEYS = ("model_type", "architectures", "quantization", "quantization_config", "transformers_version")


@dataclass(frozen=True)
class ModelArgs:
    """The shape of a model: what `config.json` holds. Raises `PixWordError` when the sizes do not fit together."""

    vocab_size: int = setting(6, "word tokens V, the tokenizer's size; 6 is the special words alone")
    fold_factor: int = setting(16, "colour values folded into one level, a power of two in 1..256")
    image_size: int = setting(224, "longer side of an image in pixels, a multiple of the window size")
    window_size: int = setting(16, "side of a window in pixels")
    hidden_size: int = setting(768, "width of the model")
    num_heads: int = setting(12, "query heads")
    num_kv_heads: int = setting(6, "key and value heads")
    num_layers: int = setting(12, "layers of the language block")
    image_layers: int = setting(5, "layers of the image block")
    intermediate_size: int = setting(2304, "width of the feed-forward layers")
    max_seq_len: int = setting(1024, "elements (words and windows) of the longest sequence")
    qk_norm: bool = setting(False, "RMSNorm without weight on queries and keys")
    factored_colors: bool = setting(False, "learn colours as smooth functions plus a free row each (merged on saving)")
    rope_theta: float = setting(500000.0, "base of the rotary frequencies")
    rms_norm_eps: float = setting(1e-5, "epsilon of every RMSNorm")
    dtype: str = setting("auto", "compute type; auto: bfloat16 on a GPU, float32 elsewhere", choices=("auto", *DTYPES))

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, bool | str) and not 0 < value < 2**31:
                raise PixWordError(f"{name} must be positive and below 2^31, got {value!r}")
        num_levels(self.fold_factor)
        check_geometry(self.image_size, self.window_size)
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads or self.head_size % 2:
            raise PixWordError(
                f"num_heads {self.num_heads} must divide hidden_size {self.hidden_size} into even heads and be a "
                f"multiple of num_kv_heads {self.num_kv_heads}"
            )
        windows = (self.image_size // self.window_size) ** 2
        if windows + 3 > self.max_seq_len:
            raise PixWordError(
                f"an image of image_size {self.image_size} has up to {windows} windows of {self.window_size} px, "
                f"max_seq_len {self.max_seq_len} holds {self.max_seq_len - 3}; raise max_seq_len or window_size"
            )
        if self.vocab_size < 6:
            raise PixWordError(f"vocab_size counts the 6 special words too, got {self.vocab_size}")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise PixWordError(f"dtype must be auto, {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_pix(self) -> int:
        return num_pix_tokens(self.fold_factor)

    @property
    def compute_dtype(self) -> mx.Dtype:
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return mx.float32 if mx.default_device() == mx.cpu else mx.bfloat16

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """Read `config.json`; hub metadata and underscore keys are ignored, other unknown keys refused."""
        own = {k: v for k, v in config.items() if k not in METADATA_KEYS and not k.startswith("_")}
        return build(cls, own, where="config.json")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def matrix_parameters(args: ModelArgs) -> int:
    """Weights of a layer's seven projections, ``2 D^2 + 2 D G d + 3 D M``."""
    size = args.hidden_size
    return size * (2 * size + 2 * key_width(args) + 3 * args.intermediate_size)


def parameters(args: ModelArgs, *, stored: bool = False) -> int:
    """Trainable numbers, or those of a model directory, where factored colours are summed up."""
    size, rows = args.hidden_size, 2 * (args.vocab_size + args.num_pix) + 1
    layers = args.image_layers + args.num_layers
    factors = 2 * COLOR_FEATURES * size if args.factored_colors and not stored else 0
    return rows * size + size + layers * (matrix_parameters(args) + 2 * size) + factors


def key_width(args: ModelArgs) -> int:
    """``G d``."""
    return args.num_kv_heads * args.head_size
