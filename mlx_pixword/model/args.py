"""The shape of a model, `config.json`: all that data and words need to know of it."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..common.errors import PixWordError
from ..common.settings import build, setting
from ..ops.rotary import SCALINGS, Scaling
from ..pixels.colors import COLOR_FEATURES, LINEAR_COLOR_FEATURES, num_levels, num_pix_tokens
from ..pixels.windows import check_geometry

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
POSITIONS, SUMMARIES = ("sequence", "grid"), ("last", "concat")
GRID_THETA = 100.0  # inside windows; at 500,000 a head of 16 tells 16 places apart by two of its eight pairs
METADATA_KEYS = ("model_type", "architectures", "quantization", "quantization_config", "transformers_version")


_IMAGE = ("image_hidden_size", "image_num_heads", "image_num_kv_heads", "image_intermediate_size")
MAY_BE_0 = {*_IMAGE, "image_layers", "window_theta", "summary_rank", "sine_color_scale", "head_dim", "no_rope_every"}

# What layers of language models may have, and the image block never has.
_LANGUAGE: dict[str, Any] = {
    "head_dim": 0, "attention_bias": False, "output_bias": False, "mlp_bias": False, "qk_norm_weights": False,
    "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
    "rope_context": 8192, "no_rope_every": 0,
}  # fmt: skip


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
    linear_color_scale: float = setting(0.02, "scale of factored colours' three linear features at the start")
    sine_color_scale: float = setting(0.02, "the same of their 24 sines and cosines; 0: embed without these")
    qk_norm_weights: bool = setting(False, "with qk_norm: weights of these norms, in the language block")
    head_dim: int = setting(0, "width of the language block's heads; 0: hidden_size / num_heads")
    attention_bias: bool = setting(False, "biases of queries, keys and values in the language block")
    output_bias: bool = setting(False, "biases of the attention's output in the language block")
    mlp_bias: bool = setting(False, "biases of the feed-forward layers in the language block")
    rope_theta: float = setting(500000.0, "base of the rotary frequencies")
    no_rope_every: int = setting(
        0, "every so many-th layer of the language block turns nothing, as in SmolLM3; 0: none"
    )
    rope_scaling: str = setting("llama3", "scaling of the language block's rotary frequencies", choices=SCALINGS)
    rope_factor: float = setting(8.0, "factor of the scaling")
    rope_low_freq_factor: float = setting(1.0, "llama3: contexts a wavelength, above which all of the factor applies")
    rope_high_freq_factor: float = setting(4.0, "llama3: the same, below which none of it does")
    rope_context: int = setting(8192, "llama3: positions of the context that was scaled from")
    positions: str = setting("sequence", "rotary positions: elements, or rows and columns", choices=POSITIONS)
    window_theta: float = setting(0.0, "base of the frequencies inside windows; 0: rope_theta, with a grid 100")
    summary: str = setting("last", "a window's state: of its last pixel, or with all its colours", choices=SUMMARIES)
    summary_rank: int = setting(0, "dimensions that the colours of a window go through; 0: a full matrix")
    image_hidden_size: int = setting(0, "width of the image block; 0: hidden_size")
    image_num_heads: int = setting(0, "query heads of the image block; 0: heads as large as the language block's")
    image_num_kv_heads: int = setting(0, "key and value heads of the image block; 0: in proportion")
    image_intermediate_size: int = setting(0, "width of the image block's feed-forward layers; 0: in proportion")
    rms_norm_eps: float = setting(1e-5, "epsilon of every RMSNorm")
    dtype: str = setting("auto", "compute type; auto: bfloat16 on a GPU, float32 elsewhere", choices=("auto", *DTYPES))

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, bool | str) and not (0 < value < 2**31 or (value == 0 and name in MAY_BE_0)):
                least = "0 or positive" if name in MAY_BE_0 else "positive"
                raise PixWordError(f"{name} must be {least} and below 2^31, got {value!r}")
        for f in fields(self):
            if (choices := f.metadata["choices"]) and (value := getattr(self, f.name)) not in choices:
                raise PixWordError(f"{f.name} must be {', '.join(choices)}, got {value!r}")
        num_levels(self.fold_factor)
        check_geometry(self.image_size, self.window_size)
        if (
            (not self.head_dim and self.hidden_size % self.num_heads)
            or self.num_heads % self.num_kv_heads
            or self.head_size % 2
        ):
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
        self._check_options()

    def _check_options(self) -> None:
        if self.qk_norm_weights and not self.qk_norm:
            raise PixWordError("qk_norm_weights are weights of qk_norm; turn that on too")
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise PixWordError(
                f"rope_high_freq_factor must be above rope_low_freq_factor, got {self.rope_high_freq_factor} and "
                f"{self.rope_low_freq_factor}"
            )
        sizes = self.head_size, self.image.head_size  # checks the image block's
        if self.grid and any(size % 4 for size in sizes):
            raise PixWordError(
                f"positions grid needs heads of a multiple of 4, a pair for rows and one for columns; they are "
                f"{sizes[0]} wide in the language block and {sizes[1]} in the image block"
            )
        if self.summary_rank and self.summary == "last":
            raise PixWordError(f"summary_rank {self.summary_rank} needs summary concat")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def scaling(self) -> Scaling:
        """Of the language block's rotary frequencies."""
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        return Scaling(self.rope_scaling, self.rope_factor, low, high, self.rope_context)

    @property
    def has_plain_layers(self) -> bool:
        """Whether its layers are as the image block's: no biases, no weights of qk_norm, none without RoPE."""
        return not (
            self.no_rope_every or self.attention_bias or self.output_bias or self.mlp_bias or self.qk_norm_weights
        )

    @property
    def grid(self) -> bool:
        """Whether rotary positions have a row and a column."""
        return self.positions == "grid"

    @property
    def uses_places(self) -> bool:
        """Whether a window's state depends on its valid width, which says where in the full window its pixels lie."""
        return self.grid or self.summary == "concat"

    @cached_property
    def image(self) -> "ModelArgs":
        """The shape of the image block's layers, as that of a model with one width; itself where no option changes it.

        Its ``rope_theta`` is the base inside windows. What is 0 follows from the language block: heads of the same
        size, key heads and feed-forward width in proportion, each at least 1.
        """
        as_language = all(getattr(self, name) == value for name, value in _LANGUAGE.items())
        if as_language and not any(getattr(self, name) for name in (*_IMAGE, "window_theta")) and not self.grid:
            return self
        size = self.image_hidden_size or self.hidden_size
        heads = self.image_num_heads or max(1, size // self.head_size)
        keys = self.image_num_kv_heads or max(1, heads * self.num_kv_heads // self.num_heads)
        width = self.image_intermediate_size or max(1, self.intermediate_size * size // self.hidden_size)
        if size % heads or heads % keys or size // heads % 2:
            raise PixWordError(
                f"image_num_heads {heads} must divide image_hidden_size {size} into even heads and be a multiple of "
                f"image_num_kv_heads {keys}"
            )
        return replace(
            self, hidden_size=size, num_heads=heads, num_kv_heads=keys, intermediate_size=width, num_layers=1,
            rope_theta=self.window_theta or (GRID_THETA if self.grid else self.rope_theta),
            window_theta=0.0, positions="sequence", summary="last", summary_rank=0, image_hidden_size=0,
            image_num_heads=0, image_num_kv_heads=0, image_intermediate_size=0, **_LANGUAGE,
        )  # fmt: skip

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
    """Weights of a layer's projections, ``2 D H d + 2 D G d + 3 D F``; of the image block with ``args.image``."""
    size = args.hidden_size
    return size * (2 * query_width(args) + 2 * key_width(args) + 3 * args.intermediate_size)


def vector_parameters(args: ModelArgs) -> int:
    """Biases and weights of query and key norms in a layer."""
    of_heads = query_width(args) + 2 * key_width(args) if args.attention_bias else 0
    outputs = args.hidden_size if args.output_bias else 0
    wide = 2 * args.intermediate_size + args.hidden_size if args.mlp_bias else 0
    return of_heads + outputs + wide + (2 * args.head_size if args.qk_norm_weights else 0)


def summary_parameters(args: ModelArgs) -> int:
    """Weights that embed a window's colours; 0 where its last pixel's state stands for it alone."""
    colors, size, rank = args.window_size**2 * args.image.hidden_size, args.hidden_size, args.summary_rank
    if args.summary == "last":
        return 0
    return rank * (colors + size) if rank else colors * size


def hidden_parameters(args: ModelArgs) -> int:
    """Weights of hidden matrices: the layers' projections, and that from the image block to the language block."""
    layers = args.image_layers * matrix_parameters(args.image) + args.num_layers * matrix_parameters(args)
    return layers + state_parameters(args)


def state_parameters(args: ModelArgs) -> int:
    """Weights of the projection of the image block's states; 0 where both blocks have one width."""
    size, local = args.hidden_size, args.image.hidden_size
    return local * size if local != size else 0


def color_features_of(args: ModelArgs) -> tuple[int, int]:
    """Features that a factored colour's embedding and its output row are made of; 0 where colours are not factored."""
    if not args.factored_colors:
        return 0, 0
    return COLOR_FEATURES if args.sine_color_scale else LINEAR_COLOR_FEATURES, COLOR_FEATURES


def parameters(args: ModelArgs, *, stored: bool = False) -> int:
    """Trainable numbers, or those of a model directory, where factored colours are summed up."""
    size, local = args.hidden_size, args.image.hidden_size
    total = hidden_parameters(args) + summary_parameters(args)
    for block, layers in ((args.image, args.image_layers), (args, args.num_layers)):
        total += layers * (2 * block.hidden_size + vector_parameters(block))  # norms and biases
    inputs, outputs = (0, 0) if stored else color_features_of(args)
    total += local * (args.num_pix + 1 + inputs) + size * (args.num_pix + args.vocab_size + outputs)
    return total + size * args.vocab_size + size


def query_width(args: ModelArgs) -> int:
    """``H d``."""
    return args.num_heads * args.head_size


def key_width(args: ModelArgs) -> int:
    """``G d``."""
    return args.num_kv_heads * args.head_size
