"""kill -9 at a step of a rollback: the same command again goes back once, not twice."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_points import KILLED, KillableProcess
from registry_store import add_version, aliases, is_complete, new_store, restore, store_in

from flows.commands import review
from tasks.registry import audit_log, promotion

REASON = "complaints"
CALL = "flows.commands.review.rollback"


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose versions 1, 2 and 3 became champion one after the other, with a backup of its database."""
    folder = tmp_path_factory.mktemp("rollbacks")
    store = new_store(empty_store, folder)
    for before, name in zip([None, "1", "2"], "abc", strict=True):
        version = add_version(store, folder, name, mcc="0.5")
        promotion.promote(store, version, kind="promote", expected=before, reason=f"better {name}")
    shutil.copy(folder / "mlflow.db", folder / "backup.db")
    return folder


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[KillableProcess]:
    with KillableProcess("flows.commands.review", VERDICT_ACTOR="ada") as process:
        process.preload("tasks.registry.promotion.current_champion", store_in(folder))
        yield process


@pytest.fixture(autouse=True)
def _person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_ACTOR", "ada")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_rollback_that_is_killed_at_any_call_goes_back_once_when_it_is_repeated(
    process: KillableProcess, folder: Path
) -> None:
    champions_after_kills = []
    for number in itertools.count(1):
        store = restore(folder / "backup.db", folder)
        if (ended := process.run(CALL, None, REASON, False, str(folder), point=number)) == 0:
            break
        assert ended == KILLED
        champions_after_kills.append(aliases(store)["champion"])
        change = review.rollback(None, REASON, False, str(folder))
        assert (change["kind"], change["from"], change["to"]) == ("rollback", "3", "2")
        assert aliases(store)["champion"] == "2"
        changes = audit_log.read_changes(store)
        assert is_complete(changes)
        assert [change["kind"] for change in changes if change["state"] == "done"] == ["promote"] * 3 + ["rollback"]
    assert champions_after_kills == ["3"] * champions_after_kills.count("3") + ["2"] * champions_after_kills.count("2")
    assert set(champions_after_kills) == {"2", "3"}


def test_a_rollback_is_repeated_for_the_same_person_and_reason_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import show_review

    store = restore(folder / "backup.db", folder)
    assert not review.rollback(None, REASON, False, str(folder))["repeated"]
    again = review.rollback(None, REASON, False, str(folder))
    assert again["repeated"]
    assert again == review.rollback("2", REASON, False, str(folder))
    assert json.dumps(again)
    show_review.show_change(again)
    assert "already; to go further back: verdict rollback --to VERSION" in capsys.readouterr().out
    assert aliases(store)["champion"] == "2"
    monkeypatch.setenv("VERDICT_ACTOR", "grace")
    assert review.rollback(None, REASON, False, str(folder))["to"] == "1"
