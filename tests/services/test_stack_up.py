"""`make up` and `make down` for real: one command, everything answers, nothing is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from stage import ROOT, Clock, free_port

from flows.services import supervision
from flows.services.stack_processes import find_processes

pytestmark = [pytest.mark.services, pytest.mark.timeout(400)]


def find_pid(folder: Path, name: str) -> int:
    return int(supervision._call(folder, "getProcessInfo", name)["pid"])


def in_group(process: psutil.Process, *groups: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(process.pid) in groups
    return False


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
        folder = tmp_path / "stack"
        before = {name: find_pid(folder, name) for name in ("prefect", "mlflow", "worker", "inference")}
        with clock("killed MLflow and worker answer again"):
            os.kill(before["mlflow"], signal.SIGKILL)  # and leave its children, which hold the port
            os.kill(before["worker"], signal.SIGKILL)
            while [
                each for each in find_processes(str(tmp_path)) if in_group(each, before["mlflow"], before["worker"])
            ]:
                time.sleep(0.1)
            while {find_pid(folder, name) for name in ("mlflow", "worker")} & {0, before["mlflow"], before["worker"]}:
                time.sleep(0.1)
        again = call("flows.services.stack", "up")
        assert (again.returncode, again.stdout.splitlines()[0]) == (0, "up already")
        after = {name: find_pid(folder, name) for name in before}
        assert {name for name in before if after[name] == before[name]} == {"prefect", "inference"}
        assert supervision.read_states(folder) == dict.fromkeys(("prefect", "mlflow", "worker", "inference"), "running")
        exports = dict(
            line.removeprefix("  export ").split("=", 1) for line in first.stdout.splitlines() if "export" in line
        )
        deadline = time.monotonic() + 150  # the killed worker counts as online until its heartbeats are missed
        while True:
            answered = json.loads(call("flows.cli.app", "doctor", "--json", **exports).stdout)
            checks = {check["check"]: check for check in answered}
            if not checks["Prefect"]["seen"].endswith("2 workers online") or time.monotonic() > deadline:
                break
            time.sleep(15)  # each call imports for seconds, and other tests want the processor
        assert checks["Prefect"]["seen"].endswith("answers, 1 worker online")
        assert checks["MLflow store"]["works"]
    finally:
        with clock("make down"):
            ended = call("flows.services.stack", "down")
    assert (ended.returncode, ended.stdout) == (0, "stopped; the stores stay\n")
    assert find_processes(str(tmp_path)) == []
