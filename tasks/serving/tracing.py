"""Traces of requests in OpenTelemetry's protocol (OTLP over HTTP): a span for each request, and for what it waited for.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a collector; the other standard
variables (headers, timeout, sampler, resource attributes) hold too. A trace that a client began (W3C `traceparent`) is
continued.
"""

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.core.errors import UsageError
from tasks.serving.batcher import BatchStage
from tasks.serving.host_names import PROBE_PATHS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE_NAME = "verdict"  # unless OTEL_SERVICE_NAME is set
TRACES_CLOSE_S = 2.0
SERVER_ERROR = 500  # from this status code on the server failed, not the client


def open_tracing() -> "Tracing | None":
    """Return what records traces; None where no collector is named.

    Raises:
        UsageError: if the exporter is not installed, or the variables ask for a protocol that it does not speak.
    """
    if not any(os.environ.get(name) for name in ENDPOINT_VARIABLES) or _is_disabled():
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; expected http/protobuf, or unset")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise UsageError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and its exporter is not installed; unset it, or run: pip install "
            "'verdict-mlops[tracing]'"
        ) from None
    return Tracing(OTLPSpanExporter())


def _is_disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"


class Tracing:
    """Records spans and sends them to a collector, in a thread of its own."""

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._exporter = exporter
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE_NAME}
        self.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("tasks.serving")

    def add_stages(self, stages: Iterable[BatchStage]) -> None:
        """Add what a request waited for to its span, the current one."""
        for stage in stages:
            self.tracer.start_span(stage.name, start_time=stage.start_ns).end(stage.end_ns)

    def close(self) -> None:
        """Send what is left; a collector that does not answer is not tried for longer than TRACES_CLOSE_S."""
        timer = threading.Timer(TRACES_CLOSE_S, self._exporter.shutdown)  # which ends its pauses between tries
        timer.start()
        self.provider.shutdown()
        timer.cancel()


class RequestTracer:
    """ASGI middleware that records a span for each request, except probes of health."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app, self.tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] in PROBE_PATHS:
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        method = scope["method"]
        facts = {"http.request.method": method, "url.scheme": scope["scheme"]}
        with self.tracing.tracer.start_as_current_span(method, parent, SpanKind.SERVER, facts) as span:

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= SERVER_ERROR:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self.app(scope, receive, note)
            finally:
                if route := getattr(scope.get("route"), "path", ""):  # the path itself may be anything
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
