"""The HTTP server: binds an address, loads and follows the model, and serves until a signal stops it.

    verdict serve --port 8080
    curl -s localhost:8080/v1/judge -d '{"sentences": ["The cat sat on the mat."]}'

The event loop reads and writes, one thread computes (batcher.py), another follows the registry (champion.py).
"""

import contextlib
import ctypes
import logging
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fastapi import FastAPI

from tasks.core import log_format
from tasks.core.errors import UsageError, VerdictError
from tasks.core.packages import is_installed
from tasks.inference.bundle import CHAMPION_URI
from tasks.serving.api_keys import ApiKeys
from tasks.serving.batcher import Batcher
from tasks.serving.challenger import ChallengerConfig, ServedChampion, open_challenger
from tasks.serving.champion import DEFAULT_REFRESH_S, Champion, LoadedModel
from tasks.serving.client_limits import ClientRates
from tasks.serving.connections import SOCKET_BACKLOG, InferenceServer
from tasks.serving.host_names import LOOPBACK_HOSTS, AllowedHosts
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_validation import RequestLimits
from tasks.serving.routes import Extensions, build_app
from tasks.serving.tracing import open_tracing

if TYPE_CHECKING:
    from tasks.serving.feedback import Feedback
    from tasks.serving.request_log import RequestLog, RequestLogConfig

log = logging.getLogger(__name__)

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BUFFER = 128 << 10  # bytes; glibc's own initial value, which then stays


@dataclass(frozen=True)
class ServerConfig:
    """Options of `verdict serve`."""

    model: str = CHAMPION_URI
    """registry address, version number, or a bundle's folder"""
    host: str = "127.0.0.1"
    port: int = 8080
    """0: a free one"""
    device: str = "auto"
    refresh_seconds: float = DEFAULT_REFRESH_S
    """between two polls of the registry"""
    max_batch: int = 64
    """sentences in a batch"""
    max_wait_ms: float = 2.0
    """that a request may wait to be batched with others"""
    queue: int = 131_072
    """tokens that may wait, of short requests and of longer ones each"""
    max_requests: int = 128
    """that may wait"""
    max_batch_tokens: int = 0
    """sentences of a batch times the tokens of its longest; 0: not limited"""
    page: bool = True
    """serve the demo page to browsers at /"""
    feedback: str = ""
    """file for flags of the page; empty: feedback/feedback.tsv in the folder of the stores"""
    refuse_truncated: bool = False
    """refuse sentences of more tokens than the model reads"""
    allowed_hosts: tuple[str, ...] = ()
    """host names that requests may be for, besides loopback names and `host`"""
    request_log: "RequestLogConfig | None" = None
    """None: requests are not logged"""
    challenger: ChallengerConfig | None = None
    """None: the champion is alone"""
    api_keys: str = ""
    """file of keys, see api_keys.py; empty: everybody may use the server"""
    client_rate: float = 0.0
    """sentences per second of each client; 0: no limit"""


def _log_with_model(served: LoadedModel) -> None:
    """Add the model's version and digest to every log line from here on."""
    log_format.bind_context(version=served.version, digest=served.digest)


