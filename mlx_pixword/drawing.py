"""Drawing: images sampled pixel by pixel, in window order, with two levels of cache.

N  images at once    T  pixels of an image    K  pix tokens    h, w  size in pixels

A pixel costs one row through each block: the image block keeps the open window's keys and values, and the language
block those of words and finished windows, to which an open window is added for a moment and taken off again.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from .args import ModelArgs
from .batch import IMAGE, Document, ImageTokens, collate
from .colors import unfold_colors
from .errors import PixWordError
from .model import PixWordModel
from .processor import Part, Processor
from .sampling import SampleArgs
from .windows import from_windows, num_windows, valid_pixels, window_order

DRAW = -1  # stands for a pixel that is drawn, among forced ones
UNDRAWN = (128, 128, 128)  # colour of pixels that are still to come


@dataclass(frozen=True, eq=False)
class Drawing:
    """Images under way: pix tokens int32 ``[N, windows, P]``, ``DRAW`` where nothing is drawn yet."""

    tokens: np.ndarray
    height: int
    width: int
    pixels: int  # finished pixels of each image

    def images(self, processor: Processor) -> list[ImageTokens]:
        """The images as the model takes them; all pixels must be drawn."""
        args = processor.args
        lengths = window_order(self.height, self.width, args.window_size)[1]
        padded = np.where(valid_pixels(lengths, args.window_size), self.tokens, args.num_pix).astype(np.int32)
        return [ImageTokens(windows, lengths, self.height, self.width) for windows in padded]

    def pictures(self, processor: Processor) -> list[Image.Image]:
        """The images to look at; pixels still to come are grey."""
        args, pictures = processor.args, []
        for windows in self.tokens:
            tokens = from_windows(windows, self.height, self.width, args.window_size)
            rgb = unfold_colors(np.maximum(tokens, 0), args.fold_factor)
            rgb[tokens == DRAW] = UNDRAWN
            pictures.append(Image.fromarray(rgb))
        return pictures


def generate_image(
    model: PixWordModel, processor: Processor, prompt: str | Sequence[Part] = (), size: tuple[int, int] = (32, 32),
    **options: Any,
) -> Image.Image:  # fmt: skip
    """Draw one image; arguments as `generate_images`.

    Example:
        >>> image = pw.generate_image(model, processor, prompt="47", size=(12, 28), seed=1)
        >>> pw.generate_text(model, processor, ["47", image])      # and words after it
    """
    return generate_images(model, processor, prompt, size, 1, **options)[0]


def generate_images(
    model: PixWordModel, processor: Processor, prompt: str | Sequence[Part] = (), size: tuple[int, int] = (32, 32),
    count: int = 1, **options: Any,
) -> list[Image.Image]:  # fmt: skip
    """Draw images after a prompt, all at once.

    Args:
        model, processor: from `pw.load`; a model trained without drawn pixels draws noise.
        prompt: a text, or texts, images and word ids in reading order.
        size: ``(height, width)`` in pixels.
        count: ``N``. Image ``i`` draws with the key ``seed + i``, so their number changes nothing.
        options: temp (default 1), top_p, top_k, min_p and seed of `SampleArgs`; ``keep``, see `draw`.

    Raises:
        PixWordError: a size that is not positive or does not fit the sequence, or probabilities that are not finite.
    """
    return deque(draw(model, processor, prompt, size, count, **options), maxlen=1).pop().pictures(processor)


def draw(
    model: PixWordModel, processor: Processor, prompt: str | Sequence[Part] = (), size: tuple[int, int] = (32, 32),
    count: int = 1, *, keep: ImageTokens | None = None, keep_rows: int = 0, **options: Any,
) -> Iterator[Drawing]:  # fmt: skip
    """Draw window by window; arguments as `generate_images`.

    Args:
        keep: an image of this size whose first ``keep_rows`` rows are not drawn but forced at their turn. Where the
            last kept row falls inside a window, a drawn pixel does not see kept pixels of later windows.

    Yields:
        The state of the drawing after each window.
    """
    args, (height, width) = model.args, size
    sample = SampleArgs(**options)
    document = prompt_document(processor, prompt)
    check_size(args, size, count, len(document))
    lengths = window_order(height, width, args.window_size)[1]
    forced = _forced(keep, keep_rows, height, width, args.window_size)
    tokens = np.full((count, len(lengths), args.window_size**2), DRAW, np.int32)
    choose, pen, drawn = _chooser(sample, count, height * width), _Pen(model, document, count), 0
    for n, length in enumerate(lengths.tolist()):
        window: list[mx.array] = []
        for j in range(length):
            is_forced = forced[n, j] != DRAW
            window.append(mx.full((count,), int(forced[n, j])) if is_forced else choose(pen.logits, drawn + j))
            if n + 1 < len(lengths) or j + 1 < length:
                pen.put(window[-1], j, closes=j + 1 == length)
        tokens[:, n, :length] = np.array(mx.stack(window, axis=1))
        pen.check()
        drawn += length
        yield Drawing(tokens.copy(), height, width, drawn)


class _Pen:
    """The caches of ``N`` images under way, and the logits of each one's next pixel, float32 ``[N, K]``."""

    def __init__(self, model: PixWordModel, document: Document, count: int) -> None:
        from mlx_lm.models.cache import KVCache  # mlx-lm takes over a second to import

        args = model.args
        self._model, self._new_cache = model, KVCache
        self._sequence = [KVCache() for _ in model.layers]
        self._window: list[Any] = []
        self._embeddings, self._head = model.image_block.embed_pixels(), model.head()[args.vocab_size :]
        batch = collate([[document]] * count, args.vocab_size, args.num_pix, args.window_size, exact=True)
        x = model.embed(batch, model.window_states(batch)[:, 0])
        self._set_logits(model.language(x, batch.positions, "causal", self._sequence)[:, -1])

    def put(self, tokens: mx.array, offset: int, *, closes: bool) -> None:
        """Add a pixel ``[N]`` at an offset of the open window; the pixel that closes it commits it to the sequence."""
        if offset == 0:
            self._window = [self._new_cache() for _ in self._model.image_block.layers]
        state = self._model.image_block.step(self._embeddings[tokens], offset, self._window)  # [N, 1, D]
        place = mx.full((len(tokens), 1), self._sequence[0].offset)
        self._set_logits(self._model.language(state, place, None, self._sequence)[:, 0])
        if not closes:
            for cache in self._sequence:
                cache.trim(1)

    def _set_logits(self, x: mx.array) -> None:
        self.logits = (x @ self._head.astype(x.dtype).T).astype(mx.float32)

    def check(self) -> None:
        """Raise `PixWordError` if the probabilities are not finite."""
        if not mx.all(mx.isfinite(self.logits)).item():
            raise PixWordError("the model gives probabilities that are not finite; its weights are damaged")


