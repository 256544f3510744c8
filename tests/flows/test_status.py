"""The status command on a real MLflow store and a real Prefect server."""

import datetime
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from registry_store import add_version

from flows.cli import app, show_review
from flows.commands import status
from flows.services import prefect_status
from tasks.core.files import home_id, write_json
from tasks.data.drift import DriftResult, describe_drifted
from tasks.registry import promotion, tracking
from tasks.registry.store import MlflowStore, locate_store


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an empty store, and no Prefect server: other tests may have one up."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield home


@pytest.fixture
def store(home: Path) -> MlflowStore:
    return locate_store(str(home))


def ended(store: MlflowStore, status: str, **tags: str) -> str:
    run = tracking.open_run(store, status.lower() * 2, {}, {"home": "here"} | tags)
    tracking.close_run(store, run, status)
    return run


def test_each_run_has_the_reason_of_its_end(store: MlflowStore, home: Path) -> None:
    ended(store, "FINISHED", verdict="HOLD", version="2", why="not better than champion 1")
    ended(store, "FAILED", verdict="FAILED", error="the disk is full")
    ended(store, "KILLED")
    ended(store, "KILLED", verdict="STOPPED", error="stopped by SIGINT")
    assert [(run["status"], run["why"]) for run in status.status(str(home))["runs"]] == [
        ("KILLED", "stopped by SIGINT"),
        ("KILLED", "its process died; a run with the same data and settings resumes it"),
        ("FAILED", "the disk is full"),
        ("FINISHED", "not better than champion 1"),
    ]


