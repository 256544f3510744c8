"""The environment of the services of one machine, and what is rejected before anything starts."""

import base64
import contextlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.services import service, stack, supervision
from flows.services.service import read_commands
from flows.services.stack_config import ACCOUNT_VARIABLES, load_stack_config, write_auth_config
from flows.services.stack_processes import find_processes
from tasks.core.errors import UsageError, VerdictError

ROOT = Path(__file__).parents[2]
POSTGRES = {"POSTGRES_HOST": "db", "PREFECT_DATABASE_PASSWORD": "p" * 12, "MLFLOW_DATABASE_PASSWORD": "m" * 12}
STORE = {"STORE_URL": "http://store:8333", "STORE_ACCESS_KEY": "key", "STORE_SECRET_KEY": "secret"}
PASSWORDS = {name: name.lower() for name in ACCOUNT_VARIABLES}


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    empty = dict.fromkeys(("PREFECT_AUTH_STRING", "POSTGRES_HOST", "STORE_URL", "MLFLOW_ADMIN_PASSWORD"), "")
    assert load_stack_config(empty, str(tmp_path)).urls == load_stack_config({}, str(tmp_path)).urls


def test_without_anything_set_all_state_is_in_the_home(tmp_path: Path) -> None:
    config = load_stack_config({}, str(tmp_path))
    variables = config.environment
    assert variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == f"sqlite+aiosqlite:///{tmp_path}/stack/prefect.db"
    assert variables["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"] == f"{tmp_path}/artifacts"
    assert variables["PREFECT_HOME"] == f"{tmp_path}/stack/prefect"
    assert variables["MLFLOW_OPTIONS"] == "--serve-artifacts"
    assert config.urls == {
        "prefect": "http://127.0.0.1:4200",
        "mlflow": "http://127.0.0.1:5000",
        "inference": "http://127.0.0.1:8080",
    }
    assert config.accounts == {}


