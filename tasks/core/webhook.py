"""Sends alerts to a chat channel or another program: a JSON POST to the address in VERDICT_ALERT_URL.

The body has `text`, which Slack and Mattermost show, and `verdict` with the same facts for programs. The address is a
secret, because whoever knows it may write to the channel: it is not a setting, so that no run records it, and only its
host is logged. An alert that cannot be delivered is logged as a warning and never raises.
"""

import base64
import contextvars
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

URL_VARIABLE = "VERDICT_ALERT_URL"
TIMEOUT_S = 5.0  # of the whole delivery


def post(text: str, facts: dict[str, Any]) -> bool:
    """Send an alert if an address is set; return whether it was delivered.

    Args:
        text: for people.
        facts: the same for programs, as plain values.
    """
    url = os.environ.get(URL_VARIABLE, "").strip()
    return bool(url) and send_with_timeout(_host(url), lambda: _deliver(url, {"text": text, "verdict": facts}))


def send_with_timeout(name: str, deliver: Callable[[], str | None]) -> bool:
    """Call `deliver` with a timeout of TIMEOUT_S; log a failure and return whether it succeeded.

    Args:
        name: of the receiver, for the log.
        deliver: returns what failed, or None; only the class of an exception is logged: its message may hold secrets.
    """
    failures: list[str | None] = ["no answer in time"]

    def run() -> None:
        try:
            failures[:] = [deliver()]
        except Exception as error:  # no receiver may fail the run that reports to it
            failures[:] = [type(error).__name__]

    # A server that answers byte by byte never reaches the timeout of a single read, so the thread is abandoned.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="alert", daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if failures[0]:
        log.warning("alert to %s was not delivered: %s", name, failures[0])
    return not failures[0]


def _deliver(url: str, body: dict[str, Any]) -> str | None:
    """Post once; return what failed, without any part of the address."""
    if not url.startswith(("http://", "https://")):
        return "its address does not start with http:// or https://"
    # Not httpx, which logs every address: this one is a secret.
    url, headers = _split_credentials(url)
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return type(error.reason).__name__
    return None


def _split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return an address without name and password, which urllib would resolve as part of the host, and their header."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    name, _, password = user.partition(":")
    credentials = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {credentials}"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: they would send the alert to a host that nobody configured."""

    def redirect_request(self, *_: Any) -> None:
        """Return None, which ends the request with the redirect's status."""


def _host(url: str) -> str:
    found = re.match(r"https?://(?:[^/@]*@)?([A-Za-z0-9.-]+)(?::\d+)?(?:[/?#]|$)", url)
    return found[1] if found else f"the address in {URL_VARIABLE}"