def test_the_champions_age_counts_from_its_last_promotion(store: MlflowStore, home: Path) -> None:
    for before, name in ((None, "a"), ("1", "b")):
        version = add_version(store, home, name)
        promotion.promote(store, version, kind="promote", expected=before, reason="better")
    promotion.promote(store, "1", kind="rollback", expected="2", reason="it was better")
    seen = status.status(str(home))["champion"]
    entries, _ = promotion.history(store)
    assert (seen["version"], seen["since"]) == ("1", entries[-1]["time"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(seen["since"])
    assert 0 <= age.total_seconds() < 300


@pytest.mark.parametrize(
    ("hours", "words"), [(0.2, "12 min"), (1.0, "1 h"), (47.4, "47 h"), (49.0, "2 days"), (24 * 30, "30 days")]
)
def test_ages_are_printed_in_a_fitting_unit(hours: float, words: str) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    assert show_review._age(moment.isoformat()) == words


def test_a_run_that_failed_after_its_verdict_says_why_it_failed(store: MlflowStore, home: Path) -> None:
    ended(store, "FAILED", why="there is no champion yet", error="the disk is full")
    assert status.status(str(home))["runs"][0]["why"] == "the disk is full"


def test_a_reason_of_two_lines_is_shown_in_one(
    store: MlflowStore, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended(store, "FAILED", error="data refused: too few rows\nsee gate.html")
    show_review.show_status(status.status(str(home)))
    assert "data refused: too few rows see gate.html" in capsys.readouterr().out


def test_a_run_whose_process_is_gone_is_not_running(store: MlflowStore, home: Path) -> None:
    for name, own in (("a" * 16, str(home)), ("b" * 16, str(home)), ("c" * 16, str(home.parent / "other"))):
        (home / "runs" / name).mkdir(parents=True)
        tracking.open_run(store, name, {}, {"home": home_id(own)})
    with FileLock(home / "runs" / ("b" * 16) / "lock"):
        runs = {run["job"][0]: (run["status"], run["why"]) for run in status.status(str(home))["runs"]}
    dead = ("KILLED", "its process died; a run with the same data and settings resumes it")
    assert runs == {"a": dead, "b": ("RUNNING", "at step check data"), "c": ("RUNNING", "")}


def test_a_run_says_at_which_step_it_is(store: MlflowStore, home: Path) -> None:
    folder = home / "runs" / "job"
    (folder / "model").mkdir(parents=True)
    tracking.open_run(store, "job", {}, {"home": home_id(str(home))})
    seen = []
    with FileLock(folder / "lock"):
        for file in ("gate.json", "split.json", "model/training.json", "export.json", "evidence.json"):
            (folder / file).touch()
            seen.append(status.status(str(home))["runs"][0]["why"])
    steps = ["check encoder, split", "fine-tune", "export", "measure", "document, register"]
    assert seen == [f"at step {step}" for step in steps]


def test_drift_is_the_latest_comparison_with_the_current_champions_data(store: MlflowStore, home: Path) -> None:
    version = add_version(store, home, "a", dataset="d" * 64)
    promotion.promote(store, version, kind="promote", expected=None, reason="better")
    assert status.status(str(home))["drift"] is None
    ended(store, "FINISHED", drift="none", drift_from="d" * 64)
    assert status.status(str(home))["drift"]["seen"] == "none"
    (home / "watch").mkdir()
    hours = [(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=each)).isoformat() for each in (1, 2, 3)]
    write_json(home / "watch" / "a.json", {"time": hours[0], "drift": "label, length", "drift_from": "d" * 64})
    write_json(home / "watch" / "b.json", {"time": hours[1], "drift": "source", "drift_from": "e" * 64})  # before it
    write_json(home / "watch" / "c.json", {"time": hours[2], "drift": None, "drift_from": None})
    drift = status.status(str(home))["drift"]
    assert drift == {"time": hours[0], "seen": "label, length", "reference": "d" * 64}


def test_the_last_summary_of_the_request_log_is_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, shift = home / "requests" / "summary.json", {"name": "length", "drifted": True}
    estimate, holdout = {"mcc": 0.41, "low": 0.3, "high": 0.5}, {"mcc": 0.52, "low": 0.45, "high": 0.6}
    summary = {"schema_version": 1, "time": "2026-03-01T12:00:00+00:00", "hours": 24.0, "answers": 1234}
    write_json(path, summary | {"drift": [shift], "estimate": estimate, "holdout": holdout, "no_estimate": ""})
    show_review.show_status(status.status(str(home)))
    shown = capsys.readouterr().out
    assert "requests   1,234 in 24 h, drift: length (2026-03-01" in shown
    assert "estimate   MCC 0.410 (0.300 to 0.500, 95%) without labels; 0.520 on the holdout" in shown
    path.write_text("{")
    answer = status.status(str(home))
    assert answer["requests"] is None
    assert answer["notices"][0].endswith("; run: verdict requests")


@pytest.mark.parametrize(
    "text", ["", "[]", '"text"', "{}", '{"time": 3}', '{"time": "yesterday", "drift": "label"}', "\xff"]
)
def test_a_damaged_record_of_watch_is_noticed_and_hides_nothing_else(home: Path, text: str) -> None:
    (home / "watch").mkdir()
    path = home / "watch" / "a.json"
    path.write_bytes(text.encode("latin-1"))
    answer = status.status(str(home))
    assert answer["notices"] == [f"{path} is not a record of verdict watch; delete it, the next check writes it again"]
    assert answer["champion_state"] == "none"


def test_a_store_that_does_not_answer_leaves_the_rest_of_the_status(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to be read as one" * 50)
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        app.main(["status", "--json"])
    assert ended.value.code == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["champion_state"] == "unknown"
    assert answer["disk"]["free_gb"] > 0
    assert len(answer["unreachable"]) == 1
    assert answer["unreachable"][0].startswith(f"MLflow store sqlite:///{tmp_path}/mlflow.db failed")
    show_review.show_status(answer)
    printed = capsys.readouterr().out
    assert "champion   unknown" in printed
    assert "no runs yet" not in printed


def test_a_lost_database_is_not_shown_as_a_new_one(home: Path) -> None:
    (home / "artifacts" / "models" / "m-1").mkdir(parents=True)
    answer = status.status(str(home))
    assert answer["champion_state"] == "unknown"
    assert "mlflow.db is empty, but" in answer["unreachable"][0]


def test_files_that_vanish_while_they_are_counted_do_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "kept").write_bytes(b"0" * 1_000_000)
    monkeypatch.setattr(status.os, "walk", lambda _: [(str(home), [], ["gone", "kept"]), (f"{home}/gone", [], ["x"])])
    assert status.measure_disk(str(home))["stores_gb"] == 0.001
    monkeypatch.setattr(status, "DISK_SCAN_TIMEOUT_S", -1.0)
    assert status.measure_disk(str(home))["stores_gb"] is None


def test_a_log_of_prefects_database_that_vanishes_does_not_matter(home: Path) -> None:
    (home / "prefect.db").write_bytes(b"0" * 1_000)
    (home / "prefect.db-wal").symlink_to(home / "gone")  # listed, and not there when its size is asked for
    assert status.measure_disk(str(home))["prefect_gb"] == 1e-6


def test_what_drifted_is_named() -> None:
    shifts = [
        DriftResult(name=name, statistic="", distance=0.0, p=0.0, limit=0.0, drifted=drifted)
        for name, drifted in (("label", True), ("length", False), ("source", True))
    ]
    assert describe_drifted(shifts) == "label, source"
    assert describe_drifted(shifts[1:2]) == describe_drifted([]) == "none"


def test_the_disk_is_measured_and_a_full_one_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "big").write_bytes(b"0" * 2_000_000)
    (home / "stack").mkdir()
    (home / "stack" / "prefect.db").write_bytes(b"0" * 1_000_000)
    (home / "prefect.db").write_bytes(b"0" * 2_000_000)
    disk = status.status(str(home))["disk"]
    assert 0.005 <= disk["stores_gb"] < 0.02
    assert disk["prefect_gb"] == 0.003
    monkeypatch.setattr(status.shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5e9))
    answer = status.status(str(home))
    assert answer["disk"]["free_gb"] == 1.5
    assert answer["notices"] == [f"1.5 GB free at {home}, a run needs 2.0; make room: verdict prune"]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api"


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Servers that answer every request with one status."""
    servers = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.end_headers()

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None: ...

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/api"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("trouble", ["nobody", "silence", 503, 401])
def test_a_prefect_server_that_does_not_answer_leaves_the_rest_of_the_status_within_seconds(
    trouble: Any, home: Path, silent: str, answering: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(prefect_status, "REQUEST_TIMEOUT_S", 1)
    url = {"nobody": "http://127.0.0.1:9/api", "silence": silent}.get(trouble) or answering(trouble)
    began = time.monotonic()
    with temporary_settings({PREFECT_API_URL: url}):
        answer = status.status(str(home))
    assert time.monotonic() - began < 20
    assert answer["schedule"] is None
    assert answer["disk"]["free_gb"] > 0
    (line,) = answer["unreachable"]
    words = f"{url} refuses us (401)" if trouble == 401 else f"Prefect at {url} does not answer ("
    assert line.startswith(words)


@pytest.fixture(scope="module")
def served(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from flows.services.deploy import deploy
    from flows.services.deployment_file import DeploymentChoice, write_deployments

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_server)
        home = str(tmp_path_factory.mktemp("deployed"))
        deploy(str(write_deployments(DeploymentChoice("sample", {"path": [home]}, {}, []), home)))
        wait_for_plans(prefect_server)
        yield prefect_server


def wait_for_plans(server: str) -> None:
    """Prefect plans the runs of a new deployment some seconds after it is made."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    deadline = time.monotonic() + 90
    with temporary_settings({PREFECT_API_URL: server}):
        while not {"retrain", "watch"} <= {run["deployment"] for run in prefect_status.read_schedule()["next"]}:
            assert time.monotonic() < deadline, "Prefect planned no run"
            time.sleep(0.5)


