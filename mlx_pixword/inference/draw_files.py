"""The drawing half of `python -m mlx_pixword.generate`: images to PNG files, a GIF of it, and words after them."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.cli import notice
from ..common.errors import PixWordError
from ..common.files import trouble
from .settings import DrawArgs, SampleArgs

if TYPE_CHECKING:
    import numpy as np

    from ..inputs.processor import Part, Processor
    from ..model.network import PixWordModel
    from .draw import Drawing


def check(args: DrawArgs, prompts: int) -> None:
    """Find the mistakes that need no model."""
    args.files(prompts)
    args.size_wanted()
    if args.complete is not None and not args.complete.is_file():
        raise PixWordError(f"--complete {args.complete}: no such file")


def draw_files(
    model: "PixWordModel", processor: "Processor", prompts: "Sequence[Sequence[Part]]", args: DrawArgs
) -> None:
    """Draw after every prompt, show progress, and write the files when all of it is done."""
    from PIL import Image
    from tqdm import tqdm

    from ..inputs.processor import tokens_of
    from .animation import picture_of
    from .draw import check_size, draw, prompt_documents
    from .views import gif, png

    if not model.pixel_queries:
        notice(
            "this model was trained without query pixels, so the drawing will be noise inside windows; "
            "train with --pixel-queries 4 or more"
        )
    size, kept, rows = _wanted(args, processor)
    check_size(model.args, size, args.count, max(map(len, prompt_documents(processor, prompts=prompts))))
    frames = list[Image.Image]()
    options = {name: getattr(args, name) for name in ("temp", "top_p", "top_k", "min_p", "seed")}
    drawings = len(prompts) * args.count
    with tqdm(total=size[0] * size[1] * drawings, unit="px", dynamic_ncols=True) as bar:
        for drawing in draw(
            model, processor, size=size, count=args.count, prompts=prompts, keep_rows=rows,
            keep=None if kept is None else tokens_of(kept, processor.args), **options,
        ):  # fmt: skip
            bar.update(drawing.pixels * drawings - bar.n)
            frames += [picture_of(drawing, processor)] if args.gif else []
    words = _words_after(model, processor, prompts, drawing, args) if args.then_words else None
    for n, (path, picture) in enumerate(zip(args.files(len(prompts)), drawing.pictures(processor), strict=True)):
        if kept is not None and rows:
            picture.paste(Image.fromarray(kept[:rows]))  # in their original colours
        _write(path, png(picture))
        print(path if words is None else f"{path}\t{words[n]}", file=sys.stdout)
    if args.gif and args.out_image is not None:
        path = args.out_image.with_suffix(".gif")
        _write(path, gif(frames))
        print(path, file=sys.stdout)


def _wanted(args: DrawArgs, processor: "Processor") -> tuple[tuple[int, int], "np.ndarray | None", int]:
    """The size of a drawing, the image to complete, uint8 ``[h, w, 3]``, and how many of its rows are kept."""
    from ..pixels.images import decode_file

    if args.complete is None:
        return args.size_wanted() or (processor.args.image_size,) * 2, None, 0
    rgb, (whole_width, whole_height), note = decode_file(args.complete, "--complete", processor.args.image_size)
    height, width = rgb.shape[:2]
    if note:
        notice(f"--complete {args.complete}: {note}")
    if (width, height) != (whole_width, whole_height):
        notice(f"{args.complete}: scaled down from {whole_width}x{whole_height} to {width}x{height}")
    rows = int(args.keep * height)
    if 0 < rows < height and rows % processor.args.window_size:
        notice(f"the cut at row {rows} falls inside windows: a drawn pixel does not see kept pixels of later windows")
    return (height, width), rgb, rows


def _words_after(
    model: "PixWordModel", processor: "Processor", prompts: "Sequence[Sequence[Part]]", drawing: "Drawing",
    args: DrawArgs,
) -> list[str]:  # fmt: skip
    """The words that follow each prompt and its drawing."""
    from .words import generate_batch

    images, sample = drawing.images(processor), {f.name: getattr(args, f.name) for f in fields(SampleArgs)}
    batch = processor.batch([[*prompts[n // args.count], image] for n, image in enumerate(images)])
    return generate_batch(model, processor, batch, **sample)


def _write(path: Path, contents: bytes) -> None:
    """Write a file; readers see the whole file or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(contents)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise trouble("write", path, error) from error
