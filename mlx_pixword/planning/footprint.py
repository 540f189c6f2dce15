"""Bytes: what a model moves to and from memory, and what it holds there. Estimates, by counting tensors.

B  rows    L  elements of a row    U  distinct windows    P  pixels a window    Q  query pixels a row    D  hidden size
H  query heads, G  key heads    d  head size    F  feed-forward width    V  words, K  pix tokens

Moved: the tensors that the operations of `model.Layer` read and write; norms and attention are one operation each, and
nothing else is fused. Held: a formula fitted to the peaks of MLX's CPU build. No GPU has been measured.
"""

from typing import NamedTuple

from ..model.args import (
    ModelArgs,
    hidden_parameters,
    key_width,
    matrix_parameters,
    parameters,
    state_parameters,
    summary_parameters,
)
from .chips import Work
from .costs import Load, cached_keys, drawing_flops, muon_flops, token_summary_parameters, training_flops

SCORE_PASSES = 10  # over the scores of windows and rows in the backward pass; the forward pass keeps them on the chip
CONDITIONAL_PASSES = 10  # over the float32 scores of query pixels, which no kernel fuses
LAYER_KERNELS = 50  # started by the forward pass of a layer
TOKEN_STEP_KERNELS = 15  # started by a layer for one token step, see inference/token_layers.py
PIXEL_KERNELS = 10  # started besides the layers to choose a pixel
STEP_KERNELS = 100  # started by the optimiser for the weights of a layer


class Memory(NamedTuple):
    """Bytes held in training."""

    weights: int
    gradients: int
    optimizer: int
    activations: int


def element_bytes(args: ModelArgs) -> int:
    """Bytes of a number of the compute type on a GPU, where ``auto`` is bfloat16."""
    return 4 if args.dtype == "float32" else 2


# --- moved ------------------------------------------------------------------------------------------------------------


def training_work(args: ModelArgs, load: Load) -> Work:
    """Forward and backward pass of a micro-batch: forward work 3 times, once more for each way it is computed again."""
    again = int(load.recompute)
    image_passes, passes = 4 if load.chunks > 1 else 3 + again, 3 + again
    joined = _cast(args, state_parameters(args) + summary_parameters(args))
    image_weights = joined + _weight_bytes(args.image, args.image_layers)
    image = image_passes * (_image_bytes(args, load) + load.chunks * image_weights)
    language = passes * (_language_bytes(args, load) + _weight_bytes(args, args.num_layers))
    head = 3 * _head_bytes(args, load.rows * (load.elements + load.queries))
    pairs = args.image.num_heads * args.image_layers * load.windows * args.window_size**4
    pairs += args.num_heads * args.num_layers * load.rows * load.elements**2
    scores = SCORE_PASSES * element_bytes(args) * pairs
    layers = image_passes * load.chunks * args.image_layers + passes * args.num_layers * (2 if load.queries else 1)
    return Work(training_flops(args, load), image + language + head + scores, LAYER_KERNELS * layers)


def optimizer_work(args: ModelArgs, muon: bool, accumulate: int) -> Work:
    """A step: micro-batches added up, the norm, clipping, and AdamW or, for the projections, Muon; all in float32."""
    hidden = hidden_parameters(args)
    passes = 3 * (accumulate - 1) + 3  # add: two read, one written; norm: one read; clip: one read, one written
    adamw, rest = 7, parameters(args) - hidden  # gradient, weight, two moments read, all but the gradient written
    traffic = passes * parameters(args) + adamw * rest + (5 if muon else adamw) * hidden  # one moment
    return Work(muon_flops(args) if muon else 0, 4 * traffic, STEP_KERNELS * (args.image_layers + args.num_layers))


def drawing_work(args: ModelArgs, height: int, width: int, before: int, count: int) -> Work:
    """``count`` images drawn at once: weights are read once a pixel for all of them, caches for each."""
    pixels, local, above = cached_keys(args, height, width, before)
    layers, size = args.image_layers + args.num_layers, element_bytes(args)
    weights = hidden_parameters(args) + token_summary_parameters(args) + args.num_pix * args.hidden_size
    rows = args.image_layers * layer_bytes(args.image, 1, 1) + args.num_layers * layer_bytes(args, 1, 1)
    caches = key_width(args.image) * args.image_layers * local + key_width(args) * args.num_layers * above
    kernels = pixels * (TOKEN_STEP_KERNELS * layers + PIXEL_KERNELS)
    return Work(
        count * drawing_flops(args, height, width, before),
        pixels * (size * weights + count * rows) + 2 * size * count * caches,
        kernels,
    )


def layer_bytes(args: ModelArgs, rows: int, queries: int) -> int:
    """Activations of a layer forward: keys come from ``rows`` states, queries and outputs are ``queries``."""
    size, keys, wide = args.hidden_size, key_width(args), element_bytes(args) == 4
    norm, rope = (8, 36) if wide else (20, 48)  # bytes a number; both go through float32
    total = rows * (norm * size + rope * keys) + queries * (norm + rope) * size
    total += element_bytes(args) * rows * (2 * size + 4 * keys)  # keys and values
    total += element_bytes(args) * queries * (17 * size + 11 * args.intermediate_size)
    return total + (2 * element_bytes(args) * (queries * size + rows * keys) if args.qk_norm else 0)


