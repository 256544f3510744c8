"""`make up` and `make down` for real: one command, everything answers, nothing is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stage import ROOT, Clock, free_port

from flows.services import stack

pytestmark = [pytest.mark.services, pytest.mark.timeout(400)]


def test_up_waits_until_all_answer_and_down_leaves_nothing(tmp_path: Path, clock: Clock) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    ports = {name: str(free_port()) for name in ("PREFECT_PORT", "MLFLOW_PORT", "INFERENCE_PORT", "WORKER_PORT")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = kept | ports | {"VERDICT_HOME": str(tmp_path), "PATH": path, "OMP_NUM_THREADS": "1"}

    def call(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environ | more, capture_output=True, text=True
        )

    try:
        with clock("make up, SQLite"):
            first = call("flows.services.stack", "up")
        assert first.returncode == 0, first.stderr
        assert f"http://127.0.0.1:{ports['PREFECT_PORT']}" in first.stdout
        again = call("flows.services.stack", "up")
        assert (again.returncode, again.stdout.splitlines()[0]) == (0, "up already")
        exports = dict(
            line.removeprefix("  export ").split("=", 1) for line in first.stdout.splitlines() if "export" in line
        )
        checks = {
            check["check"]: check for check in json.loads(call("flows.cli.app", "doctor", "--json", **exports).stdout)
        }
        assert checks["Prefect"]["seen"].endswith("answers, 1 worker online")
        assert checks["MLflow store"]["works"]
    finally:
        with clock("make down"):
            ended = call("flows.services.stack", "down")
    assert (ended.returncode, ended.stdout) == (0, "stopped; the stores stay\n")
    assert stack._processes(str(tmp_path)) == []
