"""One stage for all tests of the services, and a record of how long everything took."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

from stage import ROOT, Clock, Stage


@pytest.fixture(scope="session")
def clock() -> Iterator[Clock]:
    """Times what a test names; SERVICES_TIMINGS=FILE keeps the record."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    yield timed
    print(f"\nseconds: {json.dumps(seconds, indent=2)}")
    if path := os.environ.get("SERVICES_TIMINGS"):
        with FileLock(f"{path}.lock"):  # each worker adds what it timed
            others = json.loads(Path(path).read_text(encoding="utf-8"))["seconds"] if Path(path).exists() else {}
            record = {"cpus": os.cpu_count(), "machine": platform.machine(), "seconds": others | seconds}
            Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Any]:
    """Both servers on PostgreSQL and the S3 store, their accounts, a worker, and the deployments applied."""
    with clock("PostgreSQL and S3 store"):
        stage = Stage(tmp_path_factory.mktemp("stage"))
    try:
        with clock("Prefect and MLflow, new databases"):
            stage.start("prefect", "mlflow")
        accounts = [sys.executable, str(ROOT / "infra" / "images" / "accounts.py")]
        subprocess.run(accounts, env=stage.places.accounts, check=True, capture_output=True)
        with clock("worker"):
            stage.start("worker")
        with clock("verdict deploy"):
            command = [sys.executable, "-m", "flows.cli.app", "deploy"]
            done = subprocess.run(command, env=stage.places.environment, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        for name in ("retrain", "watch"):  # as they are, they would begin whenever the hour is right
            held = stage.prefect("GET", f"/deployments/name/{name}/{name}")
            stage.prefect("PATCH", f"/deployments/{held['id']}/schedules/{held['schedules'][0]['id']}", active=False)
        yield stage
    finally:
        stage.close()
