"""Bounds the sentences per second of each client: of each API key, or of each address where there are no keys.

Each client has a token bucket of ten seconds' sentences. A request is let in while the bucket is above zero, and then
takes its sentences out, below zero too: a rate smaller than a request slows its client down and does not lock it out.
"""

import collections
import contextvars
import math
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.serving.api_keys import KEY_NAME
from tasks.serving.request_validation import RequestError

BURST_S = 10.0  # whose sentences a client may send at once
MAX_CLIENTS = 10_000  # whose buckets are kept; the one that was used least recently is full again soon

_client: contextvars.ContextVar[str | None] = contextvars.ContextVar("client", default=None)


class ClientRates:
    """The buckets of all clients; used by one event loop."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the rate.

        Args:
            rate: sentences per second.
            clock: returns seconds.
        """
        self.rate, self.burst, self._clock = rate, rate * BURST_S, clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()  # level, time

    def level(self, client: str) -> float:
        """Return how many sentences a client may send now; negative while it has to wait."""
        level, then = self._buckets.get(client, (self.burst, 0.0))
        return min(self.burst, level + (self._clock() - then) * self.rate)

    def take(self, sentences: int) -> None:
        """Count sentences of the current request's client.

        Raises:
            RequestError: 429 if it sent too many.
        """
        client = _client.get()
        if client is None:
            return
        level = self.level(client)
        if level <= 0:
            seconds = math.ceil(-level / self.rate) or 1
            raise RequestError(
                429,
                f"this client may send {self.rate:g} sentences per second; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )
        self._buckets[client] = (level - sentences, self._clock())
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)

    def headers(self, client: str) -> dict[str, str]:
        """Return the headers that announce the limit: the bucket's size, what is in it, seconds until it is full."""
        level = self.level(client)
        return {
            "RateLimit-Limit": str(int(self.burst)),
            "RateLimit-Remaining": str(max(0, int(level))),
            "RateLimit-Reset": str(math.ceil((self.burst - level) / self.rate)),
        }


class ClientNames:
    """ASGI middleware that names the client of each request, and announces its limit in the answer."""

    def __init__(self, app: ASGIApp, rates: ClientRates) -> None:
        self.app, self.rates = app, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = scope.get(KEY_NAME) or (scope.get("client") or ("unknown",))[0]
        taken = _client.set(name)

        async def announce(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "POST":
                MutableHeaders(scope=message).update(self.rates.headers(name))
            await send(message)

        try:
            await self.app(scope, receive, announce)
        finally:
            _client.reset(taken)
