"""From what a person has (texts, images, word ids) to what the model takes, and back."""

from collections.abc import Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from PIL import Image

from ..common.errors import PixWordError
from ..model.args import ModelArgs
from ..model.batch import Batch, collate
from ..model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document
from ..ops.fold import fold_windows
from ..pixels.colors import fold_colors, unfold_colors
from ..pixels.images import fit_rgb
from ..pixels.windows import from_windows, num_windows, to_windows, window_order
from .tokenizer import Tokenizer

Part: TypeAlias = "str | Image.Image | np.ndarray | mx.array | ImageTokens | Sequence[int]"


class Processor:
    """Turns parts (text, PIL image or uint8 array, word ids) into a `Batch`.

    Args:
        args: the model's shape: fold factor, image size, window size, V.
        tokenizer: words, or None for a model without text (word ids still work).

    Example:
        >>> model, processor = pw.load("runs/plates/final")
        >>> batch = processor(["What does it say?", Image.open("plate.png")])
        >>> batch = processor([[1, 7, 4], image, [5, 9]], special_words=False)
    """

    def __init__(self, args: ModelArgs, tokenizer: Tokenizer | None = None) -> None:
        if tokenizer is not None and tokenizer.vocab_size != args.vocab_size:
            raise PixWordError(
                f"the tokenizer has {tokenizer.vocab_size} words but the model {args.vocab_size}; "
                "use the tokenizer that the model was trained with"
            )
        self.args, self.tokenizer = args, tokenizer

    def __call__(self, parts: Sequence[Part], *, special_words: bool = True) -> Batch:
        """One document as a batch of one row; see `document`."""
        return self.batch([parts], special_words=special_words)

    def batch(self, documents: Sequence[Sequence[Part]], *, special_words: bool = True) -> Batch:
        """Several documents, one a row, right-padded; each gets the logits it gets alone."""
        if not documents:
            raise PixWordError("a batch needs at least one document, got none")
        rows = [[self.document(parts, special_words=special_words)] for parts in documents]
        return collate(rows, self.args, exact=True)

    def document(self, parts: Sequence[Part], *, special_words: bool = True, closed: bool = False) -> Document:
        """Join parts into a document.

        Args:
            parts: texts, images (PIL, uint8 ``[h, w, 3]``, or `ImageTokens`) and sequences of word ids, in order.
            special_words: put in ``<s>`` first and ``<|image|> .. <|/image|>`` around every image.
            closed: make ``</s>`` the last target, as in training.

        Raises:
            PixWordError: no parts, a text without a tokenizer, an id outside ``0..V-1``, or too many elements.
        """
        if isinstance(parts, str | Image.Image) or not len(parts):
            raise PixWordError(f"a document is a list of texts, images and word ids, got {parts!r}")
        pieces: list[Sequence[int] | ImageTokens] = [[BOS]] if special_words else []
        for part in parts:
            piece = self._piece(part)
            marked = special_words and isinstance(piece, ImageTokens)
            pieces += [[IMAGE], piece, [END_IMAGE]] if marked else [piece]
        document = make_document(pieces, closed=closed)
        if not len(document):
            raise PixWordError("the document has no elements; give at least one word or image")
        if len(document) > self.args.max_seq_len and not closed:
            raise PixWordError(
                f"the document has {len(document)} elements, the model takes {self.args.max_seq_len}; shorten it"
            )
        return document

    def _piece(self, part: Part) -> Sequence[int] | ImageTokens:
        if isinstance(part, str):
            if self.tokenizer is None:
                raise PixWordError("this model has no tokenizer, so it takes no text; give word ids or images")
            return self.tokenizer.encode(part)
        if isinstance(part, ImageTokens):
            return part
        if isinstance(part, Image.Image) or (isinstance(part, np.ndarray | mx.array) and part.ndim > 1):
            return self.image(part)
        try:
            ids = [int(i) for i in part]
        except TypeError as error:
            raise PixWordError(f"a part is a text, an image or a list of word ids, got {part!r}") from error
        if wrong := [i for i in ids if not 0 <= i < self.args.vocab_size]:
            raise PixWordError(f"word ids must lie in 0..{self.args.vocab_size - 1}, got {wrong[0]}")
        return ids

    def image(self, image: "Image.Image | np.ndarray | mx.array") -> ImageTokens:
        """Fold one image: PIL, or uint8 ``[h, w, 3]``; scaled down to the model's image size if larger.

        An array of MLX that is small enough is folded on its device.
        """
        if isinstance(image, np.ndarray | mx.array) and not _is_rgb(image):
            raise PixWordError(f"an image must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
        if isinstance(image, mx.array):
            if max(image.shape[:2]) <= self.args.image_size:
                return _tokens_on_device(image, self.args)
            image = np.array(image)
        rgb = fit_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image, self.args.image_size)
        return tokens_of(rgb, self.args)

    def picture(self, image: ImageTokens) -> Image.Image:
        """The image as the model sees it: folded colours, in the centre of their bins."""
        tokens = from_windows(image.windows, image.height, image.width, self.args.window_size)
        return Image.fromarray(unfold_colors(tokens, self.args.fold_factor))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of word ids; without a tokenizer, the ids themselves."""
        return self.tokenizer.decode(ids) if self.tokenizer else " ".join(str(int(i)) for i in ids)

    def __repr__(self) -> str:
        a = self.args
        words = f"{a.vocab_size} words" if self.tokenizer else "no tokenizer"
        windows = f"windows {a.window_size}x{a.window_size}"
        return f"Processor({words}, images to {a.image_size} px, {windows}, fold {a.fold_factor})"


def _is_rgb(array: np.ndarray | mx.array) -> bool:
    kind = mx.uint8 if isinstance(array, mx.array) else np.uint8
    return array.dtype == kind and array.ndim == 3 and array.shape[2] == 3


def tokens_of(rgb: np.ndarray, args: ModelArgs) -> ImageTokens:
    """Fold a fitted image, uint8 ``[h, w, 3]``, into windows; it must leave room for three words in a sequence."""
    height, width = rgb.shape[:2]
    count = num_windows(height, width, args.window_size)
    if count + 3 > args.max_seq_len:
        raise PixWordError(
            f"a {width}x{height} image has {count} windows of side {args.window_size} and the sequence holds "
            f"{args.max_seq_len - 3}; use larger windows, a smaller image size or a longer max_seq_len"
        )
    return ImageTokens(*to_windows(fold_colors(rgb, args.fold_factor), args.window_size, args.num_pix), height, width)


def _tokens_on_device(rgb: mx.array, args: ModelArgs) -> ImageTokens:
    """The same for an array of MLX no larger than the model's image size, which a sequence has room for."""
    height, width, _ = rgb.shape
    windows = np.array(fold_windows(rgb, args.fold_factor, args.window_size))
    return ImageTokens(windows, window_order(height, width, args.window_size)[1], height, width)
