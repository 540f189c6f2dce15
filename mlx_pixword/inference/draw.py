"""Drawing: images sampled pixel by pixel, in window order, several at once.

B  rows: images at once    T  valid pixels of an image    P  pixels a window    K  pix tokens

A pixel costs one token step through each block, see growing_images.py. Whole windows that are kept are read with
the prompt.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..common.errors import PixWordError
from ..common.threads import outlive_this_thread
from ..inputs.processor import Part, Processor
from ..model.args import ModelArgs
from ..model.document import IMAGE, WINDOW, Document, ImageTokens
from ..model.network import PixWordModel
from ..pixels.colors import unfold_colors
from ..pixels.windows import from_windows, num_windows, valid_pixels, window_order
from .growing_images import GrowingImages
from .pixel_sampler import AHEAD, PixelSampler
from .settings import SampleArgs
from .token_caches import Array

DRAW = -1  # stands for a pixel that is drawn, among forced ones
UNDRAWN = (128, 128, 128)  # colour of pixels that are still to come


@dataclass(frozen=True, eq=False)
class Drawing:
    """Images under way: pix tokens int32 ``[B, windows, P]``, ``DRAW`` where nothing is drawn yet."""

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
    """Draw images after a prompt, or after several, all at once.

    Args:
        model, processor: from `pw.load`; a model trained without query pixels draws noise.
        prompt: a text, or texts, images and word ids in reading order.
        size: ``(height, width)`` in pixels.
        count: images a prompt. Image ``i`` draws with the key ``seed + i``, so what is drawn beside it changes nothing.
        options: ``prompts``, several prompts of any lengths in place of one; images come prompt by prompt. temp
            (default 1), top_p, top_k, min_p and seed of `SampleArgs`. ``keep`` and ``keep_rows``, see `draw`.

    Raises:
        PixWordError: a size that is not positive or does not fit the sequence, or probabilities that are not finite.

    Example:
        >>> images = pw.generate_images(model, processor, prompts=["47", "B 2093"], size=(12, 28))
    """
    return deque(draw(model, processor, prompt, size, count, **options), maxlen=1).pop().pictures(processor)


def require_pixels(model: PixWordModel) -> None:
    """Raise `PixWordError` for a model that never learnt to predict pixels."""
    if model.words_only:
        raise PixWordError(
            "this model was trained to read alone and predicts no pixels, so it cannot draw; name another with "
            "--model, or train one with --pixel-queries 3"
        )


def draw(
    model: PixWordModel, processor: Processor, prompt: str | Sequence[Part] = (), size: tuple[int, int] = (32, 32),
    count: int = 1, *, prompts: Sequence[str | Sequence[Part]] | None = None, keep: ImageTokens | None = None,
    keep_rows: int = 0, **options: Any,
) -> Iterator[Drawing]:  # fmt: skip
    """Draw window by window; arguments as `generate_images`.

    Args:
        keep: an image of this size whose first ``keep_rows`` rows are not drawn but forced at their turn. Where the
            last kept row falls inside a window, a drawn pixel does not see kept pixels of later windows.

    Yields:
        The state of the drawing: after the windows that are kept from the start, if any, and after each later one.
    """
    require_pixels(model)
    args, (height, width) = model.args, size
    documents = prompt_documents(processor, prompt, prompts)
    check_size(args, size, count, max(map(len, documents)))
    lengths = window_order(height, width, args.window_size)[1].tolist()
    forced = _forced(keep, keep_rows, height, width, args.window_size)
    read = _whole_windows(forced, lengths)
    tokens = np.full((len(documents) * count, *forced.shape), DRAW, np.int32)
    tokens[:, :read], drawn = forced[:read], sum(lengths[:read])
    outlive_this_thread()
    sampler = PixelSampler(SampleArgs(**options), len(tokens), height * width)
    if read and keep is not None:
        yield Drawing(tokens.copy(), height, width, drawn)
        documents = [_with_windows(document, keep, read) for document in documents]
    if read == len(lengths):
        return
    prompts_of_all = [document for document in documents for _ in range(count)]
    decoder = GrowingImages(model, prompts_of_all, lengths[read:], size=size)
    for n, window in enumerate(_windows(decoder, sampler, forced[read:], lengths[read:], drawn), read):
        tokens[:, n, : len(window)] = np.stack([np.array(pixels) for pixels in window], axis=1)
        drawn += len(window)
        yield Drawing(tokens.copy(), height, width, drawn)


def _windows(
    decoder: GrowingImages, sampler: PixelSampler, forced: np.ndarray, lengths: Sequence[int], drawn: int
) -> Iterator[list[Array]]:
    """Pixels ``[B]`` of each window; ``drawn`` is the number of the first.

    Blocks of `AHEAD` pixels are handed to the device. It is waited for a block only when the next one is under way, so
    that it never stands still, and no more than two blocks lie in memory.
    """
    last, block = drawn + sum(lengths), deque[Array]()  # the ends of blocks under way
    closed: deque[tuple[int, list[Array], Array]] = deque()  # windows under way: what is drawn, pixels, logits behind
    for pixels, length in zip(forced, lengths, strict=True):
        window: list[Array] = []
        for pixel in pixels[:length].tolist():
            window.append(sampler(decoder.logits, drawn) if pixel == DRAW else decoder.same_for_all(pixel))
            drawn += 1
            if drawn < last:
                decoder.put(window[-1])
            if drawn % AHEAD == 0:
                block.append((drawn, window[-1], decoder.logits))
                mx.async_eval(*block[-1][1:])
                if len(block) > 1:
                    ready, *arrays = block.popleft()
                    mx.eval(*arrays)
                    while closed and closed[0][0] <= ready:
                        yield _checked(decoder, *closed.popleft()[1:])
        closed.append((drawn, window, decoder.logits))
    for _, window, logits in closed:
        yield _checked(decoder, window, logits)


def _checked(decoder: GrowingImages, window: list[Array], logits: Array) -> list[Array]:
    """The window, if the probabilities behind it are finite; waits for it."""
    decoder.check(logits)
    return window


def prompt_documents(
    processor: Processor, prompt: str | Sequence[Part] = (), prompts: Sequence[str | Sequence[Part]] | None = None
) -> list[Document]:
    """``<s>``, a prompt and ``<|image|>`` each; raises `PixWordError` for no prompts, or for one and several."""
    if prompts is not None and (isinstance(prompts, str) or not len(prompts) or len(prompt)):
        raise PixWordError(f"give one prompt, or a list of at least one as prompts, got {prompt!r} and {prompts!r}")
    every = [prompt] if prompts is None else prompts
    parts = [([one] if one else []) if isinstance(one, str) else list(one) for one in every]
    return [processor.document([*some, [IMAGE]]) for some in parts]


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


def _whole_windows(forced: np.ndarray, lengths: Sequence[int]) -> int:
    """How many windows at the start are forced as a whole."""
    whole = [(forced[n, :length] != DRAW).all() for n, length in enumerate(lengths)]
    return whole.index(False) if False in whole else len(whole)


def _with_windows(document: Document, image: ImageTokens, count: int) -> Document:
    """A document followed by the first windows of an image."""
    first = replace(image, windows=image.windows[:count], lengths=image.lengths[:count])
    elements = np.append(document.elements, np.full(count, WINDOW, np.int32))
    return Document(elements, (*document.images, first))
