"""What a machine does during a run, on the run's page; where it cannot be had, the run goes on without it."""

import time
from pathlib import Path

import pytest
from shelves import new_store

from tasks.registry import system_metrics as usage
from tasks.registry import tracking as runs
from tasks.registry.mlflow_client import MlflowStore, connect

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowStore:
    monkeypatch.setenv(SWITCH, "true")
    monkeypatch.setattr(usage, "SAMPLE_INTERVAL_S", 0.05)
    monkeypatch.setattr(usage, "SAMPLES_PER_POINT", 2)
    return new_store(empty_store, tmp_path)


def recorded(store: MlflowStore, run: str) -> dict[str, float]:
    with connect(store) as client:
        metrics = client.get_run(run).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("system/")}


def test_cpu_memory_and_disk_are_curves_of_the_run(store: MlflowStore) -> None:
    run = runs.open_run(store, "a" * 16, {}, {})
    with usage.record_system_metrics(store, run):
        deadline = time.monotonic() + 30
        while not recorded(store, run) and time.monotonic() < deadline:
            time.sleep(0.1)
    seen = recorded(store, run)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= seen.keys()
    assert 0 <= seen["system/cpu_utilization_percentage"] <= 100
    assert seen["system/disk_available_megabytes"] > 0


def test_a_run_that_is_gone_on_with_goes_on_with_its_curves(store: MlflowStore) -> None:
    run = runs.open_run(store, "a" * 16, {}, {})
    for _ in range(2):
        before = recorded(store, run)
        with usage.record_system_metrics(store, run):
            deadline = time.monotonic() + 30
            while recorded(store, run) == before and time.monotonic() < deadline:
                time.sleep(0.1)
    with connect(store) as client:
        steps = [entry.step for entry in client.get_metric_history(run, "system/cpu_utilization_percentage")]
    assert len(steps) >= 2
    assert len(set(steps)) == len(steps)


def test_nothing_is_sampled_where_mlflow_is_told_not_to(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "false")
    run = runs.open_run(store, "a" * 16, {}, {})
    with usage.record_system_metrics(store, run):
        time.sleep(0.3)
    assert recorded(store, run) == {}


def test_a_store_that_goes_away_stops_the_curves_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(usage, "SAMPLE_INTERVAL_S", 0.05)
    done = False
    with usage.record_system_metrics(MlflowStore(uri="http://127.0.0.1:9", artifacts=""), "a" * 32):
        time.sleep(0.3)
        done = True
    assert done


def test_a_machine_that_cannot_be_asked_is_told_once(
    store: MlflowStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no psutil here")

    monkeypatch.setattr(usage, "SystemMetricsMonitor", refuse)
    with usage.record_system_metrics(store, "a" * 32):
        pass
    assert caplog.messages == ["system metrics are not recorded: no psutil here"]


def test_errors_of_the_work_are_not_swallowed(store: MlflowStore) -> None:
    run = runs.open_run(store, "a" * 16, {}, {})
    with pytest.raises(ZeroDivisionError), usage.record_system_metrics(store, run):
        _ = 1 / 0
