"""A server on mlx-lm's conventions: OpenAI's chat requests over HTTP, one model, one request after the other."""

import json
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Any

from ..common.errors import PixWordError
from ..data.decoders import Decoders
from ..inference.words import Response
from ..inputs.processor import Processor
from ..model.network import PixWordModel
from .address import bind, family_of, is_loopback
from .chat import Answer, ChatRequest, NotServed, parse_request, respond
from .settings import ServerArgs
from .worker import Busy, TooSlow, Worker

CHAT = ("/v1/chat/completions", "/chat/completions")
SOCKET_SECONDS = 30.0  # that a client may let the server wait for its next bytes


class HTTPError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class ModelServer(ThreadingHTTPServer):
    """Listens; a thread a connection, all of which wait for the one that uses the model.

    Args:
        model, processor: from `pw.load`.
        args: host, port and limits.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model: PixWordModel, processor: Processor, args: ServerArgs) -> None:
        self.model, self.processor, self.args = model, processor, args
        self.started = int(time.time())
        self.decoders = Decoders(min(args.max_seconds, 10.0))
        self.worker = Worker(args.max_waiting, args.max_seconds)
        self.places = BoundedSemaphore(2 * args.max_waiting + 16)  # connections at once
        self.loopback = is_loopback(args.host)
        self.address_family = family_of(args.host)
        bind(lambda: super(ModelServer, self).__init__((args.host, args.port), Handler), args.host, args.port)

    def server_bind(self) -> None:
        """As the parent's, without looking up a name for the address."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def server_close(self) -> None:
        super().server_close()
        self.decoders.__exit__()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error; anything else keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ModelServer
    timeout = SOCKET_SECONDS
    server_version, sys_version = "mlx-pixword", ""

    def handle(self) -> None:
        if not self.server.places.acquire(blocking=False):
            return
        try:
            super().handle()
        finally:
            self.server.places.release()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Any) -> None:
        """Run a method; what it raises before anything was sent becomes a status and a message."""
        try:
            self._check_host()
            method()
        except HTTPError as error:
            self._send_json({"error": _error(error.status, str(error))}, error.status, **error.headers)

    def _get(self) -> None:
        if self.path == "/health":
            status = 200 if self.server.worker.alive else 503
            self._send_json({"status": "ok" if status == 200 else "unavailable"}, status)
        elif self.path == "/v1/models":
            model = {"id": self.server.args.model_name, "object": "model", "created": self.server.started}
            self._send_json({"object": "list", "data": [model]})
        else:
            raise HTTPError(404, f"nothing is at {self.path[:200]}; there are {CHAT[0]}, /v1/models and /health")

    def _post(self) -> None:
        if self.path not in CHAT:
            raise HTTPError(404, f"nothing is at {self.path[:200]}; post to {CHAT[0]}")
        args, body = self.server.args, self._body()
        try:
            request = parse_request(body, args.model_name, args.max_images, args.max_tokens)
        except NotServed as error:
            raise HTTPError(404, str(error)) from error
        except PixWordError as error:
            raise HTTPError(400, str(error)) from error
        answer = Answer(request, self.server.model, self.server.processor, args.model_name)
        responses = self._responses(request)
        (self._stream if request.stream else self._whole)(answer, responses)

    def _responses(self, request: ChatRequest) -> Iterator[Response]:
        """Words as the worker makes them; what goes wrong has a status."""
        server = self.server
        try:
            yield from server.worker.stream(lambda: respond(server.model, server.processor, server.decoders, request))
        except Busy as error:
            raise HTTPError(503, str(error), **{"Retry-After": "1"}) from error
        except TooSlow as error:
            raise HTTPError(408, f"{error}; send a smaller image or ask for fewer words") from error
        except PixWordError as error:
            raise HTTPError(400, str(error)) from error

    def _whole(self, answer: Answer, responses: Iterable[Response]) -> None:
        text = "".join(text for text, _ in answer.texts(responses))
        self._send_json(answer.whole(text))

    def _stream(self, answer: Answer, responses: Iterator[Response]) -> None:
        """Server-sent events; a mistake that shows before the first word is still a status."""
        first = next(responses, None)
        rest = [first] if first is not None else []
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        try:
            for text, response in answer.texts(_chain(rest, responses)):
                self._send_event(answer.chunk(text, response))
            for chunk in answer.end_of_stream():
                self._send_event(chunk)
            self._write(b"data: [DONE]\n\n")
        except HTTPError as error:
            self._send_event({"error": _error(error.status, str(error))})

    def _body(self) -> Any:
        """The request's JSON."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a foreign page may send without asking is of other types
            raise HTTPError(415, f"the body must have Content-Type application/json, got {kind[:100] or 'none'}")
        length, most = self.headers.get("Content-Length", ""), int(self.server.args.max_megabytes * 1e6)
        if not (length.isascii() and length.isdigit()):
            raise HTTPError(411, "the request needs a Content-Length")
        if len(length) > 15 or int(length) > most:
            raise HTTPError(413, f"the body has {length[:20]} bytes, at most {most:,} are taken; send a smaller image")
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise HTTPError(400, "the body is shorter than its Content-Length")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, f"the body is not JSON: {str(error)[:200]}") from None

    def _check_host(self) -> None:
        """A foreign page can make a browser ask here under a name of its own; only this machine's are served."""
        given = self.headers.get("Host") or "localhost"
        host = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
        if self.server.loopback and not is_loopback(host):
            raise HTTPError(403, "this server answers on this machine alone; start it with --host to change that")

    def _send_json(self, value: Any, status: int = 200, **headers: str) -> None:
        content = json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self._write(content)

    def _send_event(self, value: Any) -> None:
        self._write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())

    def _write(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of the HTTP parser, such as a method that is unknown, as JSON too."""
        self._send_json({"error": _error(code, message or self.responses[code][0])}, code)

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: what people send is theirs."""


def _error(status: int, message: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"message": message, "type": kind, "param": None, "code": status}


def _chain(first: Iterable[Response], rest: Iterator[Response]) -> Iterator[Response]:
    yield from first
    yield from rest
