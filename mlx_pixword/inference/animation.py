"""A drawing that can be watched: every window's step, as an animated GIF that plays in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..inputs.processor import Part, Processor
from ..model.network import PixWordModel
from .draw import Drawing, draw
from .views import data_url, gif


@dataclass(frozen=True, eq=False)
class Animation:
    """A drawing, step by step; it plays in a notebook.

    Attributes:
        frames: pictures, the last one finished.
    """

    frames: tuple[Image.Image, ...]

    @property
    def image(self) -> Image.Image:
        """The finished drawing, at its own size."""
        return self.frames[-1]

    def gif(self) -> bytes:
        """The drawing as an animated GIF, enlarged if small."""
        return gif(self.frames)

    def save(self, path: str | Path) -> None:
        """Write the GIF."""
        Path(path).write_bytes(self.gif())

    def __repr__(self) -> str:
        return f"Animation({self.image.width}x{self.image.height} pixels, {len(self.frames)} frames)"

    def _repr_html_(self) -> str:
        return f"<img style='image-rendering:pixelated' src='{data_url(self.gif(), 'image/gif')}'>"


def animate(
    model: PixWordModel, processor: Processor, prompt: str | Sequence[Part] = (), size: tuple[int, int] = (32, 32),
    **options: Any,
) -> Animation:  # fmt: skip
    """Draw one image and keep every window's step; arguments as `generate_images`.

    Example:
        >>> pw.animate(model, processor, prompt="47", size=(12, 28))
    """
    drawings = draw(model, processor, prompt, size, **options)
    return Animation(tuple(picture_of(drawing, processor) for drawing in drawings))


def picture_of(drawing: Drawing, processor: Processor) -> Image.Image:
    """All images of a drawing side by side."""
    pictures = drawing.pictures(processor)
    sheet = Image.new("RGB", (drawing.width * len(pictures), drawing.height))
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (n * drawing.width, 0))
    return sheet
