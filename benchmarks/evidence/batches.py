"""From crops to batches of an arm: the same crops in the same order for every arm, with seeded augmentation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_pixword.data.text_file import TextFile
from mlx_pixword.inputs.processor import tokens_of
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.batch import Batch, collate
from mlx_pixword.model.document import BOS, END_IMAGE, IMAGE, Document, ImageTokens, make_document

from .arms import Arm
from .characters import CharacterTokenizer
from .fronts import ImageBatch, with_images

TRIM = 2  # pixels that augmentation may cut from a margin, which changes the phase within the windows
WINDOW = 4  # side, in pixels, at which crops are compared in size
SHIFT = 8  # levels by which augmentation may make a crop lighter or darker


def document_of(arm: Arm, args: ModelArgs, pixels: np.ndarray, text: str | None) -> Document:
    """``<s> <|image|> .. <|/image|> text </s>`` of a crop uint8 ``[height, width, 3]``; without text, as it is read."""
    if arm.upsample > 1:
        size = (pixels.shape[1] * arm.upsample, pixels.shape[0] * arm.upsample)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    words = [] if text is None else CharacterTokenizer().encode(text)
    parts: list[Sequence[int] | ImageTokens] = [[BOS, IMAGE], tokens_of(pixels, args), [END_IMAGE, *words]]
    return make_document(parts, closed=text is not None)


def documents_of(arm: Arm, args: ModelArgs, crops: TextFile, chosen: Iterable[int]) -> list[Document]:
    """Documents of chosen crops of a file, with what they say."""
    return [document_of(arm, args, crops.crop(n), crops.text(n)) for n in chosen]


def batch_of(
    arm: Arm, args: ModelArgs, documents: Sequence[Document], seed: Sequence[int] = (0,), *, words: bool = False
) -> Batch:
    """One row a document.

    Args:
        arm, args: what it is for.
        documents: the rows.
        seed: of the query pixels.
        words: predict words alone, as arms whose objective that is do anyway: of the last layer little is needed then.
    """
    words = words or not arm.is_pixel or arm.objective == "words"
    queries = 0 if words else arm.pixel_queries
    if not arm.sees_images:
        rows = [[d] for d in documents]
        return collate(rows, args, exact=True, boundary=not words, pixel_queries=queries, seed=seed)
    placed, images = with_images(list(documents), args.window_size)
    plain = collate([[d] for d in placed], args, exact=True, boundary=False)
    return ImageBatch(**{f.name: getattr(plain, f.name) for f in fields(plain)}, images=mx.array(images))


@dataclass(frozen=True)
class Order:
    """Which crops a run sees: a pure function of (seed, step), the same for every arm.

    Crops come in groups that are drawn at random and cut by size into steps, so that little is padding. The first half
    of the crops has all faces, heights, colours and lengths; the second goes from one plain face to that, and is seen
    in its order while the curriculum lasts.

    Attributes:
        sizes: ``[n]``, elements of each crop, of which steps get similar ones.
        batch: crops a step.
        curriculum: crops that are seen of the second half, at the start.
        seed: of the run.
        group: steps that are cut from one draw.
        labels: the crops are some first ones, and all are drawn.
    """

    sizes: np.ndarray
    batch: int
    curriculum: int
    seed: int
    group: int = 51
    labels: bool = False

    def crops(self, step: int) -> np.ndarray:
        """Indices of a step's crops."""
        number, place = divmod(step, self.group)
        rng = np.random.default_rng((self.seed, 1, number))
        usable = self._usable(number * self.group * self.batch)
        drawn = rng.choice(usable, self.group * self.batch, replace=len(usable) < self.group * self.batch)
        drawn = drawn[np.argsort(self.sizes[drawn], kind="stable")]
        return drawn.reshape(self.group, self.batch)[rng.permutation(self.group)[place]]

    def _usable(self, seen: int) -> np.ndarray:
        """Crops to draw from after so many were seen: an eighth of the second half, or the first half."""
        half = max(1, len(self.sizes) // 2)
        if not self.curriculum:
            return np.arange(len(self.sizes) if self.labels else half)
        if seen >= self.curriculum:
            return np.arange(half)
        share = self.share(seen + self.group * self.batch)
        end = half + max(1, round((len(self.sizes) - half) * share))
        return np.arange(max(half, end - max(1, half // 8)), end)

    def share(self, seen: int) -> float:
        """How far the curriculum has come after so many crops: 0 to 1."""
        return min(1.0, seen / self.curriculum) if self.curriculum else 1.0


def order_of(crops: TextFile, batch: int, curriculum: int, seed: int, labels: int = 0) -> Order:
    """The order over a file of crops; of its first ``labels`` alone, where that is positive."""
    count = min(labels, len(crops)) if labels else len(crops)
    return Order(crop_sizes(crops, count), batch, curriculum, seed, labels=labels > 0)


def crop_sizes(crops: TextFile, count: int) -> np.ndarray:
    """Windows and characters of the first crops, at the window side that most arms have."""
    sides = np.array([crops.crop(n).shape[:2] for n in range(count)])
    return np.prod(-(-sides // WINDOW), axis=1) + crops.columns["characters"][:count]


def augmented(pixels: np.ndarray, left: float, top: float, rng: np.random.Generator) -> np.ndarray:
    """A crop with some of its left and upper margin cut off, lighter or darker by some levels."""
    x, y = (int(rng.integers(0, 1 + max(0, min(TRIM, int(margin) - 1)))) for margin in (left, top))
    shifted = pixels[y:, x:].astype(np.int16) + int(rng.integers(-SHIFT, SHIFT + 1))
    return shifted.clip(0, 255).astype(np.uint8)
