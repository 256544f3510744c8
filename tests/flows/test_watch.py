"""The watch flow on a real Prefect server and a real SQLite store."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from job_cache import JobCache
from toy import flow_settings, write_toy_data
from webhook_receiver import receiving

from tasks.core.errors import DataRejected, UsageError
from tasks.core.files import home_id
from tasks.core.settings import WatchSettings
from tasks.core.settings_loader import load_settings
from tasks.registry.store import locate_store
from tasks.registry.tracking import open_run, running_jobs
from tasks.serving.champion import ChampionAnswer
from tasks.serving.request_log import RequestLog, RequestLogConfig

Watch = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, toy_data: Path) -> Path:
    """Toy data that a test may change."""
    return Path(shutil.copytree(toy_data, tmp_path / "data"))


@pytest.fixture
def watch(
    prefect_server: str, home: Path, folder: Path, tiny_encoder: Path, job_cache: JobCache, copied_pictures: None
) -> Watch:
    from flows.jobs.watch import watch as flow

    def run(retrain: str = "on_change", **changes: Any) -> dict[str, Any]:
        settings = flow_settings(folder, tiny_encoder) | {"judge.threshold": -1.0, "watch.retrain_on": retrain}
        resolved = load_settings("sample", settings | changes, {})
        with job_cache.resumed(home, resolved):
            return flow(resolved.settings.model_dump(), resolved.origins, str(home)).to_json()

    return run


def add_rows(folder: Path, seed: int = 5) -> None:
    """Put some more sentences of the same kind into the training file."""
    more = write_toy_data(folder.parent / f"more-{seed}", train=30, seed=seed) / "in_domain_train.tsv"
    train = folder / "in_domain_train.tsv"
    train.write_text(train.read_text() + more.read_text())


def flip_labels(folder: Path) -> None:
    """Make half of the unacceptable training sentences acceptable: the label share drifts, nothing else does."""
    train = folder / "in_domain_train.tsv"
    rows = train.read_text().splitlines(keepends=True)
    train.write_text("".join(row.replace("\t0\t", "\t1\t") if n % 2 else row for n, row in enumerate(rows)))


def test_without_a_champion_every_change_is_a_reason_to_train_but_never() -> None:
    from flows.jobs.watch import should_retrain

    assert [should_retrain(mode, [], None)[0] for mode in ("never", "on_change", "on_drift")] == [False, True, True]
    assert [should_retrain(mode, [], "a" * 64)[0] for mode in ("never", "on_change", "on_drift")] == [
        False,
        True,
        False,
    ]


def test_the_first_check_trains_and_the_next_one_finds_nothing_changed(watch: Watch, home: Path) -> None:
    first = watch()
    assert (first["changed"], first["action"], first["previous"]) == (True, "retrain", None)
    assert first["retrain"]["decision"] == "PROMOTE"
    assert set(first["seconds"]) == {"read data", "check data", "find champion"}  # the retraining run has its own
    assert "measure" in first["retrain"]["seconds"]
    assert (
        first["why"] == "the data changed; there is no champion's data to compare it with; watch.retrain_on = on_change"
    )
    again = watch()
    assert (again["changed"], again["action"], again["retrain"]) == (False, "none", None)
    assert again["previous"] == again["dataset"] == first["dataset"]
    assert again["why"] == f"the data is unchanged ({first['dataset'][:12]})"
    assert len(list((home / "runs").iterdir())) == 1


def test_changed_data_is_compared_with_the_champions_and_retrained_only_as_the_setting_says(
    champion: dict[str, Any], watch: Watch, folder: Path
) -> None:
    add_rows(folder, seed=5)
    outcome = watch(retrain="never")
    assert (outcome["changed"], outcome["previous"], outcome["action"]) == (True, champion["dataset"], "none")
    assert outcome["why"] == "the data changed; it did not drift from the champion's; watch.retrain_on = never"
    assert outcome["check"]["reference"] is not None
    assert not any(shift["drifted"] for shift in outcome["check"]["drift"])
    assert not watch(retrain="never")["changed"]  # seen is seen, with or without a retraining run
    add_rows(folder, seed=6)
    assert watch(retrain="on_drift")["action"] == "none"
    flip_labels(folder)
    drifted = watch(retrain="on_drift")
    assert drifted["action"] == "retrain"
    assert drifted["why"] == "the data changed; it drifted from the champion's (label); watch.retrain_on = on_drift"
    assert drifted["check"]["warnings"][0].startswith("whole data: drift from the champion's data, difference of the")
    assert drifted["retrain"]["dataset"] == drifted["dataset"]


def test_data_that_the_champion_was_trained_on_is_not_new_and_the_run_of_a_dead_process_is_closed(
    champion: dict[str, Any], watch: Watch, home: Path
) -> None:
    store = locate_store(str(home))
    dead = open_run(store, "b" * 16, {}, {"home": home_id(str(home))})
    assert running_jobs(store, home_id(str(home))) == {dead: "b" * 16}
    assert not watch()["changed"]
    assert running_jobs(store, home_id(str(home))) == {}


def test_rejected_data_starts_nothing_and_is_checked_again(
    champion: dict[str, Any], watch: Watch, folder: Path, home: Path
) -> None:
    rows = (folder / "in_domain_train.tsv").read_text()
    (folder / "in_domain_train.tsv").write_text(rows.replace("\t1\t", "\tyes\t"))
    for _ in range(2):
        with pytest.raises(DataRejected, match="share of quarantined training rows"):
            watch()
    assert len(list((home / "runs").iterdir())) == 1
    (folder / "in_domain_train.tsv").write_text(rows)
    assert not watch()["changed"]


def test_every_check_is_recorded_and_emits_an_event(
    watch: Watch, folder: Path, home: Path, prefect_server: str
) -> None:
    from prefect.client.orchestration import get_client

    outcome = watch(retrain="never")
    (record,) = (home / "watch").iterdir()
    kept = json.loads(record.read_text())
    assert (kept["dataset"], kept["why"]) == (outcome["dataset"], outcome["why"])
    with get_client(sync_client=True) as prefect:
        reports = [str(entry.data) for entry in prefect.read_artifacts() if entry.key == "data-gate"]
    assert any(outcome["check"]["report"] in entry for entry in reports)
    watch(retrain="never")
    with (folder / "in_domain_train.tsv").open("a") as file:
        file.write("torn\n" * 100)  # rows that can no longer be read are a change
    with pytest.raises(DataRejected, match="share of quarantined training rows"):
        watch(retrain="never")
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="does not exist"):
        watch(retrain="never")
    events = read_events(prefect_server, str(folder), expected=4)
    assert [event["event"] for event in events] == [
        "verdict.data.changed",
        "verdict.data.unchanged",
        "verdict.data.refused",
        "verdict.data.failed",
    ]
    assert len({event["resource"]["prefect.resource.id"] for event in events[:3]}) == 1
    assert events[1]["payload"]["dataset"] == events[0]["payload"]["dataset"]
    assert "share of quarantined training rows" in events[2]["payload"]["why"]
    assert "does not exist" in events[3]["payload"]["why"]


def test_other_text_is_a_change_too(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "more.txt"
    text.write_text("the cat sees the dog\n")
    assert watch(retrain="never", **{"data.text": str(text)})["changed"]
    assert not watch(retrain="never", **{"data.text": str(text)})["changed"]
    monkeypatch.chdir(tmp_path)
    assert not watch(retrain="never", **{"data.text": "more.txt"})["changed"]  # the same file by another name
    text.write_text("the dog sees the cat\n")
    assert watch(retrain="never", **{"data.text": str(text)})["changed"]


def read_events(api: str, address: str, expected: int) -> list[dict[str, Any]]:
    """Ask the server for our events about an address, oldest first; delivery takes a moment."""
    for _ in range(60):
        answer = httpx.post(
            f"{api}/events/filter", json={"filter": {"event": {"prefix": ["verdict.data."]}}, "limit": 50}
        )
        ours = [event for event in answer.json()["events"] if event["resource"].get("prefect.resource.name") == address]
        if len(ours) >= expected:
            break
        time.sleep(0.5)
    return sorted(ours, key=lambda event: event["occurred"])


class Started(Exception):
    """A retraining run was started."""


@pytest.fixture
def request_log(champion: dict[str, Any], home: Path) -> Path:
    """A request log of sentences that the champion's training data does not resemble."""
    answers = [
        ChampionAnswer(
            sentence=f"{'long ' * 50}{number}", label="acceptable", probability=0.52, truncated=False, version="1"
        )
        for number in range(300)
    ]
    log = RequestLog(RequestLogConfig(str(home / "requests"), sample=1.0, sentences="text"))
    log.add(answers, 0.01)
    log.close()
    return home / "requests"


