"""Connections of the HTTP server: bounded in number and time, and ended without cutting off a request.

uvicorn's own bound (`limit_concurrency`) refuses probes of health with everything else, and it waits for ever for a
client that sends nothing. Here each new connection is accepted; beyond the bound, the one that has waited longest for
its client is closed instead, so that clients which send nothing keep nobody out.
"""

import asyncio
import errno
import logging
import math
import resource
import socket
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1_024
SOCKET_BACKLOG = 2_048  # connections that the system keeps until they are accepted
ACCEPTED_AT_ONCE = 64  # before one of them is looked at
HEAD_S = 10  # for the head of a request to arrive, from the connection or from its first byte
KEEP_ALIVE_S = 5  # for the next request on a connection
UNREAD_S = 30  # that a client may leave its answer unread
SHUTDOWN_GRACE_S = 30  # for requests to finish after a signal
ACCEPT_LOG_S = 60  # between two log lines about connections that cannot be accepted
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def max_connections() -> int:
    """Return how many connections are kept: at most half of the files that the process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class BoundedConnection(H11Protocol):
    """A client's connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bound, self.limit_concurrency = self.limit_concurrency, None  # uvicorn's own check would refuse probes
        self._timer: asyncio.TimerHandle | None = None
        self._half_closed = False
        self.waits_since = math.inf  # by the event loop's clock; inf: this connection is not closed for others

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send something before it can be answered, or to read what it was answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; beyond the bound, close the one that has waited longest."""
        super().connection_made(transport)
        self._start_timer(HEAD_S, transport.close)
        if self._bound is not None and len(self.connections) > self._bound:
            close_longest_waiting(self.connections)
        self.waits_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Read from the client; a head that was begun has to be completed in time."""
        super().data_received(data)
        if self.flow.write_paused:
            return  # the timer is that of the answer, which the client does not read
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer(HEAD_S, self.transport.close)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for an answer that the client still waits for: it has closed its sending side only."""
        self._half_closed = True
        return not self.waits_for_client

    def on_response_complete(self) -> None:
        """Wait for the next request, unless none can come."""
        self.waits_since = self.loop.time()
        super().on_response_complete()
        if self._half_closed and self.waits_for_client:
            self.transport.close()

    def pause_writing(self) -> None:
        """Give the client some time to read what it was answered."""
        super().pause_writing()
        self._start_timer(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self, seconds: float, then: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def close_longest_waiting(connections: set[Any]) -> None:
    """Close the connection that has waited longest for its client; none where all clients wait for an answer."""
    waiting = [each for each in connections if each.waits_for_client and each.waits_since < math.inf]
    if waiting:
        longest = min(waiting, key=lambda each: each.waits_since)
        longest.waits_since = math.inf
        longest.transport.abort()


class InferenceServer(uvicorn.Server):
    """An HTTP server that bounds its connections, and announces its end to clients that keep theirs."""

    def __init__(self, app: ASGIApp, connections: int = 0) -> None:
        """Configure the server; it logs errors only.

        Args:
            app: answers the requests.
            connections: that are kept at a time; 0 for `max_connections()`.
        """
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # uvloop, which comes with Ray, logs and accepts in other ways
                http=BoundedConnection,
                ws="none",
                limit_concurrency=connections or max_connections(),
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
                log_config=None,
                log_level="error",
                access_log=False,
                lifespan="off",
            )
        )
        self._logged = float("-inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        asyncio.get_running_loop().set_exception_handler(self._on_exception)
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(SOCKET_BACKLOG)  # asyncio takes one number for this and for what it accepts at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, answer with `Connection: close`, and end once all are closed."""
        for server in self.servers:
            server.close()
        self.server_state.default_headers.append(CLOSE_HEADER)
        connections: set[Any] = self.server_state.connections  # which uvicorn types as any of its protocols
        for connection in connections:
            if connection.cycle is not None and not connection.cycle.response_started:
                connection.cycle.default_headers = self.server_state.default_headers
        deadline = time.monotonic() + KEEP_ALIVE_S
        while connections and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log once in a while that no file is left for a connection, which asyncio reports again and again."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED:
            loop.default_exception_handler(context)
            return
        close_longest_waiting(self.server_state.connections)
        if loop.time() > self._logged + ACCEPT_LOG_S:
            self._logged = loop.time()
            log.error("connections wait to be accepted: %s; raise the limit of open files (ulimit -n)", error.strerror)
