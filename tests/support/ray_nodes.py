"""A Ray cluster on this machine: a head and workers of their own processes, with free ports and a folder."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

STORE = str(80 << 20)  # bytes of a node's object store
NODE_TIMEOUT_S = 120.0
TOKEN = secrets.token_hex(32)  # of all clusters: Ray reads it once in a process


class RayNodes:
    """Nodes that a test can add and kill. Programs connect to `address` in the environment `environ`."""

    def __init__(self, **environ: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp", ignore_cleanup_errors=True)
        self.address = f"127.0.0.1:{_free_port()}"
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
        checks = {"RAY_health_check_period_ms": "1000"}  # a node that is killed is known to be after 5 s, not 15
        self.environ = os.environ | access | checks | environ
        self.nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes[::-1]:
            self.kill(node)
        self.folder.cleanup()

    def add(self, cpus: int, gpus: int | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start a node, the first of which is the head, and return once it takes work.

        Args:
            cpus: that Ray counts.
            gpus: that Ray counts, there or not; None for those that it finds.
            environ: of the node.
        """
        port = self.address.rpartition(":")[2]
        # Each node of its own address: a program connects through the node of its own machine, and dies with it.
        role = [f"--address={self.address}", f"--node-ip-address=127.0.0.{len(self.nodes) + 1}"]
        if not self.nodes:
            role = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder.name}"]
        agents = [f"--{name}={_free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
        size = [f"--num-cpus={cpus}", f"--object-store-memory={STORE}", "--min-worker-port=0", "--max-worker-port=0"]
        size += [] if gpus is None else [f"--num-gpus={gpus}"]
        log = Path(self.folder.name) / f"node-{len(self.nodes)}.log"
        with log.open("wb") as stream:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role, *agents, *size],
                env=self.environ | environ, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        self.nodes.append(node)
        deadline = time.monotonic() + NODE_TIMEOUT_S
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text()[-2_000:]
            assert time.monotonic() < deadline, log.read_text()[-2_000:]
            time.sleep(0.2)
        return node

    def processes(self, *beginnings: str) -> list[psutil.Process]:
        """Return the processes of the nodes whose names begin so."""
        found = []
        for node in self.nodes:
            if node.poll() is None:
                for each in psutil.Process(node.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if each.name().startswith(beginnings):
                            found.append(each)
        return found

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """End all processes of a node by SIGKILL, as where a machine is lost."""
        if node.poll() is None:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                process.send_signal(signal.SIGKILL)
        node.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
