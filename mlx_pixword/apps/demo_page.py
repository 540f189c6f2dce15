"""A page to look at a model, made by gradio: it reads, scores, completes and draws pictures.

The page asks for nothing but what this program serves: system fonts, no analytics, no scripts from elsewhere.
"""

import html
import os
import time
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..common.errors import PixWordError
from ..inference.animation import picture_of
from ..inference.draw import check_size, draw, require_pixels
from ..inference.likelihood import log_likelihood
from ..inference.read import read
from ..inference.views import data_url, enlarge, heat_html, png, reading_html, with_grid
from ..inputs.processor import Processor, tokens_of
from ..model.document import ImageTokens
from ..model.network import PixWordModel
from ..pixels.images import Box, decode_file, fit_rgb
from .address import free_port
from .settings import DemoArgs

PREVIEW = 1024  # longest side of the picture on which the box is shown
ENLARGED = 560  # small pictures are shown so large, if whole numbers allow
FRAMES_A_SECOND = 10.0
PICTURE, SKETCH = "picture", "drawing"  # what can be looked at


def check_packages() -> None:
    """Raise `PixWordError` unless gradio is there."""
    if find_spec("gradio") is None:
        raise PixWordError("the page needs gradio, which is not installed: pip install 'mlx-pixword[demo]'")


class Page:
    """What the page's buttons do. Every method takes what the page holds and gives what it shows.

    Args:
        model, processor: from `pw.load`.
        args: limits.
    """

    def __init__(self, model: PixWordModel, processor: Processor, args: DemoArgs) -> None:
        self.model, self.processor, self.args = model, processor, args

    def about(self) -> str:
        """What the model is, in a line."""
        a = self.model.args
        words = f"{a.vocab_size} words" if self.processor.tokenizer else "no words"
        drawing = "" if self.model.pixel_queries else " It was trained without query pixels: what it draws is noise."
        drawing = " It was trained to read alone: it does not draw." if self.model.words_only else drawing
        return (
            f"**{html.escape(self.args.model_name)}**: {words}, {a.num_pix} colours, windows of "
            f"{a.window_size}x{a.window_size} pixels, pictures up to {a.image_size} pixels a side.{drawing}"
        )

    def preview(self, use: str, file: str | None, sketch: Any, box: str) -> Image.Image | None:
        """The whole picture with the box on it."""
        if (use == PICTURE and not file) or (use == SKETCH and _composite(sketch) is None):
            return None
        picture, size = self._whole(use, file, sketch)
        if box.strip():
            x, y, width, height = parse_box(box)
            scale = picture.width / size[0]
            corners = [v * scale for v in (x, y, x + width, y + height)]
            ImageDraw.Draw(picture).rectangle(corners, outline=(220, 20, 60), width=max(1, round(picture.width / 300)))
        return picture

    def corner(self, use: str, file: str | None, sketch: Any, box: str, place: tuple[int, int]) -> str:
        """The box after a click on the preview: the first click is one corner, the second the opposite one."""
        picture, size = self._whole(use, file, sketch)
        scale = size[0] / picture.width
        x, y = (min(int(v * scale), side - 1) for v, side in zip(place, size, strict=True))
        try:
            first = parse_box(box) if box.strip() else None
        except PixWordError:
            first = None
        if first is None or first[2:] != (1, 1):
            return f"{x},{y},1,1"
        left, top = min(x, first[0]), min(y, first[1])
        return f"{left},{top},{max(x, first[0]) - left + 1},{max(y, first[1]) - top + 1}"

    def look(self, use: str, file: str | None, sketch: Any, box: str) -> str:
        """The picture folded, and its windows."""
        tokens = self._tokens(use, file, sketch, box)
        folded = self.processor.picture(tokens)
        pictures = _img(enlarge(folded)) + " " + _img(with_grid(folded, self.model.args.window_size))
        return (
            f"<div>{tokens.width}x{tokens.height} pixels of {self.model.args.num_pix} colours in {len(tokens.windows)} "
            f"windows: {tokens.width * tokens.height} pixel tokens<br>{pictures}</div>"
        )

    def read(self, use: str, file: str | None, sketch: Any, box: str) -> str:
        """What it reads, with a colour a character."""
        tokens = self._tokens(use, file, sketch, box)
        reading = read(self.model, self.processor, self.processor.picture(tokens), max_tokens=256)
        summary = f"confidence {reading.confidence:.1%}, log-probability {reading.log_probability:.3f}"
        table = "".join(
            f"<tr><td>{html.escape(character) if character.strip() else '(space)'}</td><td>{probability:.1%}</td></tr>"
            for character, probability in reading.characters
        )
        return reading_html(reading.image, reading.characters, summary) + f"<table>{table}</table>"

    def surprise(self, use: str, file: str | None, sketch: Any, box: str) -> str:
        """How surprising each pixel was."""
        require_pixels(self.model)
        tokens = self._tokens(use, file, sketch, box)
        self._check_pixels(tokens.height, tokens.width, "a heat map")
        scores = log_likelihood(self.model, self.processor([tokens]))
        (nats,) = scores.heat_maps()
        return heat_html([nats], f"{nats.sum():,.0f} nats, {scores.bits_per_dimension():.3f} bits per dimension")

    def complete(
        self, use: str, file: str | None, sketch: Any, box: str, keep: float, temp: float, seed: float
    ) -> Iterator[str]:
        """The picture's upper part kept, the remainder drawn."""
        tokens = self._tokens(use, file, sketch, box)
        self._check_pixels(tokens.height, tokens.width, "a completion")
        size, rows = (tokens.height, tokens.width), round(keep * tokens.height)
        yield from self._watch("", size, temp, seed, keep=tokens, keep_rows=rows)

    def draw(self, prompt: str, width: float, height: float, temp: float, seed: float) -> Iterator[str]:
        """A drawing after a prompt, as it comes."""
        size = (int(height or 0), int(width or 0))
        check_size(self.model.args, size, 1)
        self._check_pixels(*size, "a drawing")
        yield from self._watch(prompt, size, temp, seed)

    def _watch(self, prompt: str, size: tuple[int, int], temp: float, seed: float, **kept: Any) -> Iterator[str]:
        shown = 0.0
        for drawing in draw(self.model, self.processor, prompt, size, temp=float(temp), seed=int(seed or 0), **kept):
            done = drawing.pixels == size[0] * size[1]
            if done or time.monotonic() - shown > 1 / FRAMES_A_SECOND:
                shown = time.monotonic()
                state = "done" if done else "drawing"
                picture = _img(enlarge(picture_of(drawing, self.processor)))
                yield f"<div>{state}: {drawing.pixels} of {size[0] * size[1]} pixels<br>{picture}</div>"

    def _whole(self, use: str, file: str | None, sketch: Any) -> tuple[Image.Image, tuple[int, int]]:
        """The picture as the preview shows it, small ones enlarged, and its own width and height."""
        if use == SKETCH:
            image = _sketched(sketch)
            return enlarge(Image.fromarray(fit_rgb(image, PREVIEW)), ENLARGED), image.size
        decoded = decode_file(_file(file), "picture", PREVIEW)
        return enlarge(Image.fromarray(decoded.rgb), ENLARGED), decoded.size

    def _tokens(self, use: str, file: str | None, sketch: Any, box: str) -> ImageTokens:
        part, side = parse_box(box) if box.strip() else None, self.model.args.image_size
        if use == SKETCH:
            rgb = fit_rgb(_sketched(sketch), side, part)
        else:
            rgb = decode_file(_file(file), "picture", side, part).rgb
        return tokens_of(rgb, self.model.args)

    def _check_pixels(self, height: int, width: int, what: str) -> None:
        if height * width > self.args.max_pixels:
            raise PixWordError(
                f"{what} of {width}x{height} pixels is over the limit of {self.args.max_pixels:,}; take a smaller part"
            )


