"""The server over HTTP: answers are `generate_text`'s, streams add up, one at a time, and bad input gets a message."""

import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from source_files import png_header

import mlx_pixword as pw
from mlx_pixword.apps.chat import cut_at, overlap, parse_request
from mlx_pixword.apps.http_server import ModelServer
from mlx_pixword.apps.settings import ServerArgs
from mlx_pixword.apps.worker import Busy, TooSlow, Worker
from mlx_pixword.common.errors import PixWordError
from mlx_pixword.inputs.tokenizer import train_tokenizer
from mlx_pixword.model.args import ModelArgs
from mlx_pixword.model.network import PixWordModel
from mlx_pixword.weights.directory import save_model

JSON = {"Content-Type": "application/json"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(7)
    tokenizer = train_tokenizer(["red", "green", "blue 123"], 300)
    model = PixWordModel(ModelArgs(**SMALL | {"vocab_size": tokenizer.vocab_size, "max_seq_len": 256}))
    model.head.weight = model.head.weight * 20
    return save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    args = ServerArgs(model="small", port=0, max_images=2, max_megabytes=0.5, max_tokens=64)
    with ModelServer(*pw.load(folder), args) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8))


def url(picture: Image.Image, kind: str = "PNG") -> str:
    contents = io.BytesIO()
    picture.save(contents, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(contents.getvalue()).decode()}"


