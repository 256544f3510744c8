"""The HTTP API: JSON of our own, the Open Inference Protocol V2, health checks and Prometheus metrics.

Routes await a batcher (batcher.py), so the event loop only reads and writes; errors become {"error": ...} with a code.
"""

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.core.errors import VerdictError
from tasks.serving import open_inference as protocol
from tasks.serving.api_keys import ApiKeyCheck, ApiKeys
from tasks.serving.batcher import Batcher, BatcherClosed, BatchReply, QueueFull
from tasks.serving.binary_tensors import JSON_LENGTH
from tasks.serving.bytes_in_flight import BytesInFlight
from tasks.serving.champion import Champion, NotReady
from tasks.serving.client_limits import ClientNames, ClientRates
from tasks.serving.host_names import AllowedHosts, HostCheck
from tasks.serving.judge_api import ErrorResponse, JudgeRequest, JudgeResponse, parse_judge_request
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_validation import RequestError, RequestLimits, read_body

if TYPE_CHECKING:
    from tasks.serving.canary import Canary
    from tasks.serving.feedback import Feedback
    from tasks.serving.request_log import RequestLog
    from tasks.serving.tracing import Tracing

log = logging.getLogger(__name__)

SCHEMA_REF = "#/components/schemas/{model}"  # where OpenAPI keeps the schemas of bodies
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "no JSON, or no request of this interface"},
    401: {"model": ErrorResponse, "description": "no valid API key, where the server wants one"},
    408: {"model": ErrorResponse, "description": "the body did not arrive in time"},
    413: {"model": ErrorResponse, "description": "too long a body, too many or too long sentences"},
    415: {"model": ErrorResponse, "description": "a compressed body"},
    421: {"model": ErrorResponse, "description": "the Host header names another server"},
    422: {
        "model": ErrorResponse,
        "description": "no list of strings, or a truncated sentence where the server refuses these",
    },
    429: {
        "model": ErrorResponse,
        "description": "the queue is full, or the client sent too much; see Retry-After",
    },
    503: {
        "model": ErrorResponse,
        "description": "no model is loaded yet, too many bytes are in flight, or the server is stopping",
    },
}


@dataclass(frozen=True)
class Extensions:
    """What options of the server add to the API; None: nothing."""

    canary: "Canary | None" = None
    """divides sentences between champion and challenger"""
    api_keys: ApiKeys | None = None
    """who may use the server"""
    rates: ClientRates | None = None
    """how much each client may use it"""
    tracing: "Tracing | None" = None
    """records what requests wait for"""


