"""Which requests reach the try-it page, and what of them: a list of what the page needs, everything else goes on.

Gradio serves far more than a page: uploads, files of the machine, proxies, sessions, an API of its own. Of all that,
three kinds of requests get through, their bodies read within the API's limits and written anew.
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
ROUTE = SimpleNamespace(path="page")  # what metrics call it
# Its scripts stand in the page, and Gradio compiles its templates in the browser.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; frame-ancestors 'self'; form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class LazyApp:
    """Something that a thread makes when it is first asked for; servers that nobody looks at need not carry it."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._made: Future[ASGIApp] = Future()
        self._made.set_running_or_notify_cancel()  # who waits and goes away must not cancel it for the others
        self._thread = threading.Thread(target=self._work, args=(make,), name="page", daemon=True)

    async def get(self) -> ASGIApp:
        """Return it, once it is there; to be asked from one event loop.

        Raises:
            VerdictError: if it could not be made.
        """
        if self._thread.ident is None:
            self._thread.start()
        return await asyncio.wrap_future(self._made)

    def close(self) -> None:
        """Wait for the thread, if it works; an interpreter that ends while one imports may crash."""
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self, make: Callable[[], ASGIApp]) -> None:
        try:
            self._made.set_result(make())
        except Exception as error:
            log.error("there is no page: %s: %s; the rest answers", type(error).__name__, str(error)[:500])
            self._made.set_exception(VerdictError("the page could not be built; the server's log says why"))


class DemoGateway:
    """Answers what belongs to the page with it, and lets the API answer everything else."""

    def __init__(
        self, app: ASGIApp, page: LazyApp, limits: RequestLimits, refuse: Callable[[VerdictError], dict[str, Any]]
    ) -> None:
        """Take what is behind.

        Args:
            app: the API.
            page: the page.
            limits: of a body.
            refuse: turns an error into what stands in the place of answers.
        """
        self.app, self.page, self.limits, self.refuse = app, page, limits, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or not _is_demo_request(scope):
            await self.app(scope, receive, send)
            return
        inner: Scope = {**scope}  # the page's own routes must not show in metrics
        scope["route"] = ROUTE
        try:
            if scope["method"] == "POST":
                inner, receive = await self._rewrite(inner, receive)
            page = await self.page.get()
        except VerdictError as error:
            await self._explain(scope, error)(scope, receive, send)
            return

        async def protect(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await page(inner, receive, protect)

    def _explain(self, scope: Scope, error: VerdictError) -> JSONResponse:
        """Turn an error into its code; Gradio shows none of that, so that what people may do comes as an answer."""
        code, headers = (error.status, error.headers) if isinstance(error, RequestError) else (500, {})
        if scope["path"].rstrip("/") == RUN_PATH and code in (408, 413):
            return JSONResponse({"data": [self.refuse(error)], "is_generating": False}, headers=headers)
        return JSONResponse({"error": str(error)}, code, headers)

    async def _rewrite(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Read a body, and write one that holds nothing but what the page sends.

        Raises:
            Refused: if it comes from another site, is beyond the limits, or is none of the page's.
        """
        headers = Headers(scope=scope)
        if _is_foreign(headers):
            raise RequestError(403, "this came from another site's page; open this one")
        sent = await read_body(Request(scope, receive).stream(), dict(headers), self.limits)
        body = json.dumps(_clean(scope["path"], _parse(sent))).encode()
        kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-type", b"content-length")]
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return {**scope, "headers": kept}, replay


def _is_demo_request(scope: Scope) -> bool:
    """Tell whether a request is the page's; at the root browsers get the page, programs the API."""
    path = scope["path"]
    if scope["method"] == "POST":
        return path.rstrip("/") in (RUN_PATH, CALL_PATH)
    if scope["method"] not in ("GET", "HEAD"):
        return False
    if path == "/":
        return "text/html" in Headers(scope=scope).get("accept", "")
    return path in DEMO_FILES or path.startswith(DEMO_FOLDERS)


def _is_foreign(headers: Headers) -> bool:
    """Tell whether a browser sends this for another site, which must not write feedback in a person's name."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not valid JSON") from None


def _clean(path: str, asked: Any) -> dict[str, Any]:
    """Return a request of the page without what it does not need; no session is kept for anybody.

    Raises:
        Refused: if it is none.
    """
    data, number = (asked.get("data"), asked.get("fn_index")) if isinstance(asked, dict) else (None, None)
    if path.rstrip("/") == CALL_PATH:
        if isinstance(data, dict) and type(asked.get("component_id")) is int and asked.get("fn_name") == "flag":
            flag = {name: data.get(name) for name in ("sentence", "label")}
            return {"data": flag, "component_id": asked["component_id"], "fn_name": "flag", "session_hash": "page"}
    elif type(number) is int and isinstance(data, list) and len(data) == 1 and type(data[0]) in (str, int):
        return {"data": data, "fn_index": number}  # a text, or an example's number
    raise RequestError(422, "this is no request of the page; programs ask: POST /v1/judge")
