"""A hub on the loopback that serves one model's folder as the hub's library asks for it."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from loopback import running

COMMIT = "c" * 40


@contextlib.contextmanager
def served(name: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a folder as model `name`, the only one of the hub; the list takes the paths that are requested.

    Args:
        name: OWNER/MODEL.
        folder: its files.
        cache: where downloads are kept.
        monkeypatch: leads the hub's library here.
    """
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            paths.append(f"{self.command} {path}")
            file = folder / path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            if path == f"/api/models/{name}/revision/main":
                siblings = [{"rfilename": each.name} for each in folder.iterdir()]
                self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode())
            elif path == f"/api/models/{name}/tree/{COMMIT}":
                files = [(each.name, each.read_bytes()) for each in folder.iterdir()]
                tree = [{"type": "file", "path": each, "size": len(body), "oid": _digest(body)} for each, body in files]
                self._send(json.dumps(tree).encode())
            elif path.startswith(f"/{name}/resolve/{COMMIT}/") and file.is_file():
                self._send(file.read_bytes())
            else:
                self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{_digest(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with leading_to(Hub, cache, monkeypatch):
        yield paths


@contextlib.contextmanager
def leading_to(hub: type[BaseHTTPRequestHandler], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a hub for the block, and lead the hub's library there, with downloads in `cache`."""
    with running(ThreadingHTTPServer(("127.0.0.1", 0), hub)) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
