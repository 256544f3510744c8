"""The champion behind `mlflow models serve`, as MLflow documents it; test_pyfunc has the forms of input."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registered import make_champion_store
from toy import SIGN

pytestmark = pytest.mark.services

CHAMPION = "models:/acceptability@champion"
GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"


def environment() -> dict[str, str]:
    """Return this environment without what leads a process to this repository."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "MLFLOW_", "VERDICT_"))
    }


@pytest.fixture(scope="module")
def server(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` as the documentation has it, on loopback; yields its address."""
    folder = tmp_path_factory.mktemp("serve")
    store = make_champion_store(tmp_path_factory.mktemp("store"), empty_store, exported)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment()
            | {
                "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
                # MLflow runs `uvicorn` by name: it must find this environment's even where none is activated.
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            start_new_session=True,  # the server is a grandchild
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            time.sleep(0.1)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has exited: the assertion above says why
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def ask(server: str, body: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{server}/invocations", data=body.encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_command_serves_the_champion_without_this_repository(server: str) -> None:
    body = {"dataframe_split": {"columns": ["id", "sentence"], "data": [[1, GOOD], [2, BAD]]}}
    status, answer = ask(server, json.dumps(body))
    assert status == 200
    assert [row["label"] for row in answer["predictions"]] == ["acceptable", "unacceptable"]
    assert [row["version"] for row in answer["predictions"]] == ["1", "1"]
    status, answer = ask(server, '{"dataframe_split": {"columns": ["a", "b"], "data": [["x", "y"]]}}')
    assert 400 <= status < 500, answer
