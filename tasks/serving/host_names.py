"""Answers only requests for this server's own host names.

A foreign site may let its name resolve to this machine (DNS rebinding): a browser then takes this server for a part of
that site, whose scripts may read answers and write feedback. The Host header still holds the foreign name.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.core.errors import UsageError
from tasks.serving.request_validation import MAX_REPEATED_CHARS

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
# Clusters probe and scrape each pod by its address; the answers hold no sentence.
PROBE_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics")
HOST = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\[\]:/@\s]+?)\.?)(?::\d*)?", re.IGNORECASE)


class AllowedHosts:
    """Host names that requests may be for."""

    def __init__(self, bound: str = "127.0.0.1", others: Sequence[str] = ()) -> None:
        """Collect loopback names, the bound address and further names.

        Args:
            bound: the address or name that the server listens on; of a wildcard like 0.0.0.0 every IP address is its
                own, because a foreign site needs a name.
            others: names, *.DOMAIN for all names below a domain, or * for any.

        Raises:
            UsageError: if one of `others` is something else.
        """
        for name in others:
            if not re.fullmatch(r"\*|(\*\.)?[^*:/@\s\[\]]+", name) and not _is_address(name):
                raise UsageError(
                    f"--allowed-host {name!r} is refused; expected a host name without scheme and port, "
                    "*.DOMAIN for all names below it, or *"
                )
        self.patterns = tuple(dict.fromkeys(name.lower() for name in (*LOOPBACK_HOSTS, bound, *others)))
        self._any_address = _is_address(bound) and ipaddress.ip_address(bound).is_unspecified

    def __contains__(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = (found["literal"] or found["name"]).lower()
        if self._any_address and _is_address(name):
            return True
        return any(_matches(name, pattern) for pattern in self.patterns)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _matches(name: str, pattern: str) -> bool:
    return pattern == "*" or name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))


class HostCheck:
    """ASGI middleware that refuses requests for foreign host names with status 421; probes of health pass."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["path"] in PROBE_PATHS or host in self.hosts:
            await self.app(scope, receive, send)
            return
        shown = repr(host[:MAX_REPEATED_CHARS])
        expected = ", ".join(self.hosts.patterns)
        message = f"host name {shown} is not this server's; expected {expected}, or start it with --allowed-host NAME"
        await JSONResponse({"error": message}, 421)(scope, receive, send)
