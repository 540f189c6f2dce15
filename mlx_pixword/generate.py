"""`python -m mlx_pixword.generate`: read images, or draw them. Results on standard output, speed on standard error."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common.cli import parse, run_command
from .common.errors import PixWordError
from .inference.draw_files import check, draw_files
from .inference.settings import END_MARK, MARK, GenerateArgs

if TYPE_CHECKING:
    from .inference.read import Reading
    from .inputs.processor import Part, Processor
    from .model.document import ImageTokens
    from .model.network import PixWordModel

BATCH = 32  # images read together with --each


def main(argv: Sequence[str] | None = None) -> None:
    """Read images with a model, or draw them."""
    args = parse(GenerateArgs, "-m mlx_pixword.generate", argv, required=("model",))
    texts = [sys.stdin.read() if text == "-" else text for text in args.prompt] or [""]
    prompts = [arrange(text, args.image[:1] if args.each else args.image) for text in texts]
    _check(args, prompts)  # mistakes show before the model is loaded
    from .weights.directory import load  # --help answers at once

    model, processor = load(args.model, revision=args.revision, dtype=args.dtype)
    if args.out_image is not None:
        draw_files(model, processor, [_fill(parts, processor, args) for parts in prompts], args)
    elif args.each and args.image:
        _read_each(model, processor, args, texts[0])
    elif args.jsonl or args.min_confidence:
        _print_reading(args.image, _read(model, processor, _fill(prompts[0], processor, args), args), args)
    else:
        _stream(model, processor, _fill(prompts[0], processor, args), args)


def _check(args: GenerateArgs, prompts: Sequence[Sequence[str | Path]]) -> None:
    if args.out_image is not None:
        check(args, len(prompts))
    elif len(prompts) > 1:
        raise PixWordError("several --prompt are for drawing; give --out-image FILE.png too, or one prompt")
    elif not prompts[0]:
        raise PixWordError("nothing to go on from: give --image FILE, --prompt TEXT or both")
    missing = [path for path in args.image if not Path(path).is_file()]
    if missing:
        raise PixWordError(f"--image {missing[0]}: no such file")


def arrange(prompt: str, paths: Sequence[str]) -> list[str | Path]:
    """Texts and image paths in reading order: images that the prompt names, or ``paths`` at its marks or before it.

    Raises:
        PixWordError: the prompt names images in a wrong way or files that do not exist, or has marks, and not as many
            as there are images.
    """
    if END_MARK in prompt:
        return _named_images(prompt, paths)
    texts = prompt.split(MARK)
    if len(texts) == 1:
        return [*map(Path, paths), *([prompt] if prompt else [])]
    if len(texts) - 1 != len(paths):
        raise PixWordError(
            f"the prompt has {len(texts) - 1} {MARK} marks for {len(paths)} images; give one mark an image, or none, "
            f"or name images in it: {MARK}FILE{END_MARK}"
        )
    parts: list[str | Path] = [texts[0]]
    for path, text in zip(paths, texts[1:], strict=True):
        parts += [Path(path), text]
    return [part for part in parts if part != ""]


def _named_images(prompt: str, paths: Sequence[str]) -> list[str | Path]:
    """Parts of a prompt in UPW's syntax, ``text <|image|>FILE<|/image|> text``."""
    from .data.references import parse_references  # --help answers at once

    if paths:
        raise PixWordError(f"name images in the prompt, {MARK}FILE{END_MARK}, or with --image, not both")
    try:
        return parse_references(prompt, _existing_file)
    except PixWordError as error:
        raise PixWordError(f"--prompt, {error}") from None


def _existing_file(reference: str) -> Path:
    path = Path(reference)
    if not path.is_file():
        raise PixWordError(f"{reference}: no such file")
    return path


def read_image(path: Path, processor: "Processor", flag: str = "--image") -> "ImageTokens":
    """Decode and fold an image file; raises `PixWordError` with its name and the flag that named it."""
    from .inputs.processor import tokens_of
    from .pixels.images import decode_file

    return tokens_of(decode_file(path, flag, processor.args.image_size).rgb, processor.args)


def _fill(parts: Sequence["str | Path"], processor: "Processor", args: GenerateArgs) -> list["Part"]:
    flag = "--image" if args.image else "--prompt"
    return [read_image(part, processor, flag) if isinstance(part, Path) else part for part in parts]


def _stream(model: "PixWordModel", processor: "Processor", parts: list["Part"], args: GenerateArgs) -> None:
    from .inference.words import stream_generate

    response = None
    for response in stream_generate(model, processor, parts, **args.sample_args()):
        sys.stdout.write(response.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if response is not None:
        read = f"{response.prompt_elements} elements read in {response.prompt_seconds:.2f} s"
        speed = (
            f"{response.tokens / max(response.seconds, 1e-9):,.1f} words/s" if response.tokens > 1 else "1 word or none"
        )
        print(f"{read}, {response.tokens} words, {speed}, {_peak()}", file=sys.stderr)


def _read(model: "PixWordModel", processor: "Processor", parts: list["Part"], args: GenerateArgs) -> "Reading":
    from .inference.read import read_batch

    return read_batch(model, processor, processor(parts), **args.sample_args())[0]


def _read_each(model: "PixWordModel", processor: "Processor", args: GenerateArgs, prompt: str) -> None:
    from .inference.read import read_batch

    start = time.perf_counter()
    for n in range(0, len(args.image), BATCH):
        paths = args.image[n : n + BATCH]
        batch = processor.batch([_fill(arrange(prompt, [path]), processor, args) for path in paths])
        for path, reading in zip(paths, read_batch(model, processor, batch, **args.sample_args()), strict=True):
            _print_reading([path], reading, args)
    seconds = time.perf_counter() - start
    print(
        f"{len(args.image)} images in {seconds:.2f} s, {len(args.image) / seconds:,.1f} images/s, {_peak()}",
        file=sys.stderr,
    )


def _print_reading(paths: Sequence[str], reading: "Reading", args: GenerateArgs) -> None:
    """A line of JSON, or the text, behind the name of its image where there are several."""
    text = reading.text_from(args.min_confidence)
    if args.jsonl:
        image = paths[0] if len(paths) == 1 else list(paths)
        print(json.dumps({"image": image} | reading.to_json() | {"text": text}, ensure_ascii=False), flush=True)
    else:
        print(f"{paths[0]}\t{text}" if args.each and len(args.image) > 1 else text, flush=True)


def _peak() -> str:
    import mlx.core as mx

    return f"peak memory {mx.get_peak_memory() / 1e6:,.0f} MB"


if __name__ == "__main__":
    run_command(main)