def _image_bytes(args: ModelArgs, load: Load) -> int:
    rows, reads = load.windows * args.window_size**2, load.windows * load.reads
    whole, block = max(0, args.image_layers - 1), args.image
    total = whole * layer_bytes(block, rows, rows) + (layer_bytes(block, rows, reads) if args.image_layers else 0)
    if state_parameters(args):
        total += element_bytes(args) * reads * (block.hidden_size + args.hidden_size)
    return total + _summary_bytes(args, rows, reads, load.reads > 1)


def _summary_bytes(args: ModelArgs, rows: int, reads: int, shares: bool) -> int:
    """What the summary reads and writes: embeddings, shares of pixels where several are read, and sums."""
    if args.summary == "last":
        return 0
    size = args.summary_rank or args.hidden_size
    numbers = 3 * rows * args.image.hidden_size + (2 * rows * size if shares else 0)
    return element_bytes(args) * (numbers + reads * (size + 3 * args.hidden_size))


def _language_bytes(args: ModelArgs, load: Load) -> int:
    rows, queries = load.rows * load.elements, load.rows * load.queries
    scores = CONDITIONAL_PASSES * 4 * args.num_heads * queries * load.elements
    return args.num_layers * (layer_bytes(args, rows, rows) + layer_bytes(args, queries, queries) + scores)


def _head_bytes(args: ModelArgs, outputs: int) -> int:
    """Logits: written, cast to float32 and read by the softmax; and the table."""
    classes = args.vocab_size + args.num_pix
    return outputs * classes * (2 * element_bytes(args) + 8) + _cast(args, classes * args.hidden_size)


def _weight_bytes(args: ModelArgs, layers: int) -> int:
    return _cast(args, layers * matrix_parameters(args))


def _cast(args: ModelArgs, numbers: int) -> int:
    """Bytes to use float32 weights: read, and in a half type written and read again."""
    return numbers * (4 if element_bytes(args) == 4 else 4 + 2 + 2)


# --- held -------------------------------------------------------------------------------------------------------------


def training_memory(args: ModelArgs, load: Load, muon: bool, accumulate: int) -> Memory:
    """Bytes held at the peak of a step."""
    total, hidden = parameters(args), hidden_parameters(args)
    moments = 2 * (total - hidden) + (1 if muon else 2) * hidden
    return Memory(4 * total, 4 * total * (2 if accumulate > 1 else 1), 4 * moments, activations(args, load))


def activations(args: ModelArgs, load: Load) -> int:
    """Bytes of activations at the peak of a backward pass: all that is kept, and the block with more work in progress.

    Of chunks of windows one is held at a time, and its layers are not checkpointed.
    """
    size, pixels, chunked = args.image.hidden_size, args.window_size**2, load.chunks > 1
    windows, rows, queries = (
        load.chunk if chunked else load.windows,
        load.rows * load.elements,
        load.rows * load.queries,
    )
    recompute = load.recompute and not chunked
    image = (
        _held(args.image, windows * pixels, pixels, args.image_layers - 1, recompute) if args.image_layers else (0, 0)
    )
    image = image[0] + _summary_held(args, windows, load.reads), image[1]
    elements = _held(args, rows, load.elements, args.num_layers, load.recompute)
    of_queries = _held(args, queries, load.elements, args.num_layers, load.recompute)
    masked = 4 * queries * args.num_heads * load.elements  # scores, mask and shares of the conditional attention
    kept, work = elements[0] + of_queries[0], elements[1] + of_queries[1] + masked
    held = (
        max(sum(image) + 12 * size * windows * pixels, kept + work)
        if chunked
        else image[0] + kept + max(image[1], work)
    )
    number = 4 if element_bytes(args) == 4 else 2.4  # a half type, and the float32 copies of norms and rotations
    return int(number * held) + 8 * (rows + queries) * (args.vocab_size + args.num_pix)  # logits and their gradients


def _summary_held(args: ModelArgs, windows: int, reads: int) -> int:
    """Numbers that the summary keeps: embeddings by place, shares of pixels where several are read, and sums."""
    if args.summary == "last":
        return 0
    size, pixels = args.summary_rank or args.hidden_size, args.window_size**2
    return windows * (2 * pixels * args.image.hidden_size + (pixels * size if reads > 1 else 0) + reads * size)


def _held(args: ModelArgs, rows: int, keys: int, layers: int, recompute: bool) -> tuple[int, int]:
    """Numbers kept for the backward pass by ``layers``, and in progress in one; each row has ``keys`` scores a head."""
    size, width, scores = args.hidden_size, args.intermediate_size, args.num_heads * keys
    if recompute:
        return rows * 4 * (layers + 1) * size, rows * (21 * size + 12 * width + 3 * scores)
    return rows * layers * (11 * size + 5 * width + scores), rows * (11 * size + 2 * width + 2 * scores)