def serve(config: ServerConfig, home: str) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted before are still answered.

    Raises:
        UsageError: if options contradict each other.
        VerdictError: if the address cannot be bound, the model cannot be loaded, or the page's library is missing.
    """
    _return_large_buffers()
    feedback = _open_feedback(config, home)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_SignalHandler())
        bound = stack.enter_context(bind_socket(config.host, config.port))  # before the model is loaded: fails at once
        hosts = AllowedHosts(bound.getsockname()[0], (config.host, *config.allowed_hosts))
        champion, app = open_application(stack, config, home, hosts, feedback)
        try:
            bound.listen(SOCKET_BACKLOG)
        except OSError as error:
            raise _not_bound(config.host, config.port, error) from error
        warn_of_open_access(config)
        stop.server = InferenceServer(app)
        print(f"{_describe_status(champion)} on {address_of(bound)} (Ctrl-C stops)", flush=True)
        stop.server.run(sockets=[bound])
        log.info("stopped; every request that was accepted before is answered")


def warn_of_open_access(config: ServerConfig) -> None:
    """Log a warning where a server listens beyond this machine and asks for no key."""
    if config.host not in LOOPBACK_HOSTS and not config.api_keys:
        log.warning("%s is reachable from other machines, without authentication", config.host)


def open_application(
    stack: contextlib.ExitStack, config: ServerConfig, home: str, hosts: AllowedHosts, feedback: "Feedback | None"
) -> tuple[Champion, FastAPI]:
    """Load the model, start what computes and counts, and build the application; `stack` stops all of it."""
    request_log = _open_request_log(config, stack)
    champion = stack.enter_context(
        Champion.open(
            config.model, config.refresh_seconds, config.device, home, require_model=False, on_load=_log_with_model
        )
    )
    batcher = _start_batcher(stack, config, champion)
    telemetry = ServerMetrics(champion.status, lambda: batcher.waiting)
    batcher.listeners.append(telemetry.count_batch)
    if request_log:
        request_log.on_write = telemetry.count_logged
        request_log.count_tokens = lambda sentences: champion.current().classifier.count_tokens(sentences)
        telemetry.follow_summary(request_log.folder)
    if feedback:
        feedback.listeners.append(telemetry.count_flag)
    extensions = _extend(stack, config, home, ServedChampion(champion, batcher, telemetry, feedback))
    limits = RequestLimits(refuse_truncated=config.refuse_truncated)
    app = build_app(champion, batcher, telemetry, limits, feedback, hosts, request_log, extensions)
    if feedback:
        stack.callback(app.state.page.close)
    return champion, app


def _start_batcher(stack: contextlib.ExitStack, config: ServerConfig, model: Champion) -> Batcher:
    waiting = (config.max_wait_ms / 1_000, config.queue, config.max_requests)
    batcher = Batcher(model.current, config.max_batch, *waiting, config.max_batch_tokens)
    stack.callback(batcher.close)
    return batcher


def _extend(stack: contextlib.ExitStack, config: ServerConfig, home: str, served: ServedChampion) -> Extensions:
    """Start what the options turn on."""
    api_keys = ApiKeys(config.api_keys) if config.api_keys else None
    tracing = open_tracing()
    canary = None
    if config.challenger:
        from tasks.serving.challenger_setup import deploy_challenger

        where = (config.refresh_seconds, config.device, home)
        challenger = stack.enter_context(open_challenger(config.challenger, *where))
        batcher = _start_batcher(stack, config, challenger) if config.challenger.share else None
        if batcher:
            batcher.traced = tracing is not None
        canary = deploy_challenger(stack, config.challenger, served, challenger, batcher, home)
    if tracing:
        stack.callback(tracing.close)
        served.batcher.traced = True
    rates = ClientRates(config.client_rate) if config.client_rate else None
    return Extensions(canary, api_keys, rates, tracing)


def _return_large_buffers() -> None:
    """Let the C library give each large buffer back to the system once it is freed.

    By itself glibc keeps larger and larger ones, so that each model and each large request leave some memory behind.
    """
    with contextlib.suppress(AttributeError):  # a C library without this function
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BUFFER)


def _open_feedback(config: ServerConfig, home: str) -> "Feedback | None":
    """Return the page's feedback file; None without a page, whose libraries may be missing then."""
    if not config.page:
        if config.feedback:
            raise UsageError("--feedback is an option of the page, which --no-page turns off; use only one of them")
        return None
    if not is_installed("gradio"):
        raise VerdictError("the page needs gradio, which is not installed; serve without it: verdict serve --no-page")
    from tasks.serving.feedback import FEEDBACK_FILE, Feedback

    return Feedback(config.feedback or f"{home}/{FEEDBACK_FILE}")


def _open_request_log(config: ServerConfig, stack: contextlib.ExitStack) -> "RequestLog | None":
    """Open the request log, to be closed after the last answer; None where requests are not logged."""
    if config.request_log is None:
        return None
    from tasks.serving.request_log import RequestLog  # imports pyarrow

    request_log = RequestLog(config.request_log)
    stack.callback(request_log.close)
    return request_log


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind an address; return its socket.

    Raises:
        VerdictError: if it is in use, or not an address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        try:
            # Connections in TIME_WAIT of a server that was just stopped would block the address for a minute.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise _not_bound(host, port, error) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _not_bound(host: str, port: int, error: OSError) -> VerdictError:
    reason = (error.strerror or str(error)).lower()
    return VerdictError(f"{host}:{port} cannot be bound ({reason}); name another: --port 0 takes a free one")


def _describe_status(champion: Champion) -> str:
    status = champion.status()
    loaded = f"version {status['version']}, {status['signature']}" if status["version"] else "none yet"
    return f"serving {champion.model}, {loaded},"


class _SignalHandler:
    """Ends the process with exit code 0 on SIGTERM and SIGINT, before, while and after the server runs."""

    def __init__(self) -> None:
        self.server: InferenceServer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to this thread only
            self._before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *raised: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: Any) -> None:
        """Handle a signal; a running uvicorn server has handlers of its own, and raises the signal again at its end."""
        if self.server is None:
            sys.exit(0)
        self.server.should_exit = True
