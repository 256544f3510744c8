"""Decides which requests reach the demo page: an allow-list of what it needs; everything else goes to the API.

Gradio serves far more than a page: uploads, files of the machine, proxies, sessions, an API of its own. Only three
kinds of requests are passed on to it: files of the page, calls that judge, and flags. Bodies are read within the API's
limits and rebuilt from the fields that are needed.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.core.errors import VerdictError
from tasks.serving.request_validation import RequestError, RequestLimits, read_body

log = logging.getLogger(__name__)

DEMO_FILES = ("/theme.css", "/manifest.json", "/favicon.ico")
DEMO_FOLDERS = ("/assets/", "/static/")
RUN_PATH, CALL_PATH = "/gradio_api/run/predict", "/gradio_api/component_server"
DEMO_ROUTE = SimpleNamespace(path="page")  # its name in metrics
# Gradio has inline scripts, and compiles its templates in the browser.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; frame-ancestors 'self'; form-action 'self'"
)
DEMO_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class LazyApp:
    """An application that is built in a thread at its first request, so that a server without visitors saves it."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._app: Future[ASGIApp] = Future()
        self._app.set_running_or_notify_cancel()  # a client that disconnects must not cancel it for the others
        self._thread = threading.Thread(target=self._work, args=(make,), name="page", daemon=True)

    async def get(self) -> ASGIApp:
        """Return the application once it is built; all callers must share one event loop.

        Raises:
            VerdictError: if it could not be built.
        """
        if self._thread.ident is None:
            self._thread.start()
        return await asyncio.wrap_future(self._app)

    def close(self) -> None:
        """Wait for the thread if it was started; an interpreter that exits while it imports may crash."""
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self, make: Callable[[], ASGIApp]) -> None:
        try:
            self._app.set_result(make())
        except Exception as error:
            log.error(
                "the page could not be built: %s: %s; the API is not affected", type(error).__name__, str(error)[:500]
            )
            self._app.set_exception(VerdictError("the page could not be built; the server's log says why"))


class DemoGateway:
    """ASGI middleware that passes the page's requests to the page and everything else to the API."""

    def __init__(
        self, app: ASGIApp, page: LazyApp, limits: RequestLimits, refuse: Callable[[VerdictError], dict[str, Any]]
    ) -> None:
        """Set what requests are passed to.

        Args:
            app: the API.
            page: the page.
            limits: of a body.
            refuse: turns an error into what the page shows instead of answers.
        """
        self.app, self.page, self.limits, self.refuse = app, page, limits, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or not _is_demo_request(scope):
            await self.app(scope, receive, send)
            return
        inner: Scope = {**scope}  # the page's own routes must not show in metrics
        scope["route"] = DEMO_ROUTE
        try:
            if scope["method"] == "POST":
                inner, receive = await self._rewrite(inner, receive)
            page = await self.page.get()
        except VerdictError as error:
            await self._explain(scope, error)(scope, receive, send)
            return

        async def protect(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(DEMO_HEADERS)
            await send(message)

        await page(inner, receive, protect)

    def _explain(self, scope: Scope, error: VerdictError) -> JSONResponse:
        """Return an error with its code; as an answer where a person caused it, since Gradio shows no error codes."""
        code, headers = (error.status, error.headers) if isinstance(error, RequestError) else (500, {})
        if scope["path"].rstrip("/") == RUN_PATH and code in (408, 413):
            return JSONResponse({"data": [self.refuse(error)], "is_generating": False}, headers=headers)
        return JSONResponse({"error": str(error)}, code, headers)

    async def _rewrite(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Replace the body of a request by one that holds only the fields that the page sends.

        Raises:
            RequestError: if it comes from another site, exceeds the limits, or is not one of the page's.
        """
        headers = Headers(scope=scope)
        if _is_foreign(headers):
            raise RequestError(403, "the request comes from a page of another site; open this server's page")
        sent = await read_body(Request(scope, receive).stream(), dict(headers), self.limits)
        body = json.dumps(_clean(scope["path"], _parse(sent))).encode()
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return {**scope, "headers": kept}, replay


def _is_demo_request(scope: Scope) -> bool:
    """Check whether a request is the page's; at / a client that accepts HTML gets the page, others the API."""
    path = scope["path"]
    if scope["method"] == "POST":
        return path.rstrip("/") in (RUN_PATH, CALL_PATH)
    if scope["method"] not in ("GET", "HEAD"):
        return False
    if path == "/":
        return "text/html" in Headers(scope=scope).get("accept", "")
    return path in DEMO_FILES or path.startswith(DEMO_FOLDERS)


def _is_foreign(headers: Headers) -> bool:
    """Check whether a browser sends this for another site, which must not write feedback for its user (CSRF)."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not valid JSON") from None


def _clean(path: str, sent: Any) -> dict[str, Any]:
    """Return the fields of a request of the page that are needed; no session is kept.

    Raises:
        RequestError: if it is not one of the page's requests.
    """
    data, number = (sent.get("data"), sent.get("fn_index")) if isinstance(sent, dict) else (None, None)
    if path.rstrip("/") == CALL_PATH:
        if isinstance(data, dict) and type(sent.get("component_id")) is int and sent.get("fn_name") == "flag":
            flag = {name: data.get(name) for name in ("sentence", "label")}
            return {"data": flag, "component_id": sent["component_id"], "fn_name": "flag", "session_hash": "page"}
    elif type(number) is int and isinstance(data, list) and len(data) == 1 and type(data[0]) in (str, int):
        return {"data": data, "fn_index": number}  # a text, or the index of an example
    raise RequestError(422, "this is no request of the page; for programs: POST /v1/judge")
