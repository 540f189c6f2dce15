"""What notebooks and pages show: pictures, heat maps of surprise, sure and unsure characters. All packs into HTML."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # pixels at the least of a view's longer side: small images are shown enlarged
FRAME_MS = 80  # of an animation
HOLD_MS = 1500  # its last frame


def enlarge(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture whose pixels are whole squares, its longer side at least half of ``side`` and at most that."""
    times = max(1, side // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    contents = io.BytesIO()
    picture.save(contents, "PNG")
    return contents.getvalue()


def data_url(contents: bytes, kind: str = "image/png") -> str:
    """A file inside a page."""
    return f"data:{kind};base64,{base64.b64encode(contents).decode()}"


def with_grid(picture: Image.Image, window_size: int, side: int = SIDE) -> Image.Image:
    """A picture, enlarged, with a line around every window of ``window_size`` pixels."""
    times = max(2, side // max(picture.size))
    large = picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pen, step = ImageDraw.Draw(large), times * window_size
    for x in range(0, large.width, step):
        pen.line([(x, 0), (x, large.height)], fill=(220, 20, 60))
    for y in range(0, large.height, step):
        pen.line([(0, y), (large.width, y)], fill=(220, 20, 60))
    pen.rectangle([(0, 0), (large.width - 1, large.height - 1)], outline=(220, 20, 60))
    return large


def heat_picture(nats: np.ndarray, most: float | None = None) -> Image.Image:
    """Surprise as colours, dark for what was expected: float ``[h, w]`` nats to an image of the same size.

    Args:
        nats: minus the natural log of each pixel's probability.
        most: nats of the brightest colour; the largest there is where none are given.
    """
    from matplotlib import colormaps  # takes half a second to import

    most = float(nats.max(initial=0.0)) if most is None else most
    scaled = np.clip(nats / max(most, 1e-9), 0, 1)
    return Image.fromarray((colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8))


def heat_html(maps: Sequence[np.ndarray], title: str) -> str:
    """Heat maps on one scale, with what their colours mean."""
    most = max((float(nats.max(initial=0.0)) for nats in maps), default=0.0)
    pictures = "".join(_img(enlarge(heat_picture(nats, most))) for nats in maps)
    scale = _img(heat_picture(np.linspace(0, 1, 256)[None].repeat(10, axis=0)))
    return f"<div>{html.escape(title)}<br>{pictures}<br>0 {scale} {most:.2f} nats a pixel</div>"


def reading_html(picture: Image.Image | None, characters: Iterable[tuple[str, float]], summary: str) -> str:
    """The picture, its text with each character on a colour that says how sure it is, and a line below."""
    shown = "" if picture is None else _img(enlarge(picture)) + "<br>"
    text = f"<span style='font:1.6em monospace'>{characters_html(characters)}</span>"
    return f"<div>{shown}{text}<br>{html.escape(summary)}</div>"


def characters_html(characters: Iterable[tuple[str, float]]) -> str:
    """Characters on red (unsure) to green (sure); hovering tells the probability."""
    spans = [
        f"<span title='{probability:.1%}' style='color:#111;background:hsl({120 * probability:.0f} 70% 80%);"
        f"white-space:pre;padding:0 1px'>{html.escape(character)}</span>"
        for character, probability in characters
    ]
    return "".join(spans) or "<i>nothing</i>"


def gif(frames: Iterable[Image.Image]) -> bytes:
    """An animated GIF whose last frame stays for a while."""
    first, *others = [enlarge(frame) for frame in frames]
    contents = io.BytesIO()
    durations = [*[FRAME_MS] * len(others), HOLD_MS]
    first.save(contents, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return contents.getvalue()


def _img(picture: Image.Image) -> str:
    return f"<img style='image-rendering:pixelated' src='{data_url(png(picture))}'>"
