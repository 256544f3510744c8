"""PostgreSQL, an S3 store and the services of infra/Procfile on loopback, each a process that can be killed alone."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from flows import environment
from flows.services.stack_config import StackConfig, load_stack_config, write_auth_config

ROOT = Path(__file__).parents[2]
Clock = Callable[[str], AbstractContextManager[None]]
SECRETS = {
    "PREFECT_DATABASE_PASSWORD": "prefect-database-4f1c",
    "MLFLOW_DATABASE_PASSWORD": "mlflow-database-9d2e",
    "STORE_ACCESS_KEY": "store-access-77ab",
    "STORE_SECRET_KEY": "store-secret-c0de",
    "PREFECT_AUTH_STRING": "operator:prefect-auth-51ce",
    "MLFLOW_ADMIN_PASSWORD": "mlflow-admin-83fa",
    "MLFLOW_SECRET_KEY": "mlflow-forms-1b1b",
    "RETRAIN_PASSWORD": "retrain-writes-60d5",
    "READER_PASSWORD": "reader-reads-2a7e",
}
WAIT_LIMIT_S = 300


class Stage:
    """Everything that runs, and how it is asked: over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.postgres = Postgres(folder)
        self.store = Store(folder)
        environment.set_process_defaults()
        ports = {name: str(free_port()) for name in ("PREFECT_PORT", "MLFLOW_PORT", "INFERENCE_PORT", "WORKER_PORT")}
        addresses = {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.postgres.port),
            "STORE_URL": self.store.url,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "VERDICT_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        switches = {name: os.environ[name] for name in ("PREFECT_SERVER_ANALYTICS_ENABLED",)}
        environ = kept | ports | addresses | SECRETS | switches | {"PATH": path, "OMP_NUM_THREADS": "1"}
        # Polls every second: the test waits for nothing that an external service need not hurry for.
        environ |= {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
        environ |= {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks"}
        self.places: StackConfig = load_stack_config(environ, str(self.home))
        write_auth_config(self.places)
        self.services: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """Start services by their lines of infra/Procfile, and wait until they answer."""
        for name in names:
            with (self.folder / f"{name}.log").open("ab") as log:
                self.services[name] = subprocess.Popen(
                    [sys.executable, "-m", "flows.services.service", name],
                    cwd=ROOT,
                    env=self.places.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for name in names:
            self.wait(lambda name=name: self.answers(name), f"{name} answers")

    def answers(self, name: str) -> bool:
        assert self.services[name].poll() is None, (self.folder / f"{name}.log").read_text()[-2_000:]
        with contextlib.suppress(OSError):
            self.places.opener.open(self.places.health_urls[name], timeout=5).close()
            return True
        return False

    def kill(self, name: str) -> None:
        """End a service by SIGKILL; with the worker dies the run that it started, as where a machine is lost."""
        os.killpg(self.services[name].pid, signal.SIGKILL)
        self.services.pop(name).wait()
        if name == "worker":
            for pid in self.runs():
                os.kill(pid, signal.SIGKILL)

    def runs(self) -> list[int]:
        """Return the processes of flow runs."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mine = f"STACK_OF={self.home}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if mine and b"prefect.engine" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for name in list(self.services):
            self.kill(name)
        for pid in self.runs():
            os.kill(pid, signal.SIGKILL)
        self.store.kill()
        self.postgres.close()

    def prefect(self, method: str, path: str, **body: Any) -> Any:
        """Ask Prefect as an engineer's program does; a body of `items` alone is a list."""
        auth = tuple(SECRETS["PREFECT_AUTH_STRING"].split(":"))
        with httpx.Client(base_url=f"{self.places.urls['prefect']}/api", auth=auth, timeout=30) as client:  # type: ignore[arg-type]
            headers = {}
            if method != "GET":
                token = client.get("/csrf-token", params={"client": "tests"}).json()["token"]
                headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}
            given = body.get("items", body) if method != "GET" else None
            reply = client.request(method, path, json=given, headers=headers)
            reply.raise_for_status()
            return reply.json() if reply.content else None

    def mlflow(self, account: str, method: str, path: str, **body: Any) -> httpx.Response:
        """Ask MLflow as one of its accounts."""
        url = f"{self.places.urls['mlflow']}/api/2.0/mlflow/{path}"
        password = SECRETS[f"{account.upper()}_PASSWORD"]
        given = {"params": body} if method == "GET" else {"json": body}
        return httpx.request(method, url, auth=(account, password), timeout=30, **given)  # type: ignore[arg-type]

    def wait(self, condition: Callable[[], Any], what: str, limit: float = WAIT_LIMIT_S) -> Any:
        """Return what the condition answers once it is true."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.25)
        raise AssertionError(f"not within {limit} s: {what}")


class Postgres:
    """Debian's PostgreSQL in a folder of its own, with the databases that infra/ makes."""

    def __init__(self, folder: Path) -> None:
        self.bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self.port = free_port()
        # Not below pytest's folder, which nobody else may enter: PostgreSQL refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="verdict-postgres-"))
        self.log = self.folder / "log"
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self.run("initdb", "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync")
        self.start()
        script = self.folder / "create-databases.sql"
        shutil.copy(ROOT / "infra" / "images" / "create-databases.sql", script)
        script.chmod(0o644)
        self.run(
            "psql", "--quiet", "--username=postgres", f"--host={self.folder}", f"--port={self.port}", "-f", str(script)
        )

    def start(self) -> None:
        listens = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "start", "--wait", f"--log={self.log}", f"--options={listens}")

    def restart(self) -> None:
        """Drop every connection at once, and come back."""
        self.run("pg_ctl", "stop", "--wait", "--mode=immediate")
        self.start()

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, program: str, *options: str) -> None:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        environ = {"PATH": os.environ["PATH"], "PGDATA": str(self.folder / "data"), "LC_ALL": "C.UTF-8"}
        passwords = {name: value for name, value in SECRETS.items() if name.endswith("DATABASE_PASSWORD")}
        with (self.folder / "commands.log").open("ab") as log:
            subprocess.run(
                [*as_user, str(self.bin / program), *options],
                env=environ | passwords, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
            )  # fmt: skip


class Store:
    """SeaweedFS's S3 door."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.folder.mkdir()
        doors = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        self.ports = {name: free_port() for name in (*doors, "s3.port", "s3.port.grpc")}
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.start()

    def start(self) -> None:
        own = [f"-{name}={port}" for name, port in self.ports.items()]
        fixed = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=0", "-master.telemetry=false"]
        sizes = ["-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        keys = {"AWS_ACCESS_KEY_ID": SECRETS["STORE_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY": SECRETS["STORE_SECRET_KEY"]}
        with (self.folder.parent / "store.log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "weed", "server", f"-dir={self.folder}", *own, *fixed, *sizes],
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)} | keys,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError((self.folder.parent / "store.log").read_text()[-2_000:])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
