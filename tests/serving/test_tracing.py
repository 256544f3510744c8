"""A trace shows what a request waited for; where a collector is named, it gets it, else nothing is imported."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from challengers import ScriptedAddress, ScriptedModel
from fastapi.testclient import TestClient
from http_server import free_port
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tasks.core.errors import UsageError
from tasks.serving import tracing
from tasks.serving.batcher import Batcher
from tasks.serving.champion import Champion
from tasks.serving.metrics import ServerMetrics
from tasks.serving.routes import Extensions, build_app
from tasks.serving.tracing import ENDPOINT_VARIABLES, Tracing, open_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENDPOINT_VARIABLES, "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


def ask(tracing: Tracing, *requests: tuple[str, str, dict[str, Any]], max_batch: int = 64) -> None:
    """Send requests to an application in this process, and end the recording."""
    address: Any = ScriptedAddress(ScriptedModel("1", "cat"))
    batcher = Batcher(address.current, max_batch, max_wait=0.0)
    batcher.traced = True
    telemetry = ServerMetrics(address.status, lambda: batcher.waiting)
    app = build_app(address, batcher, telemetry, extensions=Extensions(tracing=tracing))
    with TestClient(app, base_url="http://localhost") as client:
        for method, path, options in requests:
            client.request(method, path, **options)
    batcher.close()
    tracing.close()


def test_a_request_is_a_span_with_what_it_waited_for() -> None:
    exporter = InMemorySpanExporter()
    ask(
        Tracing(exporter),
        (
            "POST",
            "/v1/judge",
            {"json": {"sentences": ["a cat"]}, "headers": {"traceparent": f"00-{TRACE}-{PARENT}-01"}},
        ),
        ("GET", "/healthz", {}),
        ("GET", "/nowhere?key=secret", {}),
    )
    queue, tokenise, run, judged, lost = exporter.get_finished_spans()
    assert [span.name for span in (queue, tokenise, run, judged, lost)] == [
        "queue", "tokenise", "run", "POST /v1/judge", "GET",
    ]  # fmt: skip
    assert (f"{judged.context.trace_id:032x}", f"{judged.parent.span_id:016x}") == (TRACE, PARENT)
    assert {span.parent.span_id for span in (queue, tokenise, run)} == {judged.context.span_id}
    times = [judged.start_time, queue.start_time, queue.end_time, tokenise.end_time, run.end_time, judged.end_time]
    assert times == sorted(times)
    assert (tokenise.start_time, run.start_time) == (queue.end_time, tokenise.end_time)
    assert dict(judged.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.route": "/v1/judge",
    }
    assert lost.attributes["http.response.status_code"] == 404
    assert "secret" not in str(dict(lost.attributes))
    assert judged.resource.attributes["service.name"] == "verdict"


def test_a_long_request_waits_for_each_of_its_pieces() -> None:
    exporter = InMemorySpanExporter()
    ask(Tracing(exporter), ("POST", "/v1/judge", {"json": {"sentences": ["a cat"] * 5}}), max_batch=2)
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["queue", *["tokenise", "run"] * 3, "POST /v1/judge"]


def test_a_model_says_when_its_sentences_are_tokens(champion: Champion) -> None:
    calls: list[int] = []
    plain = champion.current().predict(["the cat sees the dog"])
    assert champion.current().predict(["the cat sees the dog"], lambda: calls.append(1)) == plain
    assert calls == [1]


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent to /v1/traces."""

    received: list[tuple[str, ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_named_collector_gets_the_spans(collector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "judge-1")
    tracing = open_tracing()
    assert tracing
    ask(tracing, ("POST", "/v1/judge", {"json": {"sentences": ["a cat"]}}))
    ((path, sent),) = Collector.received
    (resource,) = sent.resource_spans
    assert path == "/v1/traces"
    assert [span.name for span in resource.scope_spans[0].spans] == ["queue", "tokenise", "run", "POST /v1/judge"]
    assert "judge-1" in {each.value.string_value for each in resource.resource.attributes}


def test_a_collector_that_does_not_answer_holds_up_nobody_who_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "TRACES_CLOSE_S", 0.3)
    monkeypatch.setenv(ENDPOINT_VARIABLES[1], f"http://127.0.0.1:{free_port()}")
    opened = open_tracing()
    assert opened is not None
    opened.tracer.start_span("request").end()
    started = time.monotonic()
    opened.close()
    assert time.monotonic() - started < 2.5


def test_without_a_collector_nothing_is_recorded_or_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, tasks.serving.tracing as t; t.open_tracing(); print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracing() is None


def test_another_protocol_and_a_missing_exporter_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match="its exporter is not installed; unset it, or run: pip install"):
        open_tracing()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(UsageError, match="'grpc'; expected http/protobuf, or unset"):
        open_tracing()
