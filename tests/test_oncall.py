"""The first look of who is on call, on a real MLflow store and a real Prefect server."""

import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from shelves import add_version, new_store

from flows import console_review, oncall, schedule
from tasks import moves, runs
from tasks.drift import Shift, name_drift
from tasks.files import write_json
from tasks.store import Store, locate_store


@pytest.fixture
def home(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(oncall, "ask_schedule", lambda: None)
    new_store(empty_store, tmp_path)
    return tmp_path


@pytest.fixture
def store(home: Path) -> Store:
    return locate_store(str(home))


def ended(store: Store, status: str, **tags: str) -> str:
    run = runs.open_run(store, status.lower() * 2, {}, {"home": "here"} | tags)
    runs.close_run(store, run, status)
    return run


def test_each_run_says_why_it_ended_so(store: Store, home: Path) -> None:
    ended(store, "FINISHED", verdict="HOLD", version="2", why="not better than champion 1")
    ended(store, "FAILED", verdict="FAILED", error="the disk is full")
    ended(store, "KILLED")
    assert [(run["status"], run["why"]) for run in oncall.status(str(home))["runs"]] == [
        ("KILLED", "its process died; the next run goes on from what it finished"),
        ("FAILED", "the disk is full"),
        ("FINISHED", "not better than champion 1"),
    ]


def test_the_champion_has_an_age_that_begins_with_its_last_promotion(store: Store, home: Path) -> None:
    for before, name in ((None, "a"), ("1", "b")):
        version = add_version(store, home, name)
        moves.crown(store, version, kind="promote", expected=before, reason="better")
    moves.crown(store, "1", kind="rollback", expected="2", reason="it was better")
    seen = oncall.status(str(home))["champion"]
    entries, _ = moves.history(store)
    assert (seen["version"], seen["since"]) == ("1", entries[-1]["time"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(seen["since"])
    assert 0 <= age.total_seconds() < 300


@pytest.mark.parametrize(
    ("hours", "words"), [(0.2, "12 min"), (1.0, "1 h"), (47.4, "47 h"), (49.0, "2 days"), (24 * 30, "30 days")]
)
def test_ages_are_told_in_the_unit_that_fits(hours: float, words: str) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    assert console_review._age(moment.isoformat()) == words


def test_drift_is_that_of_the_latest_look_by_a_run_or_by_watch(store: Store, home: Path) -> None:
    assert oncall.status(str(home))["drift"] is None
    ended(store, "FINISHED", drift="none")
    assert oncall.status(str(home))["drift"]["seen"] == "none"
    (home / "watch").mkdir()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    write_json(home / "watch" / "a.json", {"time": later.isoformat(), "drift": "label, length"})
    write_json(home / "watch" / "b.json", {"time": later.isoformat(), "drift": None})
    assert oncall.status(str(home))["drift"] == {"time": later.isoformat(), "seen": "label, length"}


def test_what_drifted_is_named() -> None:
    shifts = [
        Shift(name=name, statistic="", distance=0.0, p=0.0, limit=0.0, drifted=drifted)
        for name, drifted in (("label", True), ("length", False), ("source", True))
    ]
    assert name_drift(shifts) == "label, source"
    assert name_drift(shifts[1:2]) == name_drift([]) == "none"


def test_the_disk_is_measured_and_a_full_one_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "big").write_bytes(b"0" * 2_000_000)
    taken = oncall.status(str(home))["disk"]["stores_gb"]
    assert 0.002 <= taken < 0.02
    monkeypatch.setattr(oncall.shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5e9))
    answer = oncall.status(str(home))
    assert answer["disk"]["free_gb"] == 1.5
    assert answer["notices"] == [f"1.5 GB free at {home}, a run needs 2.0; make room: verdict prune"]


def test_a_prefect_that_does_not_answer_leaves_the_rest_of_the_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("VERDICT_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        answer = oncall.status(str(home))
    assert answer["schedule"] is None
    assert len(answer["notices"]) == 1
    assert answer["notices"][0].startswith("Prefect at http://127.0.0.1:9/api does not answer (")
    assert answer["notices"][0].endswith("check it: verdict doctor")


@pytest.fixture(scope="module")
def served(prefect_server: str) -> Iterator[str]:
    from flows.deploy import deploy

    os.environ["PREFECT_API_URL"] = prefect_server
    deploy()
    yield prefect_server
    del os.environ["PREFECT_API_URL"]


def test_the_schedule_shows_what_runs_next_what_is_late_and_how_runs_ended(
    served: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect import get_client
    from prefect.states import Completed, Crashed, Scheduled

    monkeypatch.setattr(oncall, "ask_schedule", schedule.ask_schedule)
    now = datetime.datetime.now(datetime.UTC)
    with get_client(sync_client=True) as client:
        held = client.read_deployment_by_name("score/score")
        kinds = {"path": "in.tsv", "out": "out.parquet"}
        made = [client.create_flow_run_from_deployment(held.id, parameters=kinds) for _ in range(3)]
        client.set_flow_run_state(made[0].id, Crashed(message="its worker gave no sign for 90 s\nmore"), force=True)
        client.set_flow_run_state(made[1].id, Completed(message="7 of 7 rows scored"), force=True)
        due = now - datetime.timedelta(minutes=7)
        client.set_flow_run_state(made[2].id, Scheduled(scheduled_time=due), force=True)
    try:
        answer = oncall.status(str(home))
    finally:
        with get_client(sync_client=True) as client:
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
    console_review.show_status(answer)
    printed = capsys.readouterr().out
    for words in ("late", "to come", "its worker gave no sign for 90 s", "no runs yet", "GB free"):
        assert words in printed
