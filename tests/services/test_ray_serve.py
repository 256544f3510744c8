"""`verdict serve --ray local`: replicas of the application on a real Ray, which follow, are replaced, and finish."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from http_server import BAD, GOOD, RegistryHome, copy_registry_home, free_port, make_registry_home, wait_until
from stage import ROOT

from tasks.inference.classifier import Classifier

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

START_S = 240.0  # seconds, for Ray's processes to start on a busy machine
REPLICAS = 2


class RayServer(NamedTuple):
    process: subprocess.Popen[str]
    client: httpx.Client
    home: RegistryHome

    def replicas(self) -> set[int]:
        """Return the process ids of the replicas."""
        found = set()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith("ray::ServeReplica"):
                    found.add(process.pid)
        return found

    def version(self) -> str:
        return str(self.client.get("/readyz").json()["version"])


@pytest.fixture(scope="module")
def server(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    """The command, with two replicas; it follows a champion of a registry of its own."""
    folder = tmp_path_factory.mktemp("ray")
    home = copy_registry_home(make_registry_home(folder / "original", empty_store, exported), folder / "home")
    home.set_champion("1")
    port = free_port()
    command = [sys.executable, "-m", "flows.cli.app", "serve", "--ray", "local", "--port", str(port), "--device", "cpu"]
    command += ["--min-replicas", str(REPLICAS), "--replica-cpus", "0.5", "--refresh-seconds", "0.3"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "VERDICT_"))}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ | {"VERDICT_HOME": str(home.folder)}, text=True,
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == (
            f"serving models:/acceptability@champion with 2 to 2 replicas on http://127.0.0.1:{port} (Ctrl-C stops)\n"
        ), (folder / "log").read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as client:
            yield RayServer(process, client, home)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


def test_replicas_answer_as_the_classifier_follow_the_champion_are_replaced_and_finish(
    server: RayServer, exported: Any
) -> None:
    sentences = [GOOD, BAD] * 20
    expected = Classifier.from_bundle(exported["bundle"], "cpu").predict(sentences)
    reply = server.client.post("/v1/judge", json={"sentences": sentences}).json()
    assert reply["version"] == "1"
    for answer, ours in zip(reply["predictions"], expected, strict=True):
        assert (answer["sentence"], answer["label"]) == (ours["sentence"], ours["label"])
        assert answer["probability"] == pytest.approx(ours["probability"], abs=1e-5)

    before = server.replicas()
    assert len(before) == REPLICAS
    server.home.set_champion("2")
    wait_until(lambda: all(server.version() == "2" for _ in range(20)), START_S)
    assert server.replicas() == before  # a promotion restarts nothing

    killed = before.pop()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(server.replicas() - {killed}) == REPLICAS, START_S)
    assert server.version() == "2"

    long = {"sentences": [" ".join([GOOD] * 100)] * 1_000}
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(server.client.post, "/v1/judge", json=long) for _ in range(4)]
        wait_until(lambda: sum("verdict_queue_sentences 0.0" not in server.client.get("/metrics").text for _ in "12"))
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert server.process.wait(120) == 0
    assert not psutil.pid_exists(killed)