class InferenceApi:
    """Answers requests; each method is a route."""

    def __init__(
        self,
        champion: Champion,
        batcher: Batcher,
        telemetry: ServerMetrics,
        limits: RequestLimits,
        request_log: "RequestLog | None" = None,
        extensions: Extensions | None = None,
    ) -> None:
        self.champion, self.batcher, self.telemetry, self.limits = champion, batcher, telemetry, limits
        self.request_log, self.extensions = request_log, extensions or Extensions()

    async def about(self) -> JSONResponse:
        """Describe the server: its model, and where its interfaces are."""
        links = {"judge": "POST /v1/judge", "protocol": "/v2", "metrics": "/metrics", "documentation": "/openapi.json"}
        return JSONResponse({"model": self.champion.status(), **links})

    async def judge(self, request: Request) -> JSONResponse:
        """Judge sentences, all with one version of the model."""
        sentences = parse_judge_request(await self._read(request), self.limits)
        reply = await self.submit(sentences)
        return JSONResponse({"version": reply.version, "predictions": reply.answers})

    async def infer(self, name: str, request: Request, version: str = "") -> Response:
        """Judge sentences by the Open Inference Protocol."""
        self._check_name(name)
        if version:
            self._check_version(version, self.champion.current().version)
        json_length = request.headers.get(JSON_LENGTH)
        parsed, sentences = protocol.parse_infer_request(await self._read(request), self.limits, json_length)
        reply = await self.submit(sentences, "data", by_champion=bool(version))
        if version:  # another version may have been loaded meanwhile
            self._check_version(version, reply.version)
        body, length = protocol.infer_response(name, parsed, reply)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={JSON_LENGTH: str(length)}, media_type="application/octet-stream")

    async def server_metadata(self) -> JSONResponse:
        """Describe the server."""
        return JSONResponse(protocol.describe_server())

    async def model_metadata(self, name: str, version: str = "") -> JSONResponse:
        """Describe the model, its input and its outputs."""
        self._check_name(name)
        served = self.champion.current().version
        if version:
            self._check_version(version, served)
        return JSONResponse(protocol.describe_model(name, served))

    async def model_ready(self, name: str, version: str = "") -> JSONResponse:
        """Answer 200 where the model is loaded, 503 where it is not."""
        self._check_name(name)
        served = self.champion.status()["version"]
        if version and served is not None:
            self._check_version(version, served)
        ready = served is not None
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    async def live(self) -> JSONResponse:
        """Answer 200: the server runs."""
        return JSONResponse({"live": True})

    async def ready(self) -> JSONResponse:
        """Return the state of the model and of following its alias; 503 where none is loaded."""
        status = self.champion.status()
        ready = status["version"] is not None
        # The protocol's text names the field "live", its clients read "ready".
        return JSONResponse({"ready": ready, "live": True, **status}, 200 if ready else 503)

    async def metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(self.telemetry.text(), media_type=CONTENT_TYPE_LATEST)

    async def submit(self, sentences: list[str], field: str = "sentences", by_champion: bool = False) -> BatchReply:
        """Queue sentences and wait for their answers.

        Args:
            sentences: of one request.
            field: of the request that holds them, for error messages.
            by_champion: no other model may answer.

        Raises:
            NotReady, QueueFull, BatcherClosed: if they will not be answered.
            RequestError: 422 one is longer than the model reads, where the limits say that this is refused; 429 its
                client sent too many.
        """
        champion = self.champion.current().version  # raises at once where no model is loaded
        if self.extensions.rates:
            self.extensions.rates.take(len(sentences))
        started = time.perf_counter()
        if self.extensions.canary and not by_champion:
            reply = await self.extensions.canary.submit(sentences, champion)
        else:
            reply = await asyncio.wrap_future(self.batcher.submit(sentences))
        if self.extensions.tracing:
            self.extensions.tracing.add_stages(reply.stages)
        truncated = reply.truncated
        self.telemetry.count_answers(reply.answers)
        if truncated and self.limits.refuse_truncated:
            raise RequestError(
                422,
                f"{field}[{truncated[0]}] has more tokens than the {reply.max_length} that the model reads; shorten or "
                "split it, or start the server without --refuse-truncated",
            )
        if self.request_log:
            self.request_log.add(reply.answers, time.perf_counter() - started)
        return reply

    async def _read(self, request: Request) -> bytes:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return await read_body(request.stream(), headers, self.limits)

    def _check_name(self, name: str) -> None:
        if name != self.champion.name:
            raise RequestError(404, f"model {name[:40]!r} is not served; expected {self.champion.name!r}")

    def _check_version(self, wanted: str, served: str) -> None:
        if wanted != served:
            raise RequestError(404, f"version {wanted[:40]!r} is not served; expected {served!r}, or none")


class RequestMetricsMiddleware:
    """Counts and times every request, and turns unexpected exceptions into status 500 with one line of JSON."""

    def __init__(self, app: ASGIApp, telemetry: ServerMetrics) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except ClientDisconnect:
            code = code or 499  # nginx's code for a client that disconnected
        except Exception as error:
            log.error("%s %s: %s: %s", scope["method"], _route(scope), type(error).__name__, str(error)[:500])
            if os.environ.get("VERDICT_DEBUG") == "1":
                log.exception("traceback of the error")
            if not code:
                await _error(500, "internal error; the server's log has the details")(scope, receive, send_and_note)
        finally:
            self.telemetry.count_request(_route(scope), code, time.perf_counter() - started)


