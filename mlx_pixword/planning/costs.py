"""What a model costs, counted from its shape: parameters, attention pairs and floating-point operations.

B  rows    L  elements of a row    U  distinct windows    P  pixels a window    R  pixels that are read out of a window
Q  query pixels a row    D  hidden size    H  query heads, G  key heads    d  head size    F  feed-forward width
V  words, K  pix tokens    T  valid pixels of an image    N  windows of an image

Operations are those of matrix products and attention, two a multiply-add, on windows and rows as the program pads them;
causal attention counts half of its square, as a flash kernel computes it. Repeated windows are not taken off.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ..common.errors import PixWordError
from ..model.args import ModelArgs, color_features_of, hidden_parameters, key_width, state_parameters
from ..pixels.windows import num_windows, window_order

NEWTON_SCHULZ_STEPS = 5  # mlx.optimizers.Muon's default


@dataclass(frozen=True)
class Load:
    """A micro-batch: ``B``, ``L``, ``U``, ``R``, ``Q``; windows at a time, 0 for all; layers checkpointed."""

    rows: int
    elements: int
    windows: int
    reads: int = 1
    queries: int = 0
    chunk: int = 0
    recompute: bool = False

    @property
    def chunks(self) -> int:
        """Passes through the image block."""
        return -(-self.windows // self.chunk) if self.chunk else 1


class Flops(NamedTuple):
    """Operations by part."""

    image_block: int
    language_block: int
    query_pixels: int
    head: int


def image_load(
    args: ModelArgs, height: int, width: int, *, words: int = 0, pixel_queries: int = 0, rows: int = 1, chunk: int = 0,
    recompute: bool = False,
) -> Load:  # fmt: skip
    """A micro-batch of documents ``<s> <|image|> s_1 .. s_N <|/image|>`` and words; nothing is padded or packed.

    Raises:
        PixWordError: the document does not fit the sequence.
    """
    windows = num_windows(height, width, args.window_size)
    if windows + 3 + words > args.max_seq_len:
        raise PixWordError(
            f"a {width}x{height} image takes {windows + 3} elements and max_seq_len {args.max_seq_len} leaves room for "
            f"{max(0, args.max_seq_len - windows - 3)} words, got {words}; raise max_seq_len or take fewer words"
        )
    queries = min(pixel_queries, args.window_size**2 - 1)
    return Load(rows, windows + 3 + words, rows * windows, 1 + queries, windows * queries, chunk, recompute)


# --- parameters -------------------------------------------------------------------------------------------------------


# --- attention pairs --------------------------------------------------------------------------------------------------


def attention_pairs(args: ModelArgs, height: int, width: int, pixel_queries: int = 0) -> tuple[int, int]:
    """Pairs of valid pixels and windows an image and layer, and if every pixel saw every earlier one.

    ``sum P_n^2 / 2 + N^2 / 2 + sum m_n n`` and ``T^2 / 2``: the table of docs/model.md, exact at ragged edges.
    """
    lengths = window_order(height, width, args.window_size)[1].tolist()
    queries = sum(min(pixel_queries, length - 1) * n for n, length in enumerate(lengths))
    local = sum(length**2 for length in lengths) + len(lengths) ** 2
    return local // 2 + queries, (height * width) ** 2 // 2


# --- operations -------------------------------------------------------------------------------------------------------


def forward_flops(args: ModelArgs, load: Load) -> Flops:
    """Operations of a forward pass over a micro-batch, with the read-out and the table projection."""
    rows, queries = load.rows * load.elements, load.rows * load.queries
    image = _image_flops(args, load)
    outputs = 2 * args.hidden_size * (args.vocab_size + args.num_pix) * (rows + queries)
    sums = 2 * (args.vocab_size + args.num_pix) * color_features_of(args)[1] * args.hidden_size * (2 if queries else 1)
    return Flops(
        image.table + image.windows,
        args.num_layers * sum(_element_flops(args, load)),
        args.num_layers * sum(_query_flops(args, load)),
        outputs + sums,
    )


def training_flops(args: ModelArgs, load: Load) -> int:
    """Operations of forward and backward pass: 3 times forward, and what is computed again to save memory.

    What is computed again leaves out its last product, which the backward pass does not need: that of each
    checkpointed layer, or of the image block where windows come in chunks, whose layers are not checkpointed.
    """
    total, image = 3 * sum(forward_flops(args, load)), _image_flops(args, load)
    if load.recompute:
        total += args.num_layers * (_element_flops(args, load)[0] + _query_flops(args, load)[0])
    if load.chunks > 1:
        return total + image.windows - image.last
    return total + (image.inner if load.recompute else 0)


def muon_flops(args: ModelArgs) -> int:
    """Operations of a Muon step: Newton-Schulz on every projection of an ``m x n`` matrix, ``m <= n``."""
    of_blocks = args.image_layers * _muon_products(args.image) + args.num_layers * _muon_products(args)
    widths = args.image.hidden_size, args.hidden_size
    return NEWTON_SCHULZ_STEPS * (of_blocks + (_products(*widths) if state_parameters(args) else 0))


def _muon_products(args: ModelArgs) -> int:
    """Operations of a Newton-Schulz step on a layer's projections."""
    size, keys, width = args.hidden_size, key_width(args), args.intermediate_size
    return 2 * _products(size, size) + 2 * _products(keys, size) + 3 * _products(size, width)


