"""Image files that a command line names, decoded and folded; what a user should know of them is said once."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..common.cli import notice
from ..common.errors import PixWordError

if TYPE_CHECKING:
    from ..inputs.processor import Processor
    from ..model.document import ImageTokens

MOST_NOTICES = 3  # lines about images that were scaled down; more are counted


class ImageFiles:
    """Reads image files for a model.

    Args:
        processor: of the model.
        box: the part of every image to show, at its own size: x, y, width, height in pixels.
    """

    def __init__(self, processor: "Processor", box: tuple[int, int, int, int] | None = None) -> None:
        self._processor, self._box, self._scaled = processor, box, 0

    def read(self, path: Path, flag: str = "--image") -> "ImageTokens":
        """Decode and fold a file; raises `PixWordError` with its name and the flag that named it."""
        from ..inputs.processor import tokens_of  # --help answers at once
        from ..pixels.images import decode_file

        args = self._processor.args
        rgb, (width, height), note = decode_file(path, flag, args.image_size, self._box)
        if note:
            notice(f"{flag} {path}: {note}")
        try:
            image = tokens_of(rgb, args)
        except PixWordError as error:
            problem = (
                f"--box {','.join(map(str, self._box))} is too large for this model: {error}" if self._box else error
            )
            raise PixWordError(f"{flag} {path}: {problem}") from error
        if self._box is None and (image.width, image.height) != (width, height):
            self._scaled += 1
            if self._scaled <= MOST_NOTICES:
                to = f"{image.width}x{image.height}"
                notice(f"{path}: scaled down from {width}x{height} to {to}; --box X,Y,W,H reads a part at its own size")
        return image

    def finish(self) -> None:
        """Say how many more images were scaled down than had a line each."""
        if self._scaled > MOST_NOTICES:
            notice(f"and {self._scaled - MOST_NOTICES} more images were scaled down")
