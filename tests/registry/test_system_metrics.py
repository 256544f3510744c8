"""System metrics of a run; where they cannot be measured or logged, the run continues without them."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from registry_store import new_store

from tasks.registry import system_metrics, tracking
from tasks.registry.mlflow_client import connect
from tasks.registry.store import MlflowStore

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowStore:
    monkeypatch.setenv(SWITCH, "true")
    monkeypatch.setattr(system_metrics, "SAMPLE_INTERVAL_S", 0.05)
    monkeypatch.setattr(system_metrics, "SAMPLES_PER_POINT", 2)
    return new_store(empty_store, tmp_path)


def recorded(store: MlflowStore, run: str) -> dict[str, float]:
    with connect(store) as client:
        metrics = client.get_run(run).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("system/")}


def test_cpu_memory_and_disk_are_metrics_of_the_run(store: MlflowStore) -> None:
    run = tracking.open_run(store, "a" * 16, {}, {})
    with system_metrics.record_system_metrics(store, run):
        deadline = time.monotonic() + 30
        while not recorded(store, run) and time.monotonic() < deadline:
            time.sleep(0.1)
    seen = recorded(store, run)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= seen.keys()
    assert 0 <= seen["system/cpu_utilization_percentage"] <= 100
    assert seen["system/disk_available_megabytes"] > 0


def test_a_resumed_run_continues_the_steps_of_its_metrics(store: MlflowStore) -> None:
    run = tracking.open_run(store, "a" * 16, {}, {})
    for _ in range(2):
        before = recorded(store, run)
        with system_metrics.record_system_metrics(store, run):
            deadline = time.monotonic() + 30
            while recorded(store, run) == before and time.monotonic() < deadline:
                time.sleep(0.1)
    with connect(store) as client:
        steps = [entry.step for entry in client.get_metric_history(run, "system/cpu_utilization_percentage")]
    assert len(steps) >= 2
    assert len(set(steps)) == len(steps)


def test_nothing_is_sampled_where_it_is_switched_off(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "false")
    run = tracking.open_run(store, "a" * 16, {}, {})
    with system_metrics.record_system_metrics(store, run):
        time.sleep(0.3)
    assert recorded(store, run) == {}


RUN = {"info": {"run_id": "a" * 32, "experiment_id": "0", "status": "RUNNING", "lifecycle_stage": "active"}, "data": {}}


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[str], threading.Event]]:
    """A server that answers one request for a run, and each later one with 500, once an event is set.

    Yields its address, the paths of the requests, and the event.
    """
    paths: list[str] = []
    may_fail = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            body = json.dumps({"run": RUN}).encode() if len(paths) == 1 else b""
            if not body:
                may_fail.wait(30)
            self.send_response(200 if body else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths, may_fail
        may_fail.set()
        server.shutdown()
        thread.join()


def test_a_store_that_fails_ends_the_monitor_and_not_the_work(
    failing_server: tuple[str, list[str], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address, paths, may_fail = failing_server
    monkeypatch.setenv(SWITCH, "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(system_metrics, "SAMPLE_INTERVAL_S", 0.05)
    with system_metrics.record_system_metrics(MlflowStore(uri=address, artifacts=""), "a" * 32):
        monitors = [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
        may_fail.set()  # not before: the first error ends the monitor
        deadline = time.monotonic() + 30
        while len(paths) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(monitors) == 1  # it had begun
    assert not monitors[0].is_alive()
    assert len(paths) == 2
    assert all("runs/get" in path for path in paths)
    assert caplog.messages == []


def test_a_machine_that_cannot_be_measured_is_one_warning(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no psutil here")

    monkeypatch.setattr(system_metrics, "SystemMetricsMonitor", refuse)
    with system_metrics.record_system_metrics(store, "a" * 32):
        pass
    assert caplog.messages == ["system metrics are not recorded: no psutil here"]


def test_errors_of_the_work_are_not_swallowed(store: MlflowStore) -> None:
    run = tracking.open_run(store, "a" * 16, {}, {})
    with pytest.raises(ZeroDivisionError), system_metrics.record_system_metrics(store, run):
        _ = 1 / 0
