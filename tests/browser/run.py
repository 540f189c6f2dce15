"""The demo and a report in a real browser: every control once, and no request that leaves 127.0.0.1.

    python tests/browser/run.py [--model DIR] [--shots DIR]

Playwright drives Debian's Chromium (`apt-get install chromium`). Without --model a small random one is made. Pictures
of both pages go to --shots, to be looked at. `.ci/run` calls this after the tests; a failure is an exception.
"""

import argparse
import base64
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlx_pixword as pw  # before mlx

import mlx.core as mx  # isort: skip
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from mlx_pixword.apps.report_page import write_report
from mlx_pixword.data.plates import PlateSource
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SECONDS = 90  # that anything may take on a busy machine
BOX = (40, 14, 28, 12)  # the middle plate of the picture
DROP = """([data, selector]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer()
  transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}))
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: transfer}))
}"""
COPY = """async data => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0))
  await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})])
}"""

POINT = """() => {
  const plot = Bokeh.documents[0].roots()[0], frame = Bokeh.index.find_one(plot).frame
  const {x, y} = plot.renderers[0].data_source.data
  return [frame.bbox.left + frame.x_scale.compute(x[9]) - frame.x_scale.compute(plot.x_range.start),
          frame.y_scale.compute(y[9])].map(Number)
}"""
PREVIEW = "document.querySelector('#preview img')"
LOADED = f"{PREVIEW}?.complete && {PREVIEW}.naturalWidth > 0"
IMAGES = "output => Array.from(document.querySelectorAll(output + ' img'), image => image.src).join(' ')"


def make_model(folder: Path) -> Path:
    """A small random model that draws and reads noise."""
    mx.random.seed(0)
    tokenizer = train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], 300)
    args = ModelArgs(
        vocab_size=tokenizer.vocab_size, fold_factor=32, image_size=64, window_size=4, hidden_size=32, num_heads=4,
        num_kv_heads=2, num_layers=2, image_layers=1, intermediate_size=48, max_seq_len=512, dtype="float32",
    )  # fmt: skip
    return pw.save_model(PixWordModel(args, 3), tokenizer, folder)


def make_picture(path: Path) -> bytes:
    """Three plates on grey."""
    rgb, plates = np.full((40, 108, 3), 190, np.uint8), PlateSource(5, reserved=True)
    for n in range(3):
        picture = next(part for part in plates.parts(n) if not isinstance(part, str))
        left = 4 + 36 * n
        rgb[14:26, left : left + 28] = picture.rgb(64)
    Image.fromarray(rgb).save(path)
    return path.read_bytes()