def test_the_schedule_shows_what_runs_next_what_is_late_and_how_runs_ended(
    served: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelled, Completed, Crashed, Running, Scheduled

    now = datetime.datetime.now(datetime.UTC)
    with temporary_settings({PREFECT_API_URL: served}), get_client(sync_client=True) as client:
        held = client.read_deployment_by_name("score/score")
        kinds = {"path": "in.tsv", "out": "out.parquet"}
        made = [client.create_flow_run_from_deployment(held.id, parameters=kinds) for _ in range(4)]
        client.set_flow_run_state(made[3].id, Cancelled(name="Missed"), force=True)
        client.set_flow_run_state(made[0].id, Crashed(message="its worker gave no sign for 90 s\nmore"), force=True)
        client.set_flow_run_state(made[1].id, Completed(message="7 of 7 rows scored"), force=True)
        due = now - datetime.timedelta(minutes=7)
        client.set_flow_run_state(made[2].id, Scheduled(scheduled_time=due), force=True)
        try:
            answer = status.status(str(home))
            client.set_flow_run_state(made[1].id, Running(), force=True)
            busy = status.status(str(home))
        finally:
            for run in made:
                client.delete_flow_run(run.id)
    assert json.loads(json.dumps(answer)) == answer
    seen = answer["schedule"]
    assert seen["server"] == served
    coming = {each["deployment"]: each for each in seen["next"]}
    assert seen["next"][0]["deployment"] == "score"
    assert coming["score"]["late"]
    assert datetime.datetime.fromisoformat(coming["score"]["time"]) == due.replace(microsecond=0)
    assert any("the next score is late: it was due at" in line for line in answer["notices"])
    ends = {each["run"]: (each["state"], each["why"]) for each in seen["last"]}
    assert ends[made[0].name] == ("Crashed", "its worker gave no sign for 90 s")
    assert ends[made[1].name] == ("Completed", "7 of 7 rows scored")
    assert made[3].name not in ends
    (waiting,) = (each for each in busy["schedule"]["next"] if each["deployment"] == "score")
    assert (waiting["late"], waiting["waits_for"]) == (False, made[1].name)
    assert not [line for line in busy["notices"] if "score" in line]
    show_review.show_status(busy)
    assert f"waits for {made[1].name}" in capsys.readouterr().out
    show_review.show_status(answer)
    printed = capsys.readouterr().out
    for words in ("late", "scheduled", "its worker gave no sign for 90 s", "no runs yet", "GB free"):
        assert words in printed


def test_a_service_that_was_given_up_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {"prefect": "running", "mlflow": "gave up"}
    monkeypatch.setattr(status.supervision, "read_states", lambda folder: states if folder.name == "stack" else None)
    answer = status.status(str(tmp_path))
    assert answer["notices"] == ["service mlflow gave up; see why: make logs, then: make up"]
    show_review.show_status(answer)
    assert "services   prefect running, mlflow gave up\n" in capsys.readouterr().out
