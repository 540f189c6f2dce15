"""The page over HTTP with gradio's own client, and what its buttons do; `tests/browser/run.py` has the real browser."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlx.core as mx
import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from source_files import png_header

import mlx_pixword as pw
from mlx_pixword.apps.address import free_port, is_loopback
from mlx_pixword.apps.demo_page import PICTURE, SKETCH, Page, check_packages, parse_box
from mlx_pixword.apps.settings import DemoArgs
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.directory import save_model

CLIENT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from gradio_client import Client, handle_file
address, picture = sys.argv[1:]
one, other = Client(address, verbose=False), Client(address, verbose=False)
given = ["picture", handle_file(picture), None, "1,2,9,6"]
result = {"read": one.predict(*given, api_name="/read"), "look": one.predict(*given, api_name="/look")}
result["surprise"] = one.predict(*given, api_name="/surprise")
jobs = [client.submit("red", 9, 7, 1.0, seed, api_name="/draw") for seed, client in enumerate((one, other))]
jobs.append(other.submit(*given, 0.5, 1.0, 0, api_name="/complete"))
result["drawn"] = [job.result(timeout=60) for job in jobs]
result["frames"] = [len(job.outputs()) for job in jobs]
result["errors"] = []
for box in ("1,2,99,6", "a"):
    try:
        one.predict("picture", handle_file(picture), None, box, api_name="/read")
    except Exception as error:
        result["errors"].append(str(error))
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(3)
    tokenizer = train_tokenizer(["red", "green", "blue 123"], 300)
    model = PixWordModel(ModelArgs(**SMALL | {"vocab_size": tokenizer.vocab_size, "max_seq_len": 256}), 3)
    return save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (10, 14, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(*pw.load(folder), DemoArgs(model="small & odd", max_pixels=200))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The demo as a program of its own, with its own warnings."""
    command = [
        sys.executable,
        "-m",
        "mlx_pixword.demo",
        "--model",
        str(folder),
        "--port",
        "0",
        "--max-megabytes",
        "0.1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            break
    assert found, process.wait()
    yield found[0]
    process.terminate()
    process.communicate(timeout=30)


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_the_buttons_over_http(address: str, picture: Path, folder: Path, tmp_path: Path) -> None:
    """Two people at once; each gets what the library gives."""
    command = [sys.executable, "-c", CLIENT, address, str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    page = Page(*pw.load(folder), DemoArgs(model="small"))
    given = (PICTURE, str(picture), None, "1,2,9,6")
    assert result["read"] == page.read(*given) and result["look"] == page.look(*given)
    assert result["surprise"] == page.surprise(*given)
    assert result["drawn"] == [
        list(page.draw("red", 9, 7, 1.0, 0))[-1], list(page.draw("red", 9, 7, 1.0, 1))[-1],
        list(page.complete(*given, 0.5, 1.0, 0))[-1],
    ]  # fmt: skip
    assert all(frames >= 1 for frames in result["frames"])
    assert "the box 1,2,99,6 does not lie inside the image of 14x10 pixels" in result["errors"][0]
    assert "a box is four whole numbers" in result["errors"][1]


def test_the_page_names_nothing_elsewhere_that_a_browser_loads(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']([^"']+)""", text)
    assert loaded
    assert {urlsplit(link).netloc for link in loaded} <= {"", urlsplit(address).netloc}


def test_a_second_corner_is_taken_while_the_first_is_sent(address: str) -> None:
    with urllib.request.urlopen(f"{address}config") as answer:
        events = json.load(answer)["dependencies"]
    modes = [
        event["trigger_mode"] for event in events if event["targets"][0][1] == "select" and len(event["inputs"]) == 4
    ]
    assert modes == ["multiple"]


def test_a_file_that_is_too_large_is_refused(address: str) -> None:
    boundary, content = "x" * 20, b"\0" * 150_000
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413
    refused.value.close()


# --- what the buttons do ----------------------------------------------------------------------------------------------


def test_a_reading_has_a_line_for_every_character(page: Page, picture: Path) -> None:
    shown = page.read(PICTURE, str(picture), None, "")
    reading = pw.read(page.model, page.processor, Image.open(picture), max_tokens=256)
    assert shown.count("<tr>") == len(reading.characters)
    assert f"confidence {reading.confidence:.1%}" in shown


def test_a_drawing_is_watched(page: Page) -> None:
    frames = list(page.draw("", 9, 7, 1.0, 0))
    assert "done: 63 of 63 pixels" in frames[-1] and "drawing: 16 of 63 pixels" in frames[0]


def test_a_sketch_is_seen_over_white(page: Page) -> None:
    sketch = np.zeros((10, 20, 4), np.uint8)
    assert page.preview(SKETCH, None, {"composite": sketch}, "") is None  # nothing drawn
    with pytest.raises(PixWordError, match="nothing is drawn yet"):
        page.look(SKETCH, None, {"composite": sketch}, "")
    sketch[4:6, 4:9] = (0, 0, 0, 255)
    shown = page.preview(SKETCH, None, {"composite": sketch}, "4,4,5,2")
    assert shown is not None and shown.size == (560, 280)
    assert shown.getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((150, 150)) == (0, 0, 0)
    assert shown.getpixel((4 * 28, 4 * 28)) == (220, 20, 60)  # the box
    assert "20x10 pixels" in page.look(SKETCH, None, {"composite": sketch}, "")


def test_two_clicks_make_a_box(page: Page, picture: Path) -> None:
    given = (PICTURE, str(picture), None)  # 14x10, shown 40 times as large
    first = page.corner(*given, "", (9 * 40 + 3, 7 * 40 + 39))
    assert first == "9,7,1,1"
    assert page.corner(*given, first, (2 * 40, 8 * 40)) == "2,7,8,2"
    assert page.corner(*given, "2,7,8,2", (100_000, 0)) == "13,0,1,1"  # a new box
    assert page.corner(*given, "nonsense", (0, 0)) == "0,0,1,1"


def test_no_picture_is_no_preview(page: Page) -> None:
    assert page.preview(PICTURE, None, None, "") is None
    with pytest.raises(PixWordError, match="there is no picture yet"):
        page.read(PICTURE, None, None, "")


@pytest.mark.parametrize(
    ("width", "height", "said"), [(40, 30, "over the limit of 200"), (0, 5, "positive"), (3, None, "positive")]
)
def test_sizes_have_limits(page: Page, width: float, height: float, said: str) -> None:
    with pytest.raises(PixWordError, match=said):
        list(page.draw("", width, height, 1.0, 0))


def test_the_models_name_is_text(page: Page) -> None:
    assert "small &amp; odd" in page.about() and "noise" not in page.about()


@pytest.mark.parametrize("box", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,2,2", "1.5,0,2,2", "1,2,3,9999999999"])
def test_a_box_is_four_numbers(box: str) -> None:
    with pytest.raises(PixWordError, match="a box is four whole numbers"):
        parse_box(box)
    assert parse_box(" 1, 2,3 ,4") == (1, 2, 3, 4)


# --- what bad input gets ----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PixWordError, match=f"--port {port} on 127.0.0.1 is taken by another program"):
            free_port("127.0.0.1", port)
        command = [sys.executable, "-m", "mlx_pixword.demo", "--model", str(folder), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --port {port} on 127.0.0.1 is taken by another program; choose another\n"
    assert free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize("button", ["look", "read", "surprise"])
def test_a_picture_over_the_limits_is_a_message(page: Page, tmp_path: Path, button: str) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(50_000, 50_000))
    with pytest.raises(PixWordError, match=r"bomb\.png: too large, the limit is 89,478,485 pixels; scale it down"):
        getattr(page, button)(PICTURE, str(tmp_path / "bomb.png"), None, "")


def test_heat_maps_and_completions_have_limits(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    given = (PICTURE, str(tmp_path / "a.png"), None, "")
    with pytest.raises(PixWordError, match="a heat map of 20x20 pixels is over the limit of 200; take a smaller part"):
        page.surprise(*given)
    with pytest.raises(PixWordError, match="a completion of 20x20 pixels is over the limit of 200"):
        list(page.complete(*given, 0.5, 1.0, 0))


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "example.org", "10.0.0.1", "")))


def test_gradio_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_pixword.apps.demo_page.find_spec", lambda name: None)
    with pytest.raises(PixWordError, match=r"pip install 'mlx-pixword\[demo\]'"):
        check_packages()


def test_wrong_limits() -> None:
    with pytest.raises(PixWordError, match="--max-pixels must be positive"):
        DemoArgs(model="m", max_pixels=0)
