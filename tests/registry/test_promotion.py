"""Moves of the champion's alias on a real SQLite store: recorded, checked, settled, explained."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shelves import add_version, aliases, bundle_folder, new_store, set_alias, shown

from tasks.core.errors import UnknownModel, UnreachableError, UsageError, VerdictError
from tasks.inference.bundle import CHAMPION, MODEL_NAME
from tasks.registry import audit_log as record
from tasks.registry import champion_history as told
from tasks.registry import lookup, register
from tasks.registry import promotion as moves
from tasks.registry import promotion_lock as turns
from tasks.registry.audit_log import AliasChange
from tasks.registry.mlflow_client import AUDIT_EXPERIMENT, MlflowStore, all_runs, connect, experiment_of
from tasks.registry.promotion import ChampionChanged, promote, read_champion_state, reject, set_challenger


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def promote_now(store: MlflowStore, version: str, expected: str | None, **changes: Any) -> AliasChange:
    return promote(store, version, **{"kind": "promote", "expected": expected, "reason": "better", **changes})


def done(store: MlflowStore) -> list[tuple[str, str | None, str | None]]:
    return [(m["kind"], m["from"], m["to"]) for m in record.read_changes(store) if m["state"] == "done"]


def test_a_promotion_is_recorded_with_who_when_from_to_and_why(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_ACTOR", "  ada \n lovelace ")
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    move = promote_now(store, second, first, reason="better by 0.1", verdict="e" * 64)
    assert aliases(store) == {"champion": second}
    (before, after) = record.read_changes(store)
    assert after == move
    assert (after["kind"], after["from"], after["to"], after["version"]) == ("promote", first, second, second)
    assert (after["actor"], after["reason"], after["verdict"]) == ("ada lovelace", "better by 0.1", "e" * 64)
    assert (after["number"], after["previous"], after["state"], after["altered"]) == (2, before["id"], "done", False)
    assert after["bundle"] == lookup.read_tags(store, second)["bundle_digest"]
    assert after["time"].endswith("+00:00")
    assert before["time"] < after["time"]


def test_the_record_outlives_versions_and_the_registered_model(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    promote_now(store, second, first)
    with connect(store) as client:
        client.delete_model_version(MODEL_NAME, second)
        client.delete_registered_model(MODEL_NAME)
    assert done(store) == [("promote", None, first), ("promote", first, second)]
    entries, _ = moves.history(store)
    assert shown(entries)[-1] == ("lost", second, None)


def test_the_record_outlives_its_deletion_in_mlflow_s_page(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    move = promote_now(store, first, None)
    with connect(store) as client:
        client.delete_run(move["id"])
        client.delete_experiment(experiment_of(client, store, AUDIT_EXPERIMENT))
    assert done(store) == [("promote", None, first)]
    assert promote_now(store, second, first)["previous"] == move["id"]


def test_a_move_against_another_champion_is_refused_and_writes_nothing(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    with pytest.raises(ChampionChanged, match="the champion is now 1, version 2 was compared with none"):
        promote_now(store, second, None)
    assert aliases(store) == {"champion": first}
    assert len(record.read_changes(store)) == 1


def test_the_same_promotion_again_is_the_same_record(store: MlflowStore, tmp_path: Path) -> None:
    version = add_version(store, tmp_path, "a")
    assert promote_now(store, version, None) == promote_now(store, version, None)
    assert len(record.read_changes(store)) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "altered",
            "bundle of version 2: model.onnx does not match its SHA-256 in bundle.json; delete it",
        ),
        ("missing", "bundle of version 2 lacks tokenizer.json; delete it"),
        ("added", "bundle of version 2 holds weights.bin, which bundle.json does not list; delete it"),
        ("manifest", "version 2 is no bundle: it holds no bundle.json"),
        ("gone", "version 2: its files cannot be read"),
        ("other", "version 2 holds bundle [0-9a-f]{12}, registered was ffffffffffff"),
    ],
)
def test_a_version_with_missing_or_altered_files_never_becomes_champion(
    store: MlflowStore, tmp_path: Path, damage: str, message: str
) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    bundle = bundle_folder(tmp_path, "b")
    if damage == "altered":
        (bundle / "model.onnx").write_text("something else")
    elif damage == "missing":
        (bundle / "tokenizer.json").unlink()
    elif damage == "added":
        (bundle / "weights.bin").write_text("external data")
    elif damage == "manifest":
        (bundle / "bundle.json").unlink()
    elif damage == "gone":
        bundle.parents[1].rename(tmp_path / "elsewhere")
    else:
        register.tag_version(store, second, {"bundle_digest": "f" * 64})
    for kind in ("promote", "approve", "rollback"):
        with pytest.raises(VerdictError, match=message):
            promote_now(store, second, first, kind=kind)
    assert aliases(store) == {"champion": first}
    assert len(record.read_changes(store)) == 1


def test_a_version_that_does_not_exist_is_told(store: MlflowStore, tmp_path: Path) -> None:
    add_version(store, tmp_path, "a")
    with pytest.raises(UnknownModel, match=r"version '7' does not exist in sqlite:.*; see: verdict status"):
        promote_now(store, "7", None)


def test_a_challenger_that_is_promoted_is_challenger_no_more(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    assert aliases(store) == {"champion": first, "challenger": second}
    promote_now(store, second, first)
    assert aliases(store) == {"champion": second}
    set_challenger(store, second)  # a champion does not challenge itself
    assert aliases(store) == {"champion": second}


def test_a_rejection_is_recorded_and_moves_nothing(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    move = reject(store, second, "worse on questions", verdict="e" * 64)
    assert (move["kind"], move["version"], move["from"], move["to"]) == ("reject", second, first, first)
    assert aliases(store) == {"champion": first}
    tags = lookup.read_tags(store, second)
    assert (tags["verdict"], tags["decided_by"]) == ("REJECT", record.actor())
    assert tags["decision"] == "reject: worse on questions"
    entries, _ = moves.history(store)
    assert shown(entries) == [("promote", None, first), ("reject", first, first)]
    assert told.champion_stack(entries) == [first]
    with pytest.raises(VerdictError, match="version 2 has the verdict REJECT; expected a HOLD to approve"):
        promote_now(store, second, first, kind="approve")
    with pytest.raises(VerdictError, match="version 2 has the verdict REJECT; expected a HOLD to reject"):
        reject(store, second, "again")
    with pytest.raises(ChampionChanged, match="version 1 is champion by now"):
        reject(store, first, "away with it")


def leave_pending(store: MlflowStore, **said: str | None) -> AliasChange:
    """What a process leaves that is killed after it wrote its intent."""
    return record.begin(store, record.read_changes(store), **{"kind": "promote", "reason": "better", **said})


def test_what_a_killed_process_left_is_withdrawn_where_nothing_moved(
    store: MlflowStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    leave_pending(store, version=second, **{"from": first, "to": second})
    assert shown(moves.history(store)[0]) == [("promote", None, first)]
    promote_now(store, second, first)
    assert [(m["number"], m["state"]) for m in record.read_changes(store)] == [
        (1, "done"),
        (2, "withdrawn"),
        (3, "done"),
    ]
    assert shown(moves.history(store)[0]) == [("promote", None, first), ("promote", first, second)]
    assert caplog.messages == ["record 2 (promote 2) was left pending by a process that died; it is withdrawn"]


def test_what_a_killed_process_left_is_finished_where_the_alias_moved(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    left = leave_pending(store, kind="approve", version=second, bundle="", **{"from": first, "to": second})
    set_alias(store, second)
    assert shown(moves.history(store)[0]) == [("promote", None, first), ("approve", first, second)]  # explained
    with turns.promotion_lock(store):
        settled, champion = moves.recover_pending(store)
    assert (settled[-1]["id"], settled[-1]["state"]) == (left["id"], "done")
    assert champion is not None
    assert champion["version"] == second
    assert aliases(store) == {"champion": second}  # no challenger any more
    assert lookup.read_tags(store, second)["verdict"] == "PROMOTE"


def test_a_rejection_that_was_left_pending_is_finished(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    leave_pending(store, kind="reject", version=second, **{"from": first, "to": first})
    assert shown(moves.history(store)[0]) == [("promote", None, first)]  # not before its tags are set
    with pytest.raises(VerdictError, match="has the verdict REJECT"):
        promote_now(store, second, first, kind="approve")
    assert done(store)[-1] == ("reject", first, first)
    assert aliases(store) == {"champion": first}


def test_a_pending_rejection_of_a_deleted_version_blocks_nobody(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    leave_pending(store, kind="reject", version=first, **{"from": None, "to": None})
    with connect(store) as client:
        client.delete_model_version(MODEL_NAME, first)
    promote_now(store, second, None)
    assert done(store) == [("reject", None, None), ("promote", None, second)]


def test_an_alias_set_in_mlflow_s_page_is_seen_and_the_next_move_goes_on_from_it(
    store: MlflowStore, tmp_path: Path
) -> None:
    first, second, third = (add_version(store, tmp_path, name) for name in "abc")
    promote_now(store, first, None)
    set_alias(store, second)
    entries, records = moves.history(store)
    (entry,) = (entry for entry in entries if entry["time"] is None)
    assert (entry["kind"], entry["actor"], entry["from"], entry["to"]) == ("unexplained", None, first, second)
    assert told.warnings(entries, records) == [entry["reason"]]
    assert entry["reason"] == "the champion's alias went from version 1 to version 2 and no record explains it"
    promote_now(store, third, second)
    entries, records = moves.history(store)
    assert shown(entries) == [
        ("promote", None, first),
        ("unexplained", first, second),
        ("promote", second, third),
    ]
    assert told.warnings(entries, records) == []  # somebody moved on from it


def test_a_champion_from_before_the_record_is_unexplained_and_reigns(store: MlflowStore, tmp_path: Path) -> None:
    version = add_version(store, tmp_path, "a")
    set_alias(store, version)
    assert read_champion_state(store) == "active"
    assert shown(moves.history(store)[0]) == [("unexplained", None, version)]


@pytest.mark.parametrize("how", ["alias removed", "version deleted", "model deleted"])
def test_a_champion_that_vanished_is_not_one_that_never_was(store: MlflowStore, tmp_path: Path, how: str) -> None:
    assert read_champion_state(store) == "none"
    version = add_version(store, tmp_path, "a")
    assert read_champion_state(store) == "none"
    leave_pending(store, version=version, **{"from": None, "to": version})
    assert read_champion_state(store) == "none"  # an intent is no champion
    promote_now(store, version, None)
    assert read_champion_state(store) == "active"
    with connect(store) as client:
        if how == "alias removed":
            client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
        elif how == "version deleted":
            client.delete_model_version(MODEL_NAME, version)
        else:
            client.delete_registered_model(MODEL_NAME)
    assert read_champion_state(store) == "lost"
    entries, records = moves.history(store)
    assert shown(entries) == [("promote", None, version), ("lost", version, None)]
    assert "lost" in told.warnings(entries, records)[0]


def test_a_store_that_nothing_was_written_to_has_no_history(tmp_path: Path) -> None:
    store = MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path))
    assert (read_champion_state(store), moves.history(store), record.read_changes(store)) == ("none", ([], []), [])
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_is_none_of_the_three(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to be read as one" * 50)
    with pytest.raises(UnreachableError, match=r"MLflow store .* failed"):
        read_champion_state(MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=""))


def test_a_number_that_was_given_to_another_bundle_is_told(store: MlflowStore, tmp_path: Path) -> None:
    promote_now(store, add_version(store, tmp_path, "a"), None)
    with connect(store) as client:
        client.delete_registered_model(MODEL_NAME)
    assert add_version(store, tmp_path, "b") == "1"
    set_alias(store, "1")
    entries, _ = moves.history(store)
    assert shown(entries) == [("promote", None, "1"), ("unexplained", "1", "1")]
    assert entries[-1]["reason"].startswith("version 1 is not the bundle that was made champion: ")


def test_a_record_that_is_gone_for_good_leaves_a_gap_that_is_shown(store: MlflowStore, tmp_path: Path) -> None:
    versions = [add_version(store, tmp_path, name) for name in "abc"]
    for before, version in zip([None, *versions], versions, strict=False):
        promote_now(store, version, before)
    _, middle, _ = records = record.read_changes(store)
    champion = told.ChampionRecord(version=versions[2], digest=records[2]["bundle"])
    entries = told.build_timeline([move for move in records if move != middle], champion)
    assert shown(entries) == [("promote", None, "1"), ("missing", "1", "2"), ("promote", "2", "3")]
    assert entries[1]["reason"] == "record 2 is missing: permanently deleted from the store"


def test_a_record_that_was_altered_is_told(store: MlflowStore, tmp_path: Path) -> None:
    move = promote_now(store, add_version(store, tmp_path, "a"), None)
    with connect(store) as client:
        client.set_tag(move["id"], "actor", "somebody else")
    entries, records = moves.history(store)
    assert told.warnings(entries, records) == ["record 1 was altered after it was written"]


def test_other_people_s_runs_in_the_record_s_experiment_are_no_records(store: MlflowStore, tmp_path: Path) -> None:
    with connect(store) as client:
        client.create_run(experiment_of(client, store, AUDIT_EXPERIMENT), tags={"number": "x"})
    assert record.read_changes(store) == []
    with connect(store) as client:
        assert len(all_runs(client, AUDIT_EXPERIMENT)) == 1


def test_a_record_of_many_pages_is_read_whole(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    for _ in range(5):
        leave_pending(store, version="1", **{"from": None, "to": "1"})
    real = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", lambda *a, **k: real(*a, **{**k, "max_results": 2}))
    assert [move["number"] for move in record.read_changes(store)] == [1, 2, 3, 4, 5]


def entry(kind: str, to: str | None) -> Any:
    return {"kind": kind, "to": to}


@pytest.mark.parametrize(
    ("went", "stack"),
    [
        ("p1 p2 p3", "123"),
        ("p1 p2 p3 r2", "12"),
        ("p1 p2 p3 r2 r1", "1"),
        ("p1 p2 p3 r1 p4", "14"),
        ("p1 p2 r1 r2", "12"),  # forward again, by name
        ("p1 p2 p1", "121"),
        ("p1 p2 p1 r2", "12"),
        ("p1 p2 v-", "12"),
        ("p1 p2 v- r2", "12"),
        ("p1 p2 v- p3", "123"),
        ("p1 x2 u3", "13"),  # a rejection moves nothing, an unexplained move does
        ("", ""),
    ],
)
def test_who_reigned_before_forgets_what_was_rolled_back(went: str, stack: str) -> None:
    kinds = {"p": "promote", "r": "rollback", "v": "lost", "u": "unexplained", "x": "reject"}
    entries = [entry(kinds[move[0]], None if move[1] == "-" else move[1]) for move in went.split()]
    assert told.champion_stack(entries) == list(stack)


def test_the_actor_is_user_and_host_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import socket

    monkeypatch.delenv("VERDICT_ACTOR", raising=False)
    assert record.actor() == f"{getpass.getuser()}@{socket.gethostname()}"
    monkeypatch.setattr(getpass, "getuser", lambda: [][0])
    monkeypatch.setenv("VERDICT_ACTOR", "x" * 500)
    assert record.actor() == "x" * 200


@pytest.mark.parametrize(("reason", "message"), [(" \n\t", "is empty"), ("x" * 2_001, "has 2001 characters")])
def test_a_reason_says_something_in_so_many_characters(reason: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        record.check_reason(reason)
    assert record.check_reason(" better\n on  questions ") == "better on questions"


def test_a_turn_is_waited_for_and_given_up_after_so_long(store: MlflowStore) -> None:
    order = []

    def take(name: str, seconds: float) -> None:
        with turns.promotion_lock(store):
            order.append(name)
            time.sleep(seconds)

    with turns.promotion_lock(store) as check:
        check()
        waiter = threading.Thread(target=take, args=("second", 0))
        waiter.start()
        with (
            pytest.raises(turns.LockTimeout, match="another promotion has been under way for 0 s"),
            turns.promotion_lock(store, 0.2),
        ):
            pass
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]