def prompt_document(processor: Processor, prompt: str | Sequence[Part]) -> Document:
    """``<s>``, the prompt and ``<|image|>``."""
    parts = ([prompt] if prompt else []) if isinstance(prompt, str) else list(prompt)
    return processor.document([*parts, [IMAGE]])


def check_size(args: ModelArgs, size: tuple[int, int], count: int, before: int = 2) -> None:
    """Raise `PixWordError` unless ``size`` (height, width) is positive and fits behind ``before`` elements."""
    if count < 1 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in size):
        raise PixWordError(f"a size and a count must be positive integers, got {size[1]}x{size[0]} and {count}")
    windows = num_windows(*size, args.window_size)
    if before + windows + 1 > args.max_seq_len:
        raise PixWordError(
            f"a {size[1]}x{size[0]} image has {windows} windows, the prompt {before} elements and the sequence room "
            f"for {args.max_seq_len - 1}; draw a smaller image"
        )


def _forced(keep: ImageTokens | None, rows: int, height: int, width: int, window_size: int) -> np.ndarray:
    """Pix tokens that are not drawn, ``[windows, P]`` in window order; ``DRAW`` elsewhere."""
    order, lengths = window_order(height, width, window_size)
    valid = valid_pixels(lengths, window_size)
    forced = np.full(valid.shape, DRAW, np.int32)
    if keep is not None:
        if (keep.height, keep.width) != (height, width):
            raise PixWordError(f"the image to complete is {keep.width}x{keep.height}, the drawing {width}x{height}")
        forced[valid] = np.where(order // width < rows, keep.windows[valid], DRAW)
    return forced


def _chooser(args: SampleArgs, count: int, pixels: int) -> Callable[[mx.array, int], mx.array]:
    """``choose(logits [N, K], pixel number) -> tokens [N]``, each image with the keys of its own seed."""
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    temperature = args.temperature(1.0)
    keys = mx.stack([mx.random.split(mx.random.key(args.seed + n), pixels) for n in range(count)])  # [N, T, 2]

    def choose(logits: mx.array, number: int) -> mx.array:
        if temperature == 0:
            return mx.argmax(logits, axis=-1)
        scores = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        scores = apply_top_p(scores, args.top_p) if args.top_p < 1 else scores
        scores = apply_min_p(scores, args.min_p) if args.min_p > 0 else scores
        scores = apply_top_k(scores, args.top_k) if 0 < args.top_k < logits.shape[-1] else scores
        noise = mx.vmap(lambda key: mx.random.gumbel(logits.shape[1:], key=key))(keys[:, number])
        return mx.argmax(scores / temperature + noise, axis=-1)

    return choose