def parse_box(text: str) -> Box:
    """``X,Y,W,H`` to a box; raises `PixWordError`."""
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
        raise PixWordError(f"a box is four whole numbers X,Y,W,H in pixels, such as 12,30,80,9; got {text[:40]!r}")
    x, y, width, height = map(int, numbers)
    return x, y, width, height


def _file(file: str | None) -> Path:
    if not file:
        raise PixWordError("there is no picture yet: drop one, paste one, or draw one")
    return Path(file)


def _composite(sketch: Any) -> Any:
    """The drawing, or None while nothing is drawn."""
    composite = sketch.get("composite") if isinstance(sketch, dict) else None
    return composite if composite is not None and np.asarray(composite)[..., -1].any() else None


def _sketched(sketch: Any) -> Image.Image:
    composite = _composite(sketch)
    if composite is None:
        raise PixWordError("nothing is drawn yet")
    return Image.fromarray(np.asarray(composite))


def _img(picture: Image.Image) -> str:
    return f"<img style='image-rendering:pixelated;display:inline-block;margin:4px' src='{data_url(png(picture))}'>"


def build(page: Page) -> Any:
    """The page, `gradio.Blocks`; all that uses the model waits in one queue."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks its own servers otherwise
    import gradio as gr

    def shown(method: Callable[..., Any]) -> Callable[..., Any]:
        """A user's mistake becomes the page's message."""

        @wraps(method)
        def call(*values: Any) -> Any:
            try:
                return method(*values)
            except PixWordError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    def streamed(method: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
        @wraps(method)
        def call(*values: Any) -> Iterator[str]:
            try:
                yield from method(*values)
            except PixWordError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    one_by_one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(analytics_enabled=False, title="mlx-pixword", delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"# mlx-pixword\n{page.about()}")
        with gr.Row():
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Drop or paste a picture"):
                        file = gr.Image(
                            type="filepath", sources=["upload", "clipboard"], label="Picture", height=220,
                            elem_id="picture", buttons=[],
                        )  # fmt: skip
                    with gr.Tab("Draw one") as draw_tab:
                        sketch = gr.ImageEditor(
                            canvas_size=(320, 128), fixed_canvas=True, type="numpy", sources=(), transforms=(),
                            layers=False, format="png", label="Drawing", elem_id="sketch", buttons=[],
                            brush=gr.Brush(default_size=6, colors=["#000000"], color_mode="fixed"),
                        )  # fmt: skip
                use = gr.Radio([PICTURE, SKETCH], value=PICTURE, label="Look at the", elem_id="use")
                box = gr.Textbox(
                    "", label="Box X,Y,W,H", elem_id="box", max_lines=1,
                    placeholder="the whole; or click two corners in the preview",
                )  # fmt: skip
            preview = gr.Image(
                label="Preview", interactive=False, format="png", height=360, elem_id="preview", buttons=[]
            )
        given = [use, file, sketch, box]
        with gr.Row():
            look_button = gr.Button("See it folded", elem_id="look")
            read_button = gr.Button("Read", variant="primary", elem_id="read")
            surprise_button = gr.Button("How surprising is each pixel?", elem_id="surprise")
        with gr.Row():
            seen = gr.HTML(elem_id="seen")
            words = gr.HTML(elem_id="words")
            heat = gr.HTML(elem_id="heat")
        with gr.Row():
            temp = gr.Slider(0, 2, 1, step=0.05, label="Temperature of drawing", elem_id="temp")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
        with gr.Row():
            with gr.Column():
                keep = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Part of the picture that is kept, from its top", elem_id="keep"
                )
                complete_button = gr.Button("Complete the picture", elem_id="complete")
                completed = gr.HTML(elem_id="completed")
            with gr.Column():
                prompt = gr.Textbox("", label="Prompt", max_lines=3, elem_id="prompt")
                side = min(page.model.args.image_size, 32)
                with gr.Row():
                    width = gr.Number(side, precision=0, minimum=1, label="Width", elem_id="width")
                    height = gr.Number(side, precision=0, minimum=1, label="Height", elem_id="height")
                draw_button = gr.Button("Draw", elem_id="draw")
                drawn = gr.HTML(elem_id="drawn")

        def click(event: gr.SelectData, *values: Any) -> str:
            return str(shown(page.corner)(*values, tuple(event.index)))

        file.change(lambda: (PICTURE, ""), None, [use, box], api_visibility="private")  # a box is one picture's
        draw_tab.select(lambda: (SKETCH, ""), None, [use, box], api_visibility="private")
        for component in (use, file, sketch, box):
            component.change(shown(page.preview), given, preview, show_progress="hidden", api_visibility="private")
        preview.select(  # "once" drops the second corner's click where it comes before the first one's end
            click, given, box, trigger_mode="multiple", show_progress="hidden", api_visibility="private"
        )
        look_button.click(shown(page.look), given, seen, api_name="look", **one_by_one)
        read_button.click(shown(page.read), given, words, api_name="read", **one_by_one)
        surprise_button.click(shown(page.surprise), given, heat, api_name="surprise", **one_by_one)
        complete_button.click(
            streamed(page.complete), [*given, keep, temp, seed], completed, api_name="complete", **one_by_one
        )
        draw_button.click(
            streamed(page.draw), [prompt, width, height, temp, seed], drawn, api_name="draw", **one_by_one
        )
    return blocks.queue(default_concurrency_limit=1, max_size=page.args.max_waiting)


def launch(page: Page) -> tuple[Any, str]:
    """Serve the page in threads of its own; gives it and its address.

    Raises:
        PixWordError: the port is taken, or the address is not this machine's.
    """
    args, port = page.args, free_port(page.args.host, page.args.port)
    blocks = build(page)
    import gradio as gr

    _, address, _ = blocks.launch(
        server_name=args.host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
        max_file_size=int(args.max_megabytes * 1e6), enable_monitoring=False, footer_links=[], show_error=True,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    return blocks, address