def build_app(
    champion: Champion,
    batcher: Batcher,
    telemetry: ServerMetrics,
    limits: RequestLimits | None = None,
    feedback: "Feedback | None" = None,
    hosts: AllowedHosts | None = None,
    request_log: "RequestLog | None" = None,
    extensions: Extensions | None = None,
) -> FastAPI:
    """Build the application; with feedback also the demo page, `app.state.page`, which the caller closes."""
    api = InferenceApi(champion, batcher, telemetry, limits or RequestLimits(), request_log, extensions)
    # FastAPI's pages of documentation load their scripts from a foreign host.
    app = FastAPI(
        title="Verdict",
        version=protocol.describe_server()["version"],
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    if feedback:
        from tasks.serving.demo_page import add_page  # imports libraries that the API does not need

        app.state.page = add_page(app, api.submit, feedback, api.limits)
    app.add_middleware(BytesInFlight, body=api.limits.body)
    if extensions and extensions.rates:
        app.add_middleware(ClientNames, rates=extensions.rates)
    if extensions and extensions.api_keys:
        app.add_middleware(ApiKeyCheck, keys=extensions.api_keys)
    app.add_middleware(HostCheck, hosts=hosts or AllowedHosts())
    app.add_middleware(RequestMetricsMiddleware, telemetry=telemetry)
    if extensions and extensions.tracing:
        from tasks.serving.tracing import RequestTracer

        app.add_middleware(RequestTracer, tracing=extensions.tracing)
    for kind in (VerdictError, HTTPException):
        app.add_exception_handler(kind, _to_response)
    _add_routes(app, api)
    _describe_bodies(app)
    return app


def _add_routes(app: FastAPI, api: InferenceApi) -> None:
    app.add_api_route("/", api.about, tags=["about"])
    app.add_api_route("/v1/judge", api.judge, methods=["POST"], tags=["judge"], **_bodies(JudgeRequest, JudgeResponse))
    for path in ("/healthz", "/v2/health/live"):
        app.add_api_route(path, api.live, tags=["health"])
    for path in ("/readyz", "/v2/health/ready"):
        app.add_api_route(path, api.ready, tags=["health"])
    app.add_api_route("/metrics", api.metrics, tags=["health"])
    app.add_api_route("/v2", api.server_metadata, tags=["protocol"])
    infer = _bodies(protocol.InferRequest, protocol.InferResponse)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_api_route(path, api.model_metadata, tags=["protocol"])
        app.add_api_route(f"{path}/ready", api.model_ready, tags=["protocol"])
        app.add_api_route(f"{path}/infer", api.infer, methods=["POST"], tags=["protocol"], **infer)


def _bodies(request: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    """Describe the bodies of a route to OpenAPI only: FastAPI reads a typed parameter without a limit of its size."""
    schema = {"$ref": SCHEMA_REF.format(model=request.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"openapi_extra": {"requestBody": body}, "responses": {200: {"model": response}, **ERRORS}}


def _describe_bodies(app: FastAPI) -> None:
    """Add the schemas of request bodies to the OpenAPI document, which is made when it is first fetched."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        bodies: list[tuple[type[BaseModel], Literal["validation"]]] = [
            (JudgeRequest, "validation"),
            (protocol.InferRequest, "validation"),
        ]
        document["components"]["schemas"] |= models_json_schema(bodies, ref_template=SCHEMA_REF)[1]["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _to_response(request: Request, error: Exception) -> Response:
    """Return the response for an error: its status code and {"error": ...}."""
    if isinstance(error, RequestError):
        return _error(error.status, str(error), error.headers)
    if isinstance(error, QueueFull):
        return _error(429, str(error), {"Retry-After": str(error.seconds)})
    if isinstance(error, NotReady | BatcherClosed):
        return _error(503, str(error), {"Retry-After": "5"})
    if isinstance(error, HTTPException):
        return _error(error.status_code, f"{error.detail}; see: GET /", dict(error.headers or {}))
    log.error("%s", error)
    return _error(500, str(error))


def _error(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    headers = headers or {}
    if "Retry-After" in headers:  # a client that waits so long may find its connection closed as idle
        headers = headers | {"Connection": "close"}
    return Response(json.dumps({"error": message}).encode(), code, headers, media_type="application/json")


def _route(scope: Scope) -> str:
    """Return the route's pattern; paths would make the number of metrics unbounded."""
    return str(getattr(scope.get("route"), "path", "unknown"))