def image_part(link: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": link}}


def message(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def ask(
    server: ModelServer, body: Any, path: str = CHAT, method: str = "POST", headers: dict[str, str] = JSON
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    answer = connection.getresponse()
    result = answer.status, answer.read()
    connection.close()
    return result


def events(content: bytes) -> list[dict[str, Any]]:
    """The JSON of a stream that ended well."""
    lines = [line for line in content.decode().split("\n\n") if line]
    assert lines.pop() == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_library_gives(server: ModelServer, picture: Image.Image) -> None:
    body = {"model": "small", "messages": message("red ", image_part(url(picture)), " green"), "max_tokens": 7}
    status, content = ask(server, body | {"logprobs": True})
    answer = json.loads(content)
    parts: list[Any] = ["red ", picture, " green"]
    expected = pw.generate_text(server.model, server.processor, parts, max_tokens=7)
    assert status == 200 and answer["object"] == "chat.completion" and answer["model"] == "small"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected} and choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7
    prompt = server.processor(parts).elements.shape[1]
    assert answer["usage"]["prompt_tokens"] == prompt and answer["usage"]["total_tokens"] == prompt + 7
    reading = pw.read(server.model, server.processor, picture, max_tokens=3)
    alone = json.loads(
        ask(server, {"messages": message(image_part(url(picture))), "max_tokens": 3, "logprobs": True})[1]
    )
    assert alone["choices"][0]["confidence"] == pytest.approx(reading.confidence, rel=1e-3)
    scores = [one["logprob"] for one in alone["choices"][0]["logprobs"]["content"]]
    assert sum(scores) == pytest.approx(reading.log_probability, abs=1e-4)


def test_a_stream_adds_up_to_the_answer(server: ModelServer, picture: Image.Image) -> None:
    body = {"messages": message(image_part(url(picture))), "max_completion_tokens": 9}
    whole = json.loads(ask(server, body)[1])
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(ask(server, body | stream)[1])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *words, end, usage = chunks
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in words)
    assert text == whole["choices"][0]["message"]["content"] and len(words) > 1
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert end["choices"][0]["confidence"] == pytest.approx(whole["choices"][0]["confidence"], rel=1e-6)
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


def test_sampling_has_a_seed(server: ModelServer) -> None:
    body = {"messages": [{"role": "user", "content": "blue"}], "max_tokens": 12, "temperature": 3.0, "seed": 5}
    texts = [
        json.loads(ask(server, b)[1])["choices"][0]["message"]["content"] for b in (body, body, body | {"seed": 6})
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_answer(server: ModelServer) -> None:
    body = {"messages": [{"role": "user", "content": "green"}], "max_tokens": 20}
    text = json.loads(ask(server, body)[1])["choices"][0]["message"]["content"]
    stop = text[5:8]
    expected = text[: text.index(stop)]
    whole = json.loads(ask(server, body | {"stop": [stop, "never there"]})[1])["choices"][0]
    assert whole["message"]["content"] == expected and whole["finish_reason"] == "stop"
    chunks = events(ask(server, body | {"stop": stop, "stream": True})[1])
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected


def test_stop_texts_wait_for_their_end() -> None:
    assert cut_at("one two", ["two", "e t"]) == ("on", True) and cut_at("one", ["two"]) == ("one", False)
    assert overlap("one t", ["two"]) == 1 and overlap("one tw", ["two"]) == 2 and overlap("one", ["two"]) == 0


def test_models_and_health(server: ModelServer) -> None:
    status, content = ask(server, None, "/v1/models", "GET")
    assert status == 200 and json.loads(content)["data"][0]["id"] == "small"
    assert ask(server, None, "/health", "GET") == (200, b'{"status": "ok"}')


def test_many_at_once_are_answered_one_after_the_other(server: ModelServer, picture: Image.Image) -> None:
    body = {"messages": message(image_part(url(picture))), "max_tokens": 5}
    answers: list[tuple[int, str]] = []

    def one() -> None:
        status, content = ask(server, body)
        answers.append((status, json.loads(content)["choices"][0]["message"]["content"]))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6 and len(set(answers)) == 1 and answers[0][0] == 200


# --- what bad input gets ----------------------------------------------------------------------------------------------

TEXT = [{"role": "user", "content": "red"}]
BOMB = f"data:image/png;base64,{base64.b64encode(png_header(50_000, 50_000)).decode()}"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ([], 400, "must be a JSON object"),
        ({}, 400, "messages must be a list"),
        ({"messages": []}, 400, "messages must be a list"),
        ({"messages": [3]}, 400, r"messages[0] needs a content"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "the messages are empty"),
        ({"messages": message({"type": "audio"})}, 400, "messages[0].content[0] must be"),
        ({"messages": message(image_part("http://127.0.0.1:9/a.png"))}, 400, "images must be data URLs"),
        ({"messages": message(image_part("file:///etc/hosts"))}, 400, "images must be data URLs"),
        ({"messages": message(image_part("data:image/png;base64,a-b"))}, 400, "is not base64"),
        ({"messages": message(image_part("data:image/png;base64,AAAA"))}, 400, "not an image of a known format"),
        ({"messages": message(*[image_part("data:image/png;base64,AAAA")] * 3)}, 400, "3 images, at most 2"),
        ({"messages": message("red", image_part(BOMB))}, 400, "messages[0].content[1]: too large, the limit is"),
        ({"messages": TEXT, "model": "other"}, 404, "the model 'other' is not served here"),
        ({"messages": TEXT, "n": 2}, 400, "n must be 1"),
        ({"messages": TEXT, "tools": [{}]}, 400, "tools are not supported"),
        ({"messages": TEXT, "max_tokens": 65}, 400, "max_tokens must be at most 64"),
        ({"messages": TEXT, "max_tokens": 0}, 400, "max-tokens must be at least 1"),
        ({"messages": TEXT, "temperature": -1}, 400, "temp must be 0 or positive"),
        ({"messages": TEXT, "temperature": "hot"}, 400, "temp must be a number"),
        ({"messages": TEXT, "seed": 1.5}, 400, "seed must be an integer"),
        ({"messages": TEXT, "stream": "yes"}, 400, "stream must be true or false"),
        ({"messages": TEXT, "stop": [1]}, 400, "stop must be a text"),
        ({"messages": [{"role": "user", "content": "red " * 300}]}, 400, "the model takes 256"),
        (b"{", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"x" * 500_001, 413, "at most 500,000 are taken"),
    ],
)  # fmt: skip
def test_bad_requests_get_a_message(server: ModelServer, body: Any, status: int, said: str) -> None:
    found, content = ask(server, body)
    error = json.loads(content)["error"]
    assert found == status and said in error["message"], error
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_a_bad_image_is_a_status_in_a_stream_too(server: ModelServer) -> None:
    body = {"messages": message(image_part("data:image/png;base64,AAAA")), "stream": True}
    status, content = ask(server, body)
    assert status == 400 and "messages[0].content[0]: not an image" in json.loads(content)["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404), ("POST", "/v1/completions", JSON, 404), ("DELETE", CHAT, {}, 501),
        ("POST", CHAT, {"Content-Type": "text/plain"}, 415), ("POST", CHAT, JSON | {"Host": "evil.example"}, 403),
        ("POST", CHAT, JSON | {"Content-Length": "-1"}, 411), ("POST", CHAT, JSON | {"Content-Length": "9" * 30}, 413),
        ("GET", "/health", {"Host": "[::1]:80"}, 200), ("GET", "/health", {"Host": "localhost:1"}, 200),
    ],
)  # fmt: skip
def test_other_requests(server: ModelServer, method: str, path: str, headers: dict[str, str], status: int) -> None:
    found, content = ask(server, b"{}" if method == "POST" else None, path, method, headers)
    assert found == status
    assert status == 200 or json.loads(content)["error"]["message"]


