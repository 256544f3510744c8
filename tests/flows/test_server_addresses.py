"""Addresses of MLflow and Prefect that are none, and servers that do not answer: one line each, soon."""

import contextlib
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call

from flows.services import embedded_prefect
from tasks.core import hidden_addresses
from tasks.core.errors import UnreachableError
from tasks.registry import mlflow_client, tracking
from tasks.registry.store import MlflowStore, locate_store

NO_ADDRESS = " is no address of a server; expected for example http://HOST:PORT, or unset it\n"
TOY = ["retrain", "--profile", "sample"]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.create_server(("127.0.0.1", 0)) as server, temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hidden_addresses, "_given", {})
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "address", ["nonsense", "htp://x", "http://", "127.0.0.1:4200/api", "http://h:99999/api", "http://[::1/api"]
)
@pytest.mark.parametrize("command", [TOY, ["deploy"]], ids=["retrain", "deploy"])
def test_an_address_of_prefect_of_another_form_is_refused_at_once(
    address: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert call(capsys, *command) == (2, "", f"error: PREFECT_API_URL{NO_ADDRESS}")


@pytest.mark.parametrize(
    "address", ["http://", "http://h:99999", "http://[::1/x", "http://a:b@[::1/x", "postgresql://a:b@h:port/x"]
)
@pytest.mark.parametrize("command", [TOY, ["history"]], ids=["retrain", "history"])
def test_an_address_of_mlflow_of_another_form_is_refused_at_once(
    address: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert call(capsys, *command) == (2, "", f"error: MLFLOW_TRACKING_URI{NO_ADDRESS}")


@pytest.mark.parametrize("command", [["predict", "--model", "hf:me/model", "A."], ["check", "--data", "hf:me/data"]])
def test_an_address_of_the_hub_of_another_form_is_refused(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert call(capsys, *command) == (2, "", f"error: HF_ENDPOINT{NO_ADDRESS}")


@pytest.mark.parametrize(("driver", "package"), [("mysql+pymysql", "pymysql"), ("mssql+pyodbc", "pyodbc")])
@pytest.mark.parametrize("command", ["status", "history"])
def test_a_store_whose_driver_is_not_installed_is_refused_by_its_name(
    driver: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{driver}://a:b@127.0.0.1:1/x")
    code, printed, said = call(capsys, command)
    assert (code, printed) == (2, "")
    assert said == (
        f"error: MLflow store {driver}://***@127.0.0.1:1/x needs the Python package {package}, which is not installed; "
        "install it, or name another store: MLFLOW_TRACKING_URI\n"
    )


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("postgresql", "MLflow store postgresql://***@127.0.0.1:{port}/x failed (connection to server at "),
        ("http", "MLflow at http://127.0.0.1:{port}/x does not answer; start it"),
    ],
)
def test_status_waits_seconds_for_a_silent_store(
    scheme: str, reason: str, silent: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_client, "CONNECT_TIMEOUT_S", 2)  # the shortest that libpq takes
    monkeypatch.setattr("flows.services.server_watch.CHECK_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://a:b@127.0.0.1:{silent}/x")
    started = time.monotonic()
    code, printed, said = call(capsys, "status")
    assert (code, said) == (1, "")
    (line,) = [line for line in printed.splitlines() if line.startswith("no answer")]
    assert reason.format(port=silent) in line
    assert time.monotonic() - started < 60  # MLflow's own retries take longer, and it waits for ever for a silent one


def test_status_does_not_try_a_database_again_that_refuses_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://a:b@127.0.0.1:1/x")
    started = time.monotonic()
    with pytest.raises(Exception, match="Connection refused"):
        mlflow_client.check_database(locate_store("."))
    assert time.monotonic() - started < 60


COMMANDS = {
    "history": ["history"],
    "approve": ["approve", "1", "--reason", "checked"],
    "reject": ["reject", "1", "--reason", "checked"],
    "rollback": ["rollback", "--reason", "checked"],
    "compare": ["compare", "1"],
    "verify": ["verify", "1"],
    "predict": ["predict", "The cat sat."],
    "prune": ["prune"],
}


@pytest.mark.parametrize("scheme", ["postgresql", "http"])
def test_a_command_does_not_try_a_store_for_minutes_that_does_not_answer(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://a:b@127.0.0.1:1/x")
    for command in COMMANDS.values():
        started = time.monotonic()
        code, printed, said = call(capsys, *command)
        assert (code, printed, said.count("\n")) == (1, "", 1)
        assert f"{scheme}://" in said
        assert "verdict doctor" in said
        assert time.monotonic() - started < 60  # MLflow's own tries take 120 s


@pytest.mark.parametrize("command", [TOY, ["history"]], ids=["retrain", "history"])
def test_a_file_address_of_sqlite_is_no_relative_path(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file:mlflow.db?uri=true")
    code, printed, said = call(capsys, *command)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert said.startswith("error: MLFLOW_TRACKING_URI names a file: address of SQLite, which would be read as a rela")


def test_deploy_names_a_server_that_does_not_answer() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.services.deploy import deploy

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        pytest.raises(UnreachableError, match=r"Prefect at http://127\.0\.0\.1:1/api failed \(.*verdict doctor"),
    ):
        deploy()


def test_the_log_of_embedded_servers_is_kept_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_prefect.sys, "executable", "/bin/echo")
    monkeypatch.setattr(embedded_prefect, "copy_template", lambda *_: True)

    def lines(name: str) -> int:
        return (tmp_path / name).read_text().count("prefect_process")

    servers = [embedded_prefect.EmbeddedServer(str(tmp_path)) for _ in range(2)]
    for server in servers:
        server._process.wait()
    assert lines("prefect-server.log") == 2
    monkeypatch.setattr(embedded_prefect, "MAX_LOG_BYTES", 10)
    embedded_prefect.EmbeddedServer(str(tmp_path))._process.wait()
    assert (lines("prefect-server.log"), lines("prefect-server.log.1")) == (1, 2)


def test_a_log_that_another_command_moves_aside_at_the_same_time_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_prefect.sys, "executable", "/bin/echo")
    monkeypatch.setattr(embedded_prefect, "copy_template", lambda *_: True)
    monkeypatch.setattr(embedded_prefect, "MAX_LOG_BYTES", 10)
    log, replace = tmp_path / "prefect-server.log", Path.replace
    log.write_text("what servers wrote before")

    def replace_twice(path: Path, target: Path) -> Path:
        replace(path, target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_twice)
    embedded_prefect.EmbeddedServer(str(tmp_path))._process.wait()
    assert "prefect_process" in log.read_text()
    assert log.with_suffix(".log.1").read_text() == "what servers wrote before"


def test_a_database_that_cannot_be_written_is_one_line(
    empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:  # for root every file is writable
        refusal = "SELECT RAISE(ABORT, 'attempt to write a readonly database')"
        database.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON runs BEGIN {refusal}; END")
    store = MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))
    with pytest.raises(UnreachableError) as refused:
        tracking.open_run(store, "a" * 16, {}, {})
    assert str(refused.value).endswith(
        " failed (attempt to write a readonly database); make it and its folder writable"
    )
    assert capsys.readouterr().err == ""
