"""The HTTP server: takes an address, loads and follows the model, answers until it is stopped.

    verdict serve --port 8080
    curl -s localhost:8080/v1/judge -d '{"sentences": ["The cat sat on the mat."]}'

The event loop reads and writes, one thread computes (batcher.py), another follows the registry (champion.py).
"""

import contextlib
import importlib.util
import logging
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from starlette.types import ASGIApp

from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError
from tasks.inference.bundle import CHAMPION_URI
from tasks.serving.batcher import Batcher
from tasks.serving.champion import DEFAULT_REFRESH_S, Champion, LoadedModel
from tasks.serving.metrics import ServerMetrics
from tasks.serving.routes import build_app

if TYPE_CHECKING:
    from tasks.serving.feedback import Feedback

log = logging.getLogger(__name__)

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
SOCKET_BACKLOG = 2_048  # connections that wait to be accepted
SHUTDOWN_GRACE_S = 30  # seconds that requests get to finish once the server is told to stop


@dataclass(frozen=True)
class ServerConfig:
    """How to serve."""

    model: str = CHAMPION_URI
    """registry address, version number, or a bundle's folder"""
    host: str = "127.0.0.1"
    port: int = 8080
    """0: a free one"""
    device: str = "auto"
    refresh_seconds: float = DEFAULT_REFRESH_S
    max_batch: int = 64
    """sentences computed together"""
    max_wait_ms: float = 2.0
    """that a request waits for company"""
    queue: int = 4_096
    """sentences that may wait"""
    page: bool = True
    """answer browsers at / with the try-it page"""
    feedback: str = ""
    """file that its flags are written to; empty: in the folder of the stores"""


def _log_with_model(served: LoadedModel) -> None:
    """Add the model's version and digest to every log line from here on."""
    log_format.bind_context(version=served.version, digest=served.digest)


def serve(serving: ServerConfig, home: str) -> None:
    """Serve until SIGTERM or SIGINT; requests that are being answered then are answered first.

    Raises:
        VerdictError: if the address is taken or cannot be had, or the model cannot be loaded, or no page can be shown.
    """
    feedback = _open_feedback(serving, home)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_SignalHandler())
        bound = stack.enter_context(bind_socket(serving.host, serving.port))  # before the model: it fails at once
        champion = stack.enter_context(
            Champion.open(
                serving.model,
                serving.refresh_seconds,
                serving.device,
                home,
                require_model=False,
                on_load=_log_with_model,
            )
        )
        batcher = Batcher(champion.current, serving.max_batch, serving.max_wait_ms / 1_000, serving.queue)
        stack.callback(batcher.close)
        telemetry = ServerMetrics(champion.status, lambda: batcher.waiting)
        batcher.on_batch = telemetry.count_batch
        app = build_app(champion, batcher, telemetry, feedback=feedback)
        if feedback:
            stack.callback(app.state.page.close)
        try:
            bound.listen(SOCKET_BACKLOG)
        except OSError as error:
            raise _not_bound(serving.host, serving.port, error) from error
        if serving.host not in LOOPBACK_HOSTS:
            log.warning("%s can be reached by others, and nobody has to log in", serving.host)
        stop.server = server_for(app)
        print(f"{_describe_status(champion)} on {address_of(bound)} (Ctrl-C stops)", flush=True)
        stop.server.run(sockets=[bound])


def _open_feedback(serving: ServerConfig, home: str) -> "Feedback | None":
    """Return where the page's flags go; None where there is to be no page, whose libraries may be missing then."""
    if not serving.page:
        if serving.feedback:
            raise UsageError("--feedback is the page's, which --no-page leaves out; drop one of them")
        return None
    if importlib.util.find_spec("gradio") is None:
        raise VerdictError("the page needs gradio, which is not installed; leave it out: verdict serve --no-page")
    from tasks.serving.feedback import FEEDBACK_FILE, Feedback

    return Feedback(serving.feedback or f"{home}/{FEEDBACK_FILE}")


def server_for(app: ASGIApp) -> uvicorn.Server:
    """Return a server that says nothing but errors and lets requests finish."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        )
    )


def bind_socket(host: str, port: int) -> socket.socket:
    """Take an address.

    Raises:
        VerdictError: if it is taken, or is none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        try:
            # A server that was just stopped leaves connections behind that would bar its successor for a minute.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise _not_bound(host, port, error) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL of a socket that is bound."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _not_bound(host: str, port: int, error: OSError) -> VerdictError:
    reason = (error.strerror or str(error)).lower()
    return VerdictError(f"{host}:{port} cannot be served on ({reason}); name another: --port 0 takes a free one")


def _describe_status(champion: Champion) -> str:
    version = champion.status()["version"]
    return f"serving {champion.model}, " + (f"version {version}," if version else "none yet,")


class _SignalHandler:
    """Lets SIGTERM and SIGINT end the process with exit code 0, before, while and after the server runs."""

    def __init__(self) -> None:
        self.server: uvicorn.Server | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():  # only that one hears signals
            self._before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *raised: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: Any) -> None:
        """Hear a signal. A running server has handlers of its own, and repeats to this one what stopped it."""
        if self.server is None:
            sys.exit(0)
        self.server.should_exit = True