def _products(rows: int, columns: int) -> int:
    m, n = sorted((rows, columns))
    return 4 * m * m * n + 2 * m**3


def drawing_flops(args: ModelArgs, height: int, width: int, before: int) -> int:
    """Operations that draw one image after ``before`` elements; every pixel but the last goes through both blocks.

    A table of the first layer's projections, which many pixels are drawn with, is not taken off.
    """
    pixels, local, above = cached_keys(args, height, width, before)
    weights = hidden_parameters(args) + token_summary_parameters(args)
    pairs = args.image.hidden_size * args.image_layers * local + args.hidden_size * args.num_layers * above
    return pixels * 2 * (weights + args.hidden_size * args.num_pix) + 4 * pairs


def token_summary_parameters(args: ModelArgs) -> int:
    """Weights of the summary that a pixel is multiplied with: those of its place, and the ones behind the sum."""
    if args.summary == "last":
        return 0
    return args.image.hidden_size * (args.summary_rank or args.hidden_size) + args.summary_rank * args.hidden_size


def cached_keys(args: ModelArgs, height: int, width: int, before: int) -> tuple[int, int, int]:
    """Pixels that go through the blocks when an image is drawn, and keys they see in an image and a language layer."""
    lengths = window_order(height, width, args.window_size)[1].tolist()
    local = sum(length * (length + 1) // 2 for length in lengths) - lengths[-1]
    above = sum(length * (before + n + 1) for n, length in enumerate(lengths)) - (before + len(lengths))
    return height * width - 1, local, above


class _ImageFlops(NamedTuple):
    """Operations of the image block: on the table; on windows; those inside checkpointed layers; the last product."""

    table: int
    windows: int
    inner: int
    last: int


def _image_flops(args: ModelArgs, load: Load) -> _ImageFlops:
    block, pixels, tokens = args.image, args.window_size**2, args.num_pix + 1
    rows, reads = load.windows * pixels, load.windows * load.reads
    from_table = args.image_layers > 0 and rows > tokens
    windows = inner = final = 0
    for n in range(args.image_layers):
        last, given = n == args.image_layers - 1, n == 0 and from_table
        queries = reads if last else rows
        projected = 0 if given else _project(block, queries, rows)
        attention = block.hidden_size * pixels * (4 * reads if last else 2 * rows)
        combined, final = attention + _after_attention(block, queries), _down(block, queries)
        windows += projected + combined + final
        inner += combined if last else projected + combined
    table = 2 * tokens * color_features_of(args)[0] * block.hidden_size
    table += _project(block, tokens, tokens) if from_table else 0
    behind = 2 * reads * state_parameters(args) + _summary_flops(args, load)
    return _ImageFlops(table, windows + behind, inner, final if not behind else 0)


def _summary_flops(args: ModelArgs, load: Load) -> int:
    """What embeds the colours of windows: one product, or each pixel's share and then sums for each read."""
    if args.summary == "last":
        return 0
    size = args.summary_rank or args.hidden_size
    pixels, reads = load.windows * args.window_size**2, load.windows * load.reads
    sums = 2 * args.window_size**2 * size * reads if load.reads > 1 else 0
    return 2 * pixels * args.image.hidden_size * size + sums + 2 * reads * args.summary_rank * args.hidden_size


def _element_flops(args: ModelArgs, load: Load) -> tuple[int, int]:
    """A language layer for the elements: all but its last product, and that product."""
    rows, attention = load.rows * load.elements, 2 * args.hidden_size * load.rows * load.elements**2
    return _project(args, rows, rows) + attention + _after_attention(args, rows), _down(args, rows)


def _query_flops(args: ModelArgs, load: Load) -> tuple[int, int]:
    """The same for query pixels: masked, not causal, so against every element and themselves."""
    rows = load.rows * load.queries
    attention = 4 * args.hidden_size * rows * (load.elements + 1)
    return _project(args, rows, rows) + attention + _after_attention(args, rows), _down(args, rows)


def _project(args: ModelArgs, queries: int, rows: int) -> int:
    return 2 * args.hidden_size * (queries * args.hidden_size + rows * 2 * key_width(args))


def _after_attention(args: ModelArgs, rows: int) -> int:
    """The output projection, and gate and up of the feed-forward layer."""
    return 2 * rows * args.hidden_size * (args.hidden_size + 2 * args.intermediate_size)


def _down(args: ModelArgs, rows: int) -> int:
    return 2 * rows * args.intermediate_size * args.hidden_size