def test_a_client_that_leaves_ends_its_job(server: ModelServer) -> None:
    body = json.dumps({"messages": TEXT, "max_tokens": 64, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.server_port)) as client:
        head = f"POST {CHAT} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        client.recv(10)
    assert ask(server, None, "/health", "GET")[0] == 200
    assert ask(server, {"messages": TEXT, "max_tokens": 1})[0] == 200


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command_line = [sys.executable, "-m", "mlx_pixword.server", "--model", str(folder), "--port", port]
        done = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: --port {port} on 127.0.0.1 is taken by another program; choose another"
    )
    with pytest.raises(PixWordError, match=r"cannot listen on --host 203\.0\.113\.1"):
        ModelServer(*pw.load(folder), ServerArgs(model="m", host="203.0.113.1", port=0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"port": 70000}, "--port"), ({"max_waiting": 0}, "--max-waiting"), ({"max_seconds": 0.0}, "--max-seconds")],
)
def test_wrong_settings(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PixWordError, match=said):
        ServerArgs(model="m", **changes)


def test_null_is_as_good_as_left_out() -> None:
    request = parse_request({"messages": TEXT, "temperature": None, "max_tokens": None, "stop": None}, "m", 1, 64)
    assert request.sample.temp is None and request.sample.max_tokens == 64 and request.stop == ()


# --- the queue --------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow() -> Iterator[tuple[Worker, threading.Event, Callable[[], Iterator[int]]]]:
    """A worker, and a job that gives 1, waits for an event and gives 2."""
    worker, go = Worker(most_waiting=1, seconds=0.5), threading.Event()

    def job() -> Iterator[int]:
        yield 1
        go.wait(20)
        yield 2

    yield worker, go, job
    go.set()
    worker.close()


Slow = tuple[Worker, threading.Event, Callable[[], Iterator[int]]]


def test_jobs_run_in_order_and_too_many_are_refused(slow: Slow) -> None:
    worker, go, job = slow
    running = worker.stream(job)
    assert next(running) == 1
    waiting = worker.stream(lambda: iter([3]))
    with pytest.raises(Busy, match="1 requests are waiting already"):
        worker.stream(job)
    go.set()
    assert list(running) == [2] and list(waiting) == [3]


def test_a_job_has_its_time(slow: Slow) -> None:
    worker, go, job = slow
    running = worker.stream(job)
    assert next(running) == 1
    start = time.monotonic()
    with pytest.raises(TooSlow, match=r"longer than 0\.5 seconds"):
        next(running)
    assert time.monotonic() - start < 5
    go.set()
    assert list(worker.stream(lambda: iter([4]))) == [4]


def test_what_a_job_raises_reaches_its_caller_alone(slow: Slow) -> None:
    worker, _, _ = slow
    with pytest.raises(ZeroDivisionError):
        list(worker.stream(lambda: iter([1 // 0])))
    assert list(worker.stream(lambda: iter([5]))) == [5] and worker.alive


def test_a_job_that_nobody_waits_for_ends(slow: Slow) -> None:
    worker, _, _ = slow
    seen: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            seen.append(1)
            time.sleep(0.01)
            yield 1

    items = worker.stream(endless)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert list(worker.stream(lambda: iter([6]))) == [6]
    count = len(seen)
    time.sleep(0.1)
    assert len(seen) == count