def test_served_drift_starts_a_retraining_run_where_that_is_set_and_there_is_new_data(
    request_log: Path, watch: Watch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: Any) -> None:
        raise Started

    monkeypatch.setattr("flows.jobs.watch.retrain", start)
    settings = {"watch.request_log": str(request_log), "watch.retrain_on_served": "on_drift"}
    unchanged = watch("never", **settings)
    assert unchanged["why"].endswith(
        "; what is served drifted (label, length, vocabulary, probability), but no data is new"
    )
    assert unchanged["requests"]["sentences"] == 300
    add_rows(folder)
    off = watch("never", **settings | {"watch.retrain_on_served": "never"})
    assert (off["action"], off["changed"]) == ("none", True)
    assert off["why"] == "the data changed; it did not drift from the champion's; watch.retrain_on = never"
    with pytest.raises(Started):  # the data is not new since the last check, but the champion has not read it
        watch("never", **settings)


def test_a_failure_is_reported_once_by_the_outermost_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.jobs.retrain import retrain
    from flows.jobs.sweep import sweep
    from flows.jobs.watch import watch
    from flows.notifications import alert_failure

    assert [each.on_failure_hooks for each in (retrain, sweep, watch)] == [[alert_failure]] * 3
    state = SimpleNamespace(result=lambda raise_on_failure: UsageError("no data"))
    with receiving() as receiver:
        monkeypatch.setenv("VERDICT_ALERT_URL", receiver.url)
        for parent in ("a run of watch", None):
            alert_failure(retrain, SimpleNamespace(parent_task_run_id=parent), state)
    assert [message["text"] for message in receiver.received] == ["retrain failed: no data"]


def test_a_fallen_estimate_is_a_reason_only_where_its_whole_interval_lies_below_the_limit() -> None:
    from flows.jobs.watch import describe_served

    holdout, drift = {"mcc": 0.5, "low": 0.4, "high": 0.6}, [{"name": "length", "drifted": True}]
    summary: Any = {"drift": drift, "holdout": holdout, "estimate": {"mcc": 0.3, "low": 0.2, "high": 0.39}}

    def reason(when: Any, **changes: Any) -> str:
        return describe_served(summary | changes, WatchSettings(retrain_on_served=when, max_estimated_drop=0.1))

    assert reason("never") == ""
    assert reason("on_drift") == "what is served drifted (length)"
    assert reason("on_drop") == "the estimated MCC is 0.300, on the holdout it was 0.500"
    assert reason("on_either").count(";") == 1
    assert reason("on_drop", estimate={"mcc": 0.3, "low": 0.2, "high": 0.41}) == reason("on_drop", estimate=None) == ""
