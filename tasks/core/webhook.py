"""Tells a chat channel or another program what happened: a JSON POST to the address in VERDICT_ALERT_URL.

The body holds `text`, which Slack and Mattermost show, and under `verdict` the same facts for programs. The address is
a secret, since whoever knows it may write to the channel: it is no setting, so no run records it, and no line shows
more of it than its host. What cannot be delivered is one warning, and never fails what it tells of.
"""

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

log = logging.getLogger(__name__)

URL_VARIABLE = "VERDICT_ALERT_URL"
TIMEOUT_S = 5.0  # seconds, all in all


def post(text: str, facts: dict[str, Any]) -> bool:
    """Send an alert where an address is set; return whether somebody took it.

    Args:
        text: what people read.
        facts: the same for programs: plain values.
    """
    url = os.environ.get(URL_VARIABLE, "").strip()
    return bool(url) and send_with_timeout(_host(url), lambda: _deliver(url, {"text": text, "verdict": facts}))


def send_with_timeout(name: str, deliver: Callable[[], str | None]) -> bool:
    """Deliver something in the time there is; where that fails, say so in one line.

    Args:
        name: of the receiver, as it may be shown.
        deliver: returns or raises what went wrong; of what it raises the kind is shown, and no message.
    """
    failures: list[str | None] = ["no answer in time"]

    def run() -> None:
        try:
            failures[:] = [deliver()]
        except Exception as error:  # whatever a receiver answers, the run that tells of itself goes on
            failures[:] = [type(error).__name__]

    # A server that answers byte by byte outlasts every time-out of a single read, so the thread is left behind.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="alert", daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if failures[0]:
        log.warning("alert to %s was not delivered: %s", name, failures[0])
    return not failures[0]


def _deliver(url: str, body: dict[str, Any]) -> str | None:
    """Post once; return what went wrong, in words that hold no part of the address."""
    if not url.startswith(("http://", "https://")):
        return "its address does not begin with http:// or https://"
    # Not httpx: it logs every address that it asks, and this one is a secret.
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return type(error.reason).__name__
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message to a host that nobody chose."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _host(url: str) -> str:
    found = re.match(r"https?://(?:[^/@]*@)?([A-Za-z0-9.-]+)(?::\d+)?(?:[/?#]|$)", url)
    return found[1] if found else f"the address in {URL_VARIABLE}"