def test_leases_outlive_the_server_and_nothing_is_reported_or_open(tmp_path: Path) -> None:
    variables = load_stack_config({}, str(tmp_path)).environment
    assert variables["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert variables["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert variables["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events,flow_runs"
    assert variables["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert variables["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:5000"


def test_postgresql_and_s3_replace_sqlite_and_folders(tmp_path: Path) -> None:
    variables = load_stack_config(POSTGRES | STORE | {"STORE_BUCKET": "models"}, str(tmp_path)).environment
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in variables
    assert (variables["PREFECT_SERVER_DATABASE_HOST"], variables["PGHOST"], variables["PGPORT"]) == ("db", "db", "5432")
    assert variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://"
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://models"
    assert variables["MLFLOW_S3_ENDPOINT_URL"] == "http://store:8333"


def test_accounts_are_used_by_name_and_shown_without_their_passwords(tmp_path: Path) -> None:
    config = load_stack_config(PASSWORDS | {"PREFECT_AUTH_STRING": "me:secret-of-mine"}, str(tmp_path))
    assert config.environment["MLFLOW_TRACKING_USERNAME"] == "retrain"
    assert "--app-name basic-auth" in config.environment["MLFLOW_OPTIONS"]
    shown = " ".join([*config.exports.values(), *config.urls.values(), *config.health_urls.values()])
    assert [word for word in (*PASSWORDS.values(), "secret-of-mine") if word in shown] == []
    assert config.exports["MLFLOW_TRACKING_PASSWORD"] == "$RETRAIN_PASSWORD"


@pytest.mark.parametrize(
    ("more", "database"),
    [({}, "sqlite:///{home}/stack/accounts.db"), (POSTGRES, "postgresql+psycopg2://")],
    ids=["sqlite", "postgresql"],
)
def test_reading_the_configuration_writes_nothing_and_a_start_the_database_of_the_accounts(
    tmp_path: Path, more: dict[str, str], database: str
) -> None:
    config = load_stack_config(PASSWORDS | more, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    write_auth_config(config)
    lines = Path(config.environment["MLFLOW_AUTH_CONFIG_PATH"]).read_text(encoding="utf-8").splitlines()
    assert f"database_uri = {database.format(home=tmp_path)}" in lines


def test_without_accounts_no_file_names_their_database(tmp_path: Path) -> None:
    write_auth_config(load_stack_config({}, str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PREFECT_PORT": "http"}, "PREFECT_PORT 'http' is not a port"),
        ({"MLFLOW_PORT": "70000"}, "MLFLOW_PORT '70000' is not a port"),
        ({"POSTGRES_HOST": "db"}, "POSTGRES_HOST is set and PREFECT_DATABASE_PASSWORD, MLFLOW_DATABASE_PASSWORD not"),
        ({"STORE_URL": "http://s"}, "STORE_URL is set and STORE_ACCESS_KEY, STORE_SECRET_KEY not"),
        ({"MLFLOW_ADMIN_PASSWORD": "x" * 12}, "MLFLOW_ADMIN_PASSWORD is set and RETRAIN_PASSWORD"),
        (PASSWORDS | {"READER_PASSWORD": "short"}, "READER_PASSWORD is too short"),
        ({"PREFECT_AUTH_STRING": "password"}, "PREFECT_AUTH_STRING is not of the form NAME:PASSWORD"),
    ],
)
def test_a_contradictory_environment_is_a_usage_error(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_stack_config(environ, str(tmp_path))


def test_no_line_of_the_procfile_holds_a_secret_and_every_variable_is_set(tmp_path: Path) -> None:
    lines = read_commands()
    assert list(lines) == ["prefect", "mlflow", "cleanup", "worker", "inference"]
    variables = load_stack_config(PASSWORDS | {"PREFECT_AUTH_STRING": "me:secret-of-mine"}, str(tmp_path)).environment
    for line in lines.values():
        assert set(re.findall(r"\$([A-Z_]+)", line)) <= variables.keys()
        assert "exec " in line  # so that a signal reaches the service and no shell


@pytest.fixture
def port() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_one_clear_line(port: int, tmp_path: Path) -> None:
    environ = os.environ | {"VERDICT_HOME": str(tmp_path), "INFERENCE_PORT": str(port), **_free("PREFECT_PORT")}
    environ |= _free("MLFLOW_PORT")
    done = subprocess.run(
        [sys.executable, "-m", "flows.services.stack", "up"], cwd=ROOT, env=environ, capture_output=True
    )
    assert done.returncode == 2
    said = done.stderr.decode()
    assert said == f"error: port {port} is taken (Address already in use); name another: INFERENCE_PORT=PORT\n"


def test_services_that_do_not_answer_in_time_may_still_be_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "STACK_START_TIMEOUT_S", 0)
    ports = _free("PREFECT_PORT") | _free("MLFLOW_PORT") | _free("INFERENCE_PORT")
    with pytest.raises(VerdictError, match="did not answer within 0 s and may still be starting: make up waits again"):
        stack.await_services(load_stack_config(ports, str(tmp_path)))


def test_down_without_services_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    assert stack.main(["down"]) == 0
    assert capsys.readouterr().out == "nothing is up\n"
    assert stack.main(["logs"]) == 1
    assert stack.main(["sideways"]) == 2
    assert "expected up, down or logs" in capsys.readouterr().err


def test_what_killed_services_leave_behind_is_found_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    environ = os.environ | {"STACK_OF": str(tmp_path)}
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", script], env=environ) as left:
        threading.Thread(target=left.wait, daemon=True).start()
        assert stack.main(["up"]) == 1
        assert "1 processes of killed services are left; end them: make down" in capsys.readouterr().err
        assert stack.main(["down"]) == 0
    assert left.returncode is not None


def test_credentials_are_sent_to_our_servers_only(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = PASSWORDS | {"PREFECT_AUTH_STRING": "me:mine", "MLFLOW_PORT": str(server.server_port)}
    config = load_stack_config(environ, str(tmp_path))
    for url in (config.wait_urls["mlflow"], config.health_urls["mlflow"]):
        config.opener.open(url).close()
    server.shutdown()
    account = base64.b64encode(f"retrain:{PASSWORDS['RETRAIN_PASSWORD']}".encode()).decode()
    assert seen == [f"Basic {account}", None]


STAYS = [sys.executable, "-c", "import time; time.sleep(300)"]


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Supervisor with the real cleanup, a program that stays and one that ends at once; its folder and process."""
    monkeypatch.setattr(supervision, "START_RETRIES", 1)
    folder = tmp_path / "stack"
    folder.mkdir()
    commands = {
        "cleanup": [sys.executable, "-m", "flows.services.cleanup"],
        "prefect": STAYS,
        "mlflow": [sys.executable, "-c", "print('no such database')"],
    }
    environ = os.environ | {"VERDICT_HOME": str(tmp_path), "STACK_OF": str(tmp_path)}
    process = supervision.start(folder, commands, environ)
    try:
        yield folder, process
    finally:
        stack._stop(str(tmp_path))


def find_pid(folder: Path, name: str) -> int:
    found = supervision._call(folder, "getProcessInfo", name)
    return int(found["pid"]) if found["statename"] in ("STARTING", "RUNNING") else 0


def wait(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError("not within 30 s")


def test_a_killed_service_comes_back_one_that_cannot_start_is_given_up_and_nothing_outlives_the_supervisor(
    supervised: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    folder, process = supervised
    first = wait(lambda: find_pid(folder, "prefect"))
    os.kill(first, signal.SIGKILL)
    second = wait(lambda: find_pid(folder, "prefect") not in (0, first) and find_pid(folder, "prefect"))
    wait(lambda: (supervision.read_states(folder) or {})["mlflow"] == "gave up")
    assert supervision.read_states(folder) == {"prefect": "running", "mlflow": "gave up"}
    assert find_pid(folder, "prefect") == second
    config = load_stack_config(_free("PREFECT_PORT") | _free("MLFLOW_PORT"), str(folder.parent))
    with pytest.raises(VerdictError, match="mlflow ended 2 times as it started; the others stay up"):
        stack._check_progress(config, {"prefect": "", "mlflow": ""}, process)
    assert supervision.start_again(folder) == ["mlflow"]
    with subprocess.Popen(STAYS, env=os.environ | {"STACK_OF": str(folder.parent)}, start_new_session=True) as run:
        process.kill()  # the run has a session of its own, as a worker's runs have
        process.wait()
        assert run.wait(20) == -signal.SIGTERM
    wait(lambda: find_processes(str(folder.parent)) == [])
    assert supervision.read_states(folder) is None


STAYS_UNTIL_END = """
import os, pathlib, signal, sys, time
os.chdir(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("started").touch()
while not pathlib.Path("end").exists():
    time.sleep(0.05)
"""


def test_while_supervisor_stops_the_services_are_stopping_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "stack"
    folder.mkdir()
    (tmp_path / "stubborn.py").write_text(STAYS_UNTIL_END)
    stubborn = [sys.executable, str(tmp_path / "stubborn.py"), str(tmp_path)]
    process = supervision.start(folder, {"cleanup": STAYS, "mlflow": stubborn}, dict(os.environ))
    try:
        wait(lambda: (tmp_path / "started").exists())
        process.terminate()
        wait(lambda: supervision.read_states(folder) == {"mlflow": "stopping"})
        monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
        assert stack.main(["up"]) == 1
        assert "error: the services are stopping; wait until all have stopped, then: make up" in capsys.readouterr().err
        monkeypatch.setattr(supervision, "read_states", lambda folder: {"mlflow": "gave up"})
        with pytest.raises(VerdictError, match="the services are stopping"):
            supervision.start_again(folder)
    finally:
        (tmp_path / "end").touch()
        process.wait(60)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (xmlrpc.client.Fault(60, "ALREADY_STARTED: mlflow"), ""),
        (
            xmlrpc.client.Fault(50, "SPAWN_ERROR: mlflow"),
            "mlflow was not started .SPAWN_ERROR: mlflow.; see: make logs",
        ),
        (ConnectionRefusedError("refused"), "mlflow was not started, as Supervisor ended .refused.; run: make up"),
    ],
)
def test_a_service_that_supervisor_does_not_start_is_one_line_unless_it_runs_already(
    error: Exception, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, method: str, *arguments: Any) -> Any:
        if method == "startProcess":
            raise error
        return [{"name": "mlflow", "statename": "FATAL"}]

    (tmp_path / supervision.SOCKET).touch()
    monkeypatch.setattr(supervision, "_call", refuse)
    with pytest.raises(VerdictError, match=expected) if expected else contextlib.nullcontext():
        assert supervision.start_again(tmp_path) == ["mlflow"]


def test_a_supervisor_that_ends_within_an_answer_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / supervision.SOCKET
    with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 900\r\n\r\n<?xml")
            connection.close()

        answering = threading.Thread(target=answer)
        answering.start()
        assert supervision.read_states(tmp_path) is None
        answering.join()


def test_what_a_killed_service_left_is_ended_before_it_starts_again(tmp_path: Path) -> None:
    environ = os.environ | {"STACK_OF": str(tmp_path), "STACK_SERVICE": "mlflow"}
    with (
        subprocess.Popen(STAYS, env=environ) as left,
        subprocess.Popen(STAYS, env=environ, start_new_session=True) as run,
        subprocess.Popen(STAYS, env=environ | {"STACK_SERVICE": "prefect"}) as other,
    ):
        service.end_leftovers("mlflow", str(tmp_path))
        running = [each.poll() is None for each in (left, run, other)]
        for each in (left, run, other):
            each.kill()
    assert running == [False, True, True]


def _free(name: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {name: str(probe.getsockname()[1])}