@contextmanager
def demo(model: Path) -> Iterator[str]:
    """The demo as its own program; gives its address."""
    command = [sys.executable, "-m", "mlx_pixword.demo", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"the page is at (http://127\.0\.0\.1:\d+/)", line):
                yield found[1]
                return
            print(line, end="", file=sys.stderr)
        raise RuntimeError(f"the demo ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def open_page(context: BrowserContext, address: str, requests: list[str], errors: list[str]) -> Page:
    """A page whose requests and errors are kept."""
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    return page


def use_demo(page: Page, picture: bytes, folder: Path) -> None:
    """Every control once."""
    data = base64.b64encode(picture).decode()
    page.locator("#picture input[type=file]").wait_for(state="attached")
    give_pictures(page, data, folder)
    choose_box(page)
    click_and_see(page, "#look", "#seen", f"{BOX[2]}x{BOX[3]} pixels of")
    click_and_see(page, "#read", "#words", "confidence")
    click_and_see(page, "#surprise", "#heat", "nats a pixel")
    for slider, value in (("#temp", "0.9"), ("#keep", "0.4")):
        field = page.locator(f"{slider} input[type=number]")
        field.fill(value)
        field.press("Enter")
    page.locator("#seed input").fill("3")
    watch(page, "#complete", "#completed")
    page.locator("#prompt textarea").fill("4 7")
    page.locator("#width input").fill("28")
    page.locator("#height input").fill("12")
    watch(page, "#draw", "#drawn")


def give_pictures(page: Page, data: str, folder: Path) -> None:
    """A picture chosen, then one pasted, then one dropped."""
    clear = page.locator("#picture").get_by_label("Clear").or_(page.locator("#picture").get_by_label("Remove Image"))
    page.locator("#picture input[type=file]").set_input_files(folder / "picture.png")
    expect(page.locator("#preview img")).to_be_visible()
    clear.first.click()
    expect(page.locator("#preview img")).to_have_count(0)
    page.evaluate(COPY, data)
    page.locator("#picture").get_by_label("Paste from clipboard").click()
    expect(page.locator("#preview img")).to_be_visible()
    clear.first.click()
    expect(page.locator("#preview img")).to_have_count(0)
    page.evaluate(DROP, [data, "#picture button"])
    expect(page.locator("#preview img")).to_be_visible()


def choose_box(page: Page) -> None:
    """A box out of place gets a message; then two clicks into the preview make one."""
    box, image = page.locator("#box textarea, #box input").first, page.locator("#preview img")
    whole = see_preview(page, "src => src")
    box.fill("100,0,50,9")
    see_preview(page, "(src, before) => src != before", whole)
    page.locator("#read").click()
    expect(page.get_by_text("does not lie inside the image of 108x40 pixels")).to_be_visible()
    page.get_by_label("Close").or_(page.locator(".toast-close")).first.click()
    box.fill("")
    seen = see_preview(page, "(src, before) => src == before", whole)
    place = image.bounding_box()
    assert place is not None
    across_all, down_all = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    fitted = min(1, place["width"] / across_all, place["height"] / down_all)  # into its element, not enlarged
    shown = fitted * across_all / 108
    left, top = place["x"] + (place["width"] - 108 * shown) / 2, place["y"] + (place["height"] - 40 * shown) / 2
    x, y, width, height = BOX
    for across, down in ((x + 0.5, y + 0.5), (x + width - 0.5, y + height - 0.5)):
        page.mouse.click(left + across * shown, top + down * shown)
        seen = see_preview(page, "(src, before) => src != before", seen)
    expect(box).to_have_value(",".join(map(str, BOX)))


def see_preview(page: Page, wanted: str, before: str = "") -> str:
    """The address of the preview, once it is wanted and loaded: a click into a picture that loads is lost."""
    page.wait_for_function(f"before => {LOADED} && ({wanted})({PREVIEW}.src, before)", arg=before)
    return page.locator("#preview img").evaluate("image => image.src")


def click_and_see(page: Page, button: str, output: str, text: str) -> None:
    """Click, and wait for another picture with a text."""
    before = page.evaluate(IMAGES, output)
    page.locator(button).click()
    page.wait_for_function(f"([output, before]) => ({IMAGES})(output) != before", arg=[output, before])
    expect(page.locator(output)).to_contain_text(text)


def watch(page: Page, button: str, output: str) -> None:
    """The drawing is seen before it is done."""
    page.locator(button).click()
    expect(page.locator(output)).to_contain_text(re.compile("drawing: [0-9]+ of 336 pixels|done"))
    expect(page.locator(output)).to_contain_text("done: 336 of 336 pixels")


def use_sketch(page: Page) -> None:
    """Draw with the mouse, and read that."""
    page.get_by_role("tab", name="Draw one").click()
    expect(page.locator("#use").get_by_label("drawing")).to_be_checked()
    expect(page.locator("#box textarea, #box input").first).to_have_value("")
    page.locator("#sketch").get_by_label("Brush").first.click()
    canvas = page.locator("#sketch canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # the editor sets its canvas up
    place = canvas.bounding_box()
    assert place is not None
    middle = place["x"] + place["width"] / 2
    page.mouse.move(middle - 30, place["y"] + place["height"] / 2 - 20)
    page.mouse.down()
    for n in range(12):
        page.mouse.move(middle - 30 + 5 * n, place["y"] + place["height"] / 2 - 20 + 3 * n)
    page.mouse.up()
    expect(page.locator("#preview img")).to_be_visible()
    click_and_see(page, "#look", "#seen", "64x")
    click_and_see(page, "#read", "#words", "confidence")


def use_report(page: Page) -> None:
    """The slider moves, a plot zooms and tells values, a legend hides its curve."""
    samples, slider = page.locator(".sample"), page.locator("section.samples input")
    expect(samples.nth(1)).to_be_visible()
    expect(samples.nth(0)).to_be_hidden()
    slider.fill("0")
    expect(samples.nth(0)).to_be_visible()
    expect(page.locator("section.samples output")).to_have_text("10")
    page.evaluate("scrollTo(0, 0)")
    plot = page.locator(".bk-Figure").first
    plot.wait_for()
    hover(page, plot)
    start = "Bokeh.documents[0].roots()[0].x_range"
    before = page.evaluate(f"[{start}.start, {start}.end]")
    place = plot.bounding_box()
    assert place is not None
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + place["width"] * 0.4, middle)
    page.wait_for_timeout(300)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.6, middle + 60, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    after = page.evaluate(f"[{start}.start, {start}.end]")
    assert before[0] < after[0] < after[1] < before[1], (before, after)


def hover(page: Page, plot: Locator) -> None:
    """The mouse on a point of the first curve: its step and its value are told."""
    place = plot.bounding_box()
    assert place is not None
    x, y = page.evaluate(POINT)
    page.mouse.move(place["x"] + x - 2, place["y"] + y)
    page.mouse.move(place["x"] + x, place["y"] + y, steps=3)
    expect(page.locator(".bk-Tooltip").first).to_contain_text("word loss")


def make_run(folder: Path, picture: Image.Image) -> Path:
    """The files of a short run."""
    import json

    from mlx_pixword.config.run import make_config

    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(make_config({"preset": "tiny", "steps": 20}).to_yaml())
    lines = [{"step": n, "word_loss": 5 / n, "dense_loss": 3 / n, "peak_gb": 0.2} for n in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (10, 20):
        picture.save(folder / "samples" / f"step-{step}.png")
    return folder


def check_requests(requests: list[str], allowed: str) -> None:
    """Nothing but this program was asked for anything."""
    elsewhere = {url for url in requests if urlsplit(url).scheme not in ("data", "blob", "file")}
    elsewhere = {url for url in elsewhere if urlsplit(url).netloc != urlsplit(allowed).netloc}
    assert not elsewhere, f"requests that leave this machine: {sorted(elsewhere)}"


def run(browser: Browser, model: Path, shots: Path, folder: Path) -> None:
    picture = make_picture(folder / "picture.png")
    requests, errors = list[str](), list[str]()
    with demo(model) as address:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = open_page(context, address, requests, errors)
        use_demo(page, picture, folder)
        page.screenshot(path=shots / "demo.png", full_page=True)
        use_sketch(page)
        page.screenshot(path=shots / "demo-drawing.png", full_page=True)
        check_requests(requests, address)
        context.close()
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    report = write_report([make_run(folder / "run", Image.open(folder / "picture.png"))]).absolute()
    page = open_page(context, report.as_uri(), requests, errors)
    use_report(page)
    page.screenshot(path=shots / "report.png")
    check_requests(requests, address)
    assert not errors, errors
    print(f"browser: {len(requests)} requests, none of them elsewhere; pictures in {shots}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args(argv)
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        sys.exit("browser: no Chromium; apt-get install chromium")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        shots = args.shots or folder / "shots"
        shots.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        run(browser, args.model or make_model(folder / "model"), shots, folder)
        browser.close()


if __name__ == "__main__":
    main()
