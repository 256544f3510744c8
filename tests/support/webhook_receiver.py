"""A chat's webhook on loopback, which keeps what it was sent."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

SECRET = "T0/B0/secret"  # in its address


class Receiver(NamedTuple):
    """A chat's webhook: what it was sent, and how it answers."""

    url: str
    received: list[dict[str, Any]]
    answer: dict[str, Any]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    received: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"status": 200, "location": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen = {"path": self.path, "type": self.headers["Content-Type"], "user": self.headers["Authorization"]}
            received.append({**seen, **json.loads(body)})
            self.send_response(answer["status"])
            if answer["location"]:
                self.send_header("Location", answer["location"])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Receiver(f"http://127.0.0.1:{server.server_port}/{SECRET}", received, answer)
    server.shutdown()
