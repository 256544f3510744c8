"""The watch flow on a real Prefect server and a real SQLite store."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_cache import JobCache
from toy import flow_settings, write_toy_data

from tasks.core.errors import DataRejected, UsageError
from tasks.core.settings_loader import load_settings

Watch = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, toy_data: Path) -> Path:
    """Toy data that a test may change."""
    return Path(shutil.copytree(toy_data, tmp_path / "data"))


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "home").mkdir()
    shutil.copy(empty_store, tmp_path / "home" / "mlflow.db")
    return tmp_path / "home"


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


def test_the_first_check_trains_and_the_next_one_finds_nothing_changed(watch: Watch, home: Path) -> None:
    first = watch()
    assert (first["changed"], first["action"], first["previous"]) == (True, "retrain", None)
    assert first["retrain"]["decision"] == "PROMOTE"
    assert (
        first["why"] == "the data changed; there is no champion's data to compare it with; watch.retrain_on = on_change"
    )
    again = watch()
    assert (again["changed"], again["action"], again["retrain"]) == (False, "none", None)
    assert again["previous"] == again["dataset"] == first["dataset"]
    assert again["why"] == f"the data is unchanged ({first['dataset'][:12]})"
    assert len(list((home / "runs").iterdir())) == 1


def test_changed_data_is_compared_with_the_champions_and_retrained_only_as_the_setting_says(
    watch: Watch, folder: Path, home: Path
) -> None:
    champion = watch()["dataset"]
    add_rows(folder, seed=5)
    outcome = watch(retrain="never")
    assert (outcome["changed"], outcome["previous"], outcome["action"]) == (True, champion, "none")
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


def test_on_drift_without_a_champion_trains_the_first_model(watch: Watch) -> None:
    assert watch(retrain="on_drift")["action"] == "retrain"


def test_data_that_the_champion_was_trained_on_is_not_new(watch: Watch, home: Path) -> None:
    watch()
    shutil.rmtree(home / "watch")
    assert not watch()["changed"]


def test_rejected_data_starts_nothing_and_is_checked_again(watch: Watch, folder: Path, home: Path) -> None:
    watch()
    champion = (folder / "in_domain_train.tsv").read_text()
    (folder / "in_domain_train.tsv").write_text(champion.replace("\t1\t", "\tyes\t"))
    for _ in range(2):
        with pytest.raises(DataRejected, match="share of quarantined training rows"):
            watch()
    assert len(list((home / "runs").iterdir())) == 1
    (folder / "in_domain_train.tsv").write_text(champion)
    assert not watch()["changed"]


def test_every_check_emits_an_event(watch: Watch, folder: Path, prefect_server: str) -> None:
    watch(retrain="never")
    watch(retrain="never")
    (folder / "in_domain_train.tsv").write_text("broken\n" * 99)
    with pytest.raises(DataRejected):
        watch(retrain="never")
    events = read_events(prefect_server, str(folder), expected=3)
    assert [event["event"] for event in events] == [
        "verdict.data.changed",
        "verdict.data.unchanged",
        "verdict.data.refused",
    ]
    assert len({event["resource"]["prefect.resource.id"] for event in events}) == 1
    assert events[1]["payload"]["dataset"] == events[0]["payload"]["dataset"]
    assert "share of quarantined training rows" in events[2]["payload"]["why"]


def test_rows_that_can_no_longer_be_read_are_a_change(watch: Watch, folder: Path) -> None:
    watch(retrain="never")
    with (folder / "in_domain_train.tsv").open("a") as file:
        file.write("torn\n" * 100)
    with pytest.raises(DataRejected, match="share of quarantined training rows"):
        watch(retrain="never")


def test_other_text_is_a_change_too(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "more.txt"
    text.write_text("the cat sees the dog\n")
    assert watch(retrain="never", **{"data.text": str(text)})["changed"]
    assert not watch(retrain="never", **{"data.text": str(text)})["changed"]
    monkeypatch.chdir(tmp_path)
    assert not watch(retrain="never", **{"data.text": "more.txt"})["changed"]  # the same file by another name
    text.write_text("the dog sees the cat\n")
    assert watch(retrain="never", **{"data.text": str(text)})["changed"]


def test_data_that_cannot_be_read_emits_an_event_too(watch: Watch, folder: Path, prefect_server: str) -> None:
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match="does not exist"):
        watch(retrain="never")
    (event,) = read_events(prefect_server, str(folder), expected=1)
    assert event["event"] == "verdict.data.failed"
    assert "does not exist" in event["payload"]["why"]


def test_the_gates_report_is_an_artifact(watch: Watch, folder: Path) -> None:
    from prefect.client.orchestration import get_client

    outcome = watch(retrain="never")
    with get_client(sync_client=True) as prefect:
        kept = [str(entry.data) for entry in prefect.read_artifacts() if entry.key == "data-gate"]
    assert any(outcome["check"]["report"] in entry for entry in kept)


def test_a_check_and_its_retraining_run_have_their_own_times(watch: Watch) -> None:
    outcome = watch()
    assert set(outcome["seconds"]) == {"read data", "check data", "find champion"}
    assert "measure" in outcome["retrain"]["seconds"]


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


def test_the_last_check_is_recorded_as_json_with_its_reason(watch: Watch, home: Path) -> None:
    outcome = watch(retrain="never")
    (record,) = (home / "watch").iterdir()
    kept = json.loads(record.read_text())
    assert (kept["dataset"], kept["why"]) == (outcome["dataset"], outcome["why"])
