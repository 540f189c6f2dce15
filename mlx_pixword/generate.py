"""`python -m mlx_pixword.generate`: read images, or draw them. Results on standard output, speed on standard error."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common.cli import notice, parse, run_command
from .common.errors import PixWordError
from .common.files import NO_FILE, expand, missing
from .common.settings import counted
from .common.streams import read_input
from .inference.draw_files import check, draw_files
from .inference.image_files import ImageFiles
from .inference.settings import END_MARK, MARK, GenerateArgs

if TYPE_CHECKING:
    from .inference.read import Reading
    from .inputs.processor import Part, Processor
    from .model.network import PixWordModel

BATCH, ELEMENTS = 32, 4096  # images read together with --each, and words and windows of theirs


def main(argv: Sequence[str] | None = None) -> None:
    """Read images with a model, or draw them."""
    args = parse(GenerateArgs, "-m mlx_pixword.generate", argv)
    texts = [read_input("--prompt -") if text == "-" else text for text in args.prompt] or [""]
    prompts = [arrange(text, args.image[:1] if args.each else args.image) for text in texts]
    _check(args, prompts)  # mistakes show before the model is loaded
    from .inference.words import require_words  # --help answers at once
    from .weights.directory import load

    model, processor = load(
        args.model or None, revision=args.revision, dtype=args.dtype, adapter_path=args.adapter_path
    )
    if args.out_image is not None:
        from .inference.draw import require_pixels

        require_pixels(model)
    if args.out_image is None or args.then_words:
        require_words(model.args)
    images = ImageFiles(processor, args.part())
    if args.each and args.image:
        _read_each(model, processor, images, args, texts[0])
        return
    filled = [_fill(parts, images, args) for parts in prompts]
    images.finish()
    if args.out_image is not None:
        draw_files(model, processor, filled, args)
    elif args.jsonl or args.min_confidence:
        _print_reading(args.image, _read(model, processor, filled[0], args), args)
    else:
        _stream(model, processor, filled[0], args)


def _check(args: GenerateArgs, prompts: Sequence[Sequence[str | Path]]) -> None:
    if args.out_image is not None:
        check(args, len(prompts))
    elif len(prompts) > 1:
        raise PixWordError("several --prompt are for drawing; give --out-image FILE.png too, or one prompt")
    elif not prompts[0]:
        raise PixWordError("nothing to go on from: give --image FILE, --prompt TEXT or both")
    if args.box is not None and not any(isinstance(part, Path) for parts in prompts for part in parts):
        raise PixWordError("--box is a part of an image; give --image FILE too")
    missing = [path for path in args.image if not Path(path).is_file()]
    if missing and not args.each:
        raise PixWordError(f"--image {missing[0]}: {_what_is_wrong(Path(missing[0]))}")


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
    path = expand(Path(reference))
    if not path.is_file():
        raise PixWordError(f"{reference}: {_what_is_wrong(path)}")
    return path


def _what_is_wrong(path: Path) -> str:
    """Why a path is no file; what a shell makes of ``<(...)`` is a pipe."""
    if path.exists():
        return "a folder; give its images, such as FOLDER/*" if path.is_dir() else f"{NO_FILE}; save it to one first"
    if str(path) == "-":
        return "no such file; images are not read from standard input"
    return f"no such file{missing(path)}"


def _fill(parts: Sequence["str | Path"], images: ImageFiles, args: GenerateArgs) -> list["Part"]:
    flag = "--image" if args.image else "--prompt"
    return [images.read(part, flag) if isinstance(part, Path) else part for part in parts]


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
        print(f"{read}, {response.tokens} words, {speed}, {_memory(model)}", file=sys.stderr)


def _read(model: "PixWordModel", processor: "Processor", parts: list["Part"], args: GenerateArgs) -> "Reading":
    from .inference.read import read_batch

    return read_batch(model, processor, processor(parts), **args.sample_args())[0]


def _read_each(
    model: "PixWordModel", processor: "Processor", images: ImageFiles, args: GenerateArgs, prompt: str
) -> None:
    """Read images one by one, some at a time; bad files are named, and cost no more than themselves."""
    from .inference.read import read_batch

    start, done = time.perf_counter(), 0
    for paths, rows in _batches(_readable(processor, images, args, prompt)):
        readings = read_batch(model, processor, processor.batch(rows), **args.sample_args())
        for path, reading in zip(paths, readings, strict=True):
            _print_reading([path], reading, args)
        done += len(paths)
    images.finish()
    seconds, bad = time.perf_counter() - start, len(args.image) - done
    left_out = f", {bad} could not be read" if bad else ""
    speed = f"{counted(done, 'image')} in {seconds:.2f} s, {done / seconds:,.1f} images/s{left_out}"
    print(f"{speed}, {_memory(model)}", file=sys.stderr)
    if bad:
        sys.exit(1)


def _readable(
    processor: "Processor", images: ImageFiles, args: GenerateArgs, prompt: str
) -> Iterator[tuple[str, list["Part"], int]]:
    """Documents of single images, with their lengths; bad files are named."""
    for path in args.image:
        try:
            if not Path(path).is_file():
                raise PixWordError(f"--image {path}: {_what_is_wrong(Path(path))}")
            parts = _fill(arrange(prompt, [path]), images, args)
            yield path, parts, len(processor.document(parts))  # one that is too long must not end the others
        except PixWordError as error:
            notice(f"error: {' '.join(str(error).split())}")


def _batches(documents: Iterable[tuple[str, list["Part"], int]]) -> Iterator[tuple[list[str], list[list["Part"]]]]:
    """Images to read together, some at a time, so that memory does not grow with their number."""
    paths, batch, longest = list[str](), list[list["Part"]](), 0
    for path, parts, length in documents:
        longest = max(longest, length)
        if batch and (len(batch) == BATCH or (len(batch) + 1) * longest > ELEMENTS):
            yield paths, batch
            paths, batch, longest = [], [], length
        paths.append(path)
        batch.append(parts)
    if batch:
        yield paths, batch


def _print_reading(paths: Sequence[str], reading: "Reading", args: GenerateArgs) -> None:
    """A line of JSON, or the text, behind the name of its image where there are several."""
    text = reading.text_from(args.min_confidence)
    if args.jsonl:
        image = paths[0] if len(paths) == 1 else list(paths)
        unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        line = {"image": image} | reading.to_json() | {"text": text}
        print(json.dumps(line, ensure_ascii=not unicode), flush=True)
    else:
        print(f"{paths[0]}\t{text}" if args.each and len(args.image) > 1 else text, flush=True)


def _memory(model: "PixWordModel") -> str:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
    return f"weights {weights / 1e6:,.1f} MB, peak memory {mx.get_peak_memory() / 1e6:,.0f} MB"


if __name__ == "__main__":
    run_command(main)
