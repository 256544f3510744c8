#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2 with opentelemetry-exporter-otlp-proto-http 1.45.2. Python 3.11 or later.
#
# Behaviour: a program that ends while its collector does not answer is held up by `TracerProvider.shutdown()`, without a
# way to bound it: the batch processor first exports what is left, and the exporter tries again with pauses of 1, 2 and 4
# s before it gives up. `shutdown()` of the exporter itself, called from another thread meanwhile, ends the pauses.
#
# Seen:
#   closed at once without spans: True
#   held up by more than 2 s with one span: True
#   closed within 2 s where another thread shuts the exporter down: True
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check opentelemetry-sdk==1.45.2 \
  opentelemetry-exporter-otlp-proto-http==1.45.2 || exit 2
cat > show.py <<'PY'
import logging
import socket
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.disable()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{probe.getsockname()[1]}/v1/traces"  # nobody listens there


def seconds(spans, bound=None):
    provider, exporter = TracerProvider(shutdown_on_exit=False), OTLPSpanExporter(endpoint=address)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for _ in range(spans):
        provider.get_tracer("show").start_span("request").end()
    started = time.monotonic()
    if bound:
        threading.Timer(bound, exporter.shutdown).start()
    provider.shutdown()
    return time.monotonic() - started


print(f"closed at once without spans: {seconds(0) < 1}")
print(f"held up by more than 2 s with one span: {seconds(1) > 2}")
print(f"closed within 2 s where another thread shuts the exporter down: {seconds(1, bound=0.5) < 2}")
PY
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen:/,/^set/s/^#   //p' "$script")
