"""A small hub on 127.0.0.1: the part of the Hugging Face hub's protocol that uploads and downloads use.

Source: what huggingface_hub sends, and https://huggingface.co/docs/hub/api; large files by the git-lfs batch protocol.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_for_tests"


class Hub(ThreadingHTTPServer):
    """Repositories by name: their files, and the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        files = self.repos[repo]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0], self.server
        hub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            if (repo := found[1]) not in hub.repos:
                return self._refuse(404, "RepoNotFound", "Repository not found")
            names = [{"rfilename": name} for name in sorted(hub.repos[repo])]
            return self._reply({"id": repo, "sha": hub.commit(repo), "siblings": names, "private": False, "tags": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?.*", path):
            return self._reply([self._entry(name, data) for name, data in sorted(hub.repos[found[1]].items())])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = hub.repos.get(found[1], {}).get(found[2])
            if data is None:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            return self._send(200, data, {"X-Repo-Commit": hub.commit(found[1]), "ETag": f'"{_sha(data)}"'})
        return self._refuse(404, "", f"no {path}")

    def do_POST(self) -> None:
        path, hub = self.path.partition("?")[0], self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self._reply({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            known = repo in hub.repos
            hub.repos.setdefault(repo, {})
            return self._reply({"url": f"{hub.url}/{repo}"}, 409 if known else 200)
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/[^/]+", path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png")) else "regular",
                 "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self._reply({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.url}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._reply({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            self._commit(hub.repos[found[1]], [json.loads(line) for line in body.splitlines()])
            sha = hub.commit(found[1])
            return self._reply({"commitUrl": f"{hub.url}/{found[1]}/commit/{sha}", "commitOid": sha, "success": True})
        return self._refuse(404, "", f"no {path}")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert _sha(data) == self.path.rsplit("/", 1)[-1]
        self.server.large[_sha(data)] = data
        self._send(200, b"", {})

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": _sha(data)[:40]}

    def _reply(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
