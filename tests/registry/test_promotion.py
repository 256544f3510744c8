"""Changes of the champion's alias on a real SQLite store: recorded, checked, recovered, explained."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from registry_store import add_version, aliases, bundle_folder, changes_of, new_store, restore, set_alias
from signing_keys import PRIVATE, write_keys

from tasks.core.errors import UnknownModel, UnreachableError, UsageError, VerdictError
from tasks.core.files import json_digest
from tasks.inference.bundle import CHAMPION, MODEL_NAME
from tasks.registry import audit_log, champion_history, lookup, promotion, promotion_lock, register
from tasks.registry.audit_log import AliasChange
from tasks.registry.local_database import AUDIT_EXPERIMENT
from tasks.registry.mlflow_client import all_runs, connect, experiment_of
from tasks.registry.promotion import ChampionChanged, promote, read_champion_state, reject, set_challenger
from tasks.registry.store import MlflowStore


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promotion")
    new_store(empty_store, folder)
    return folder


@pytest.fixture
def store(empty_store: Path, folder: Path) -> MlflowStore:
    return restore(empty_store, folder)


def promote_now(store: MlflowStore, version: str, expected: str | None, **changes: Any) -> AliasChange:
    return promote(store, version, **{"kind": "promote", "expected": expected, "reason": "better", **changes})


def done(store: MlflowStore) -> list[tuple[str, str | None, str | None]]:
    return [(m["kind"], m["from"], m["to"]) for m in audit_log.read_changes(store) if m["state"] == "done"]


def test_a_promotion_is_recorded_with_actor_time_from_to_and_reason(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_ACTOR", "  ada \n lovelace ")
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    change = promote_now(store, second, first, reason="better by 0.1", verdict="e" * 64)
    assert aliases(store) == {"champion": second}
    (before, after) = audit_log.read_changes(store)
    assert after == change
    assert (after["kind"], after["from"], after["to"], after["version"]) == ("promote", first, second, second)
    assert (after["actor"], after["reason"], after["verdict"]) == ("ada lovelace", "better by 0.1", "e" * 64)
    assert (after["number"], after["previous"], after["state"], after["altered"]) == (2, before["id"], "done", False)
    assert after["bundle"] == lookup.read_tags(store, second)["bundle_digest"]
    assert after["time"].endswith("+00:00")
    assert before["time"] < after["time"]


def test_the_audit_log_outlives_versions_and_the_registered_model(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    promote_now(store, second, first)
    with connect(store) as client:
        client.delete_model_version(MODEL_NAME, second)
        client.delete_registered_model(MODEL_NAME)
    assert done(store) == [("promote", None, first), ("promote", first, second)]
    entries, _ = promotion.history(store)
    assert changes_of(entries)[-1] == ("lost", second, None)


def test_the_audit_log_outlives_its_deletion_in_mlflow_s_page(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    change = promote_now(store, first, None)
    with connect(store) as client:
        client.delete_run(change["id"])
        client.delete_experiment(experiment_of(client, store, AUDIT_EXPERIMENT))
    assert done(store) == [("promote", None, first)]
    assert promote_now(store, second, first)["previous"] == change["id"]


def test_a_promotion_against_another_champion_fails_and_writes_nothing(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    with pytest.raises(ChampionChanged, match="the champion is now 1, version 2 was compared with none"):
        promote_now(store, second, None)
    assert aliases(store) == {"champion": first}
    assert len(audit_log.read_changes(store)) == 1


def test_the_same_promotion_again_is_the_same_record(store: MlflowStore, tmp_path: Path) -> None:
    version = add_version(store, tmp_path, "a")
    assert promote_now(store, version, None) == promote_now(store, version, None)
    assert len(audit_log.read_changes(store)) == 1


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
    assert len(audit_log.read_changes(store)) == 1


def test_a_version_that_does_not_exist_is_an_error(store: MlflowStore, tmp_path: Path) -> None:
    add_version(store, tmp_path, "a")
    with pytest.raises(UnknownModel, match=r"has no version '7' in sqlite:.*; see: verdict status"):
        promote_now(store, "7", None)


def test_a_promoted_challenger_loses_its_alias(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    assert aliases(store) == {"champion": first, "challenger": second}
    promote_now(store, second, first)
    assert aliases(store) == {"champion": second}
    set_challenger(store, second)  # the champion never becomes challenger
    assert aliases(store) == {"champion": second}


def test_a_rejection_is_recorded_and_changes_no_champion(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    change = reject(store, second, "worse on questions", verdict="e" * 64)
    assert (change["kind"], change["version"], change["from"], change["to"]) == ("reject", second, first, first)
    assert aliases(store) == {"champion": first}
    tags = lookup.read_tags(store, second)
    assert (tags["verdict"], tags["decided_by"]) == ("REJECT", audit_log.actor())
    entries, _ = promotion.history(store)
    assert changes_of(entries) == [("promote", None, first), ("reject", first, first)]
    assert champion_history.champion_stack(entries) == [first]
    with pytest.raises(VerdictError, match="version 2 has the verdict REJECT; expected a HOLD to approve"):
        promote_now(store, second, first, kind="approve")
    with pytest.raises(VerdictError, match="version 2 has the verdict REJECT; expected a HOLD to reject"):
        reject(store, second, "again")
    with pytest.raises(ChampionChanged, match="version 1 is champion by now"):
        reject(store, first, "no reason")


def leave_pending(store: MlflowStore, **said: str | None) -> AliasChange:
    """Append the record that a process leaves which is killed right after."""
    return audit_log.begin(store, audit_log.read_changes(store), **{"kind": "promote", "reason": "better", **said})


def test_a_pending_record_is_withdrawn_where_the_alias_did_not_move(
    store: MlflowStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    leave_pending(store, version=second, **{"from": first, "to": second})
    assert changes_of(promotion.history(store)[0]) == [("promote", None, first)]
    promote_now(store, second, first)
    assert [(m["number"], m["state"]) for m in audit_log.read_changes(store)] == [
        (1, "done"),
        (2, "withdrawn"),
        (3, "done"),
    ]
    assert changes_of(promotion.history(store)[0]) == [("promote", None, first), ("promote", first, second)]
    assert caplog.messages == ["record 2 (promote 2) was left pending by a process that died; it is withdrawn"]


def test_a_pending_record_is_finished_where_the_alias_moved(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    pending = leave_pending(store, kind="approve", version=second, bundle="", **{"from": first, "to": second})
    set_alias(store, second)
    assert changes_of(promotion.history(store)[0]) == [
        ("promote", None, first),
        ("approve", first, second),
    ]  # explained
    with promotion_lock.promotion_lock(store):
        recovered, champion = promotion.recover_pending(store)
    assert (recovered[-1]["id"], recovered[-1]["state"]) == (pending["id"], "done")
    assert champion is not None
    assert champion["version"] == second
    assert aliases(store) == {"champion": second}  # no challenger any more
    assert lookup.read_tags(store, second)["verdict"] == "PROMOTE"


def test_a_pending_rejection_is_finished(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name, verdict="HOLD") for name in "ab")
    promote_now(store, first, None)
    set_challenger(store, second)
    leave_pending(store, kind="reject", version=second, **{"from": first, "to": first})
    assert changes_of(promotion.history(store)[0]) == [("promote", None, first)]  # not before its tags are set
    with pytest.raises(VerdictError, match="has the verdict REJECT"):
        promote_now(store, second, first, kind="approve")
    assert done(store)[-1] == ("reject", first, first)
    assert aliases(store) == {"champion": first}


def test_a_pending_rejection_of_a_deleted_version_does_not_block_promotions(store: MlflowStore, tmp_path: Path) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    leave_pending(store, kind="reject", version=first, **{"from": None, "to": None})
    with connect(store) as client:
        client.delete_model_version(MODEL_NAME, first)
    promote_now(store, second, None)
    assert done(store) == [("reject", None, None), ("promote", None, second)]


def test_an_alias_set_in_mlflow_s_page_is_unexplained_until_the_next_recorded_change(
    store: MlflowStore, tmp_path: Path
) -> None:
    first, second, third = (add_version(store, tmp_path, name) for name in "abc")
    promote_now(store, first, None)
    set_alias(store, second)
    entries, records = promotion.history(store)
    (entry,) = (entry for entry in entries if entry["time"] is None)
    assert (entry["kind"], entry["actor"], entry["from"], entry["to"]) == ("unexplained", None, first, second)
    assert champion_history.warnings(entries, records) == [entry["reason"]]
    assert entry["reason"] == "the champion's alias went from version 1 to version 2 and no record explains it"
    promote_now(store, third, second)
    entries, records = promotion.history(store)
    assert changes_of(entries) == [
        ("promote", None, first),
        ("unexplained", first, second),
        ("promote", second, third),
    ]
    assert champion_history.warnings(entries, records) == []  # whoever made the latest change saw it


def test_a_champion_from_before_the_audit_log_is_unexplained_and_active(store: MlflowStore, tmp_path: Path) -> None:
    version = add_version(store, tmp_path, "a")
    set_alias(store, version)
    assert read_champion_state(store) == "active"
    assert changes_of(promotion.history(store)[0]) == [("unexplained", None, version)]


@pytest.mark.parametrize("how", ["alias removed", "version deleted", "model deleted"])
def test_a_lost_champion_differs_from_none(store: MlflowStore, tmp_path: Path, how: str) -> None:
    assert read_champion_state(store) == "none"
    version = add_version(store, tmp_path, "a")
    assert read_champion_state(store) == "none"
    leave_pending(store, version=version, **{"from": None, "to": version})
    assert read_champion_state(store) == "none"  # a pending record is no champion
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
    entries, records = promotion.history(store)
    assert changes_of(entries) == [("promote", None, version), ("lost", version, None)]
    assert "lost" in champion_history.warnings(entries, records)[0]


def test_a_store_that_nothing_was_written_to_has_no_history(tmp_path: Path) -> None:
    store = MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path))
    assert (read_champion_state(store), promotion.history(store), audit_log.read_changes(store)) == (
        "none",
        ([], []),
        [],
    )
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but it is long enough to be read as one" * 50)
    with pytest.raises(UnreachableError, match=r"MLflow store .* failed"):
        read_champion_state(MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=""))


def test_a_version_number_of_another_bundle_is_unexplained(store: MlflowStore, tmp_path: Path) -> None:
    promote_now(store, add_version(store, tmp_path, "a"), None)
    with connect(store) as client:
        client.delete_registered_model(MODEL_NAME)
    assert add_version(store, tmp_path, "b") == "1"
    set_alias(store, "1")
    entries, _ = promotion.history(store)
    assert changes_of(entries) == [("promote", None, "1"), ("unexplained", "1", "1")]
    assert entries[-1]["reason"].startswith("version 1 is not the bundle that was made champion: ")


def test_a_permanently_deleted_record_is_shown_as_missing(store: MlflowStore, tmp_path: Path) -> None:
    numbers = [add_version(store, tmp_path, name) for name in "abc"]
    for before, version in zip([None, *numbers], numbers, strict=False):
        promote_now(store, version, before)
    _, middle, _ = records = audit_log.read_changes(store)
    champion = champion_history.ChampionRecord(version=numbers[2], digest=records[2]["bundle"])
    entries = champion_history.build_timeline([change for change in records if change != middle], champion)
    assert changes_of(entries) == [("promote", None, "1"), ("missing", "1", "2"), ("promote", "2", "3")]
    assert entries[1]["reason"] == "record 2 is missing: permanently deleted from the store"


def test_a_record_that_does_not_follow_the_one_before_it_is_shown_as_inserted(
    store: MlflowStore, tmp_path: Path
) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    promote_now(store, first, None)
    promote_now(store, second, first)
    one, two = audit_log.read_changes(store)
    champion = champion_history.ChampionRecord(version=second, digest=two["bundle"])
    foreign: audit_log.AliasChange = {**two, "previous": "of another store"}
    again: audit_log.AliasChange = {**two, "id": "copied"}
    assert champion_history.warnings(champion_history.build_timeline([one, two], champion), [one, two]) == []
    for records in ([one, foreign], [one, two, again]):
        entries = champion_history.build_timeline(records, champion)
        assert champion_history.warnings(entries, records) == [
            "record 2 was not written after the record before it: it was put in"
        ]


def test_only_records_that_took_effect_unaltered_say_which_bundle_a_version_was(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_version(store, tmp_path, "a")
    promote_now(store, version, None)
    (real,) = audit_log.read_changes(store)
    forged: audit_log.AliasChange = {**real, "bundle": "f" * 64}
    for record in ({**forged, "state": "withdrawn"}, {**forged, "altered": True}):
        assert champion_history.digest_of_version([real, record], version) == real["bundle"]  # type: ignore[list-item]
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    assert champion_history.digest_of_version([{**real, "trusted": True}, forged], version) == real["bundle"]


@pytest.mark.parametrize(
    ("tag", "value"), [("number", "9" * 5_000), ("time", "yesterday"), (audit_log.SIGNATURE_TAG, "[" * 3_000)]
)
def test_a_senseless_tag_of_a_record_is_a_warning_and_stops_nothing(
    store: MlflowStore, tmp_path: Path, tag: str, value: str
) -> None:
    first, second = (add_version(store, tmp_path, name) for name in "ab")
    damaged = promote_now(store, first, None)
    promote_now(store, second, first)
    with connect(store) as client:
        client.set_tag(damaged["id"], tag, value)
    entries, records = promotion.history(store)
    expected = "altered" if tag == audit_log.SIGNATURE_TAG else "missing"
    assert expected in " ".join(champion_history.warnings(entries, records))


def test_an_altered_record_is_a_warning(store: MlflowStore, tmp_path: Path) -> None:
    change = promote_now(store, add_version(store, tmp_path, "a"), None)
    with connect(store) as client:
        client.set_tag(change["id"], "actor", "somebody else")
    entries, records = promotion.history(store)
    assert champion_history.warnings(entries, records) == ["record 1 was altered after it was written"]
    assert entries[0]["signed_by"] == "altered after it was written"


def test_other_runs_in_the_audit_log_s_experiment_are_no_records(store: MlflowStore, tmp_path: Path) -> None:
    with connect(store) as client:
        client.create_run(experiment_of(client, store, AUDIT_EXPERIMENT), tags={"number": "x"})
    assert audit_log.read_changes(store) == []
    with connect(store) as client:
        assert len(all_runs(client, AUDIT_EXPERIMENT)) == 1


def test_every_page_of_the_audit_log_is_read(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    for _ in range(5):
        leave_pending(store, version="1", **{"from": None, "to": "1"})
    real = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", lambda *a, **k: real(*a, **{**k, "max_results": 2}))
    assert [change["number"] for change in audit_log.read_changes(store)] == [1, 2, 3, 4, 5]


def entry(kind: str, to: str | None) -> Any:
    return {"kind": kind, "to": to}


@pytest.mark.parametrize(
    ("changes", "stack"),
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
        ("p1 x2 u3", "13"),  # a rejection changes no champion, an unexplained change does
        ("", ""),
    ],
)
def test_the_champion_stack_leaves_out_what_was_rolled_back(changes: str, stack: str) -> None:
    kinds = {"p": "promote", "r": "rollback", "v": "lost", "u": "unexplained", "x": "reject"}
    entries = [entry(kinds[change[0]], None if change[1] == "-" else change[1]) for change in changes.split()]
    assert champion_history.champion_stack(entries) == list(stack)


def test_the_actor_is_user_and_host_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import socket

    monkeypatch.delenv("VERDICT_ACTOR", raising=False)
    assert audit_log.actor() == f"{getpass.getuser()}@{socket.gethostname()}"
    monkeypatch.setattr(getpass, "getuser", lambda: [][0])
    monkeypatch.setenv("VERDICT_ACTOR", "x" * 500)
    assert audit_log.actor() == "x" * 200


@pytest.mark.parametrize(("reason", "message"), [(" \n\t", "is empty"), ("x" * 2_001, "has 2001 characters")])
def test_a_reason_is_neither_empty_nor_too_long(reason: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        audit_log.check_reason(reason)
    assert audit_log.check_reason(" better\n on  questions ") == "better on questions"


def test_the_lock_is_waited_for_until_a_timeout(store: MlflowStore) -> None:
    order = []

    def take(name: str, seconds: float) -> None:
        with promotion_lock.promotion_lock(store):
            order.append(name)
            time.sleep(seconds)

    with promotion_lock.promotion_lock(store) as check:
        check()
        waiter = threading.Thread(target=take, args=("second", 0))
        waiter.start()
        with (
            pytest.raises(promotion_lock.LockTimeout, match="another promotion has been under way for 0 s"),
            promotion_lock.promotion_lock(store, 0.2),
        ):
            pass
        order.append("first")
    waiter.join()
    assert order == ["first", "second"]


def test_a_record_rewritten_with_a_fresh_checksum_is_shown_where_records_are_signed(
    store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = write_keys(tmp_path / "keys", "ada")
    first, second, third = (add_version(store, tmp_path, name) for name in "abc")
    monkeypatch.setenv("VERDICT_SIGNING_KEY", str(keys / f"ada{PRIVATE}"))
    assert promote_now(store, first, None)["signed_by"].startswith("signed by this program's own key (")
    promote_now(store, second, first)
    monkeypatch.delenv("VERDICT_SIGNING_KEY")
    monkeypatch.setenv("VERDICT_TRUSTED_KEYS", str(keys))
    promote_now(store, third, second)
    entries, records = promotion.history(store)
    assert [entry["signed_by"] for entry in entries][1:] == [records[0]["signed_by"], "not signed"]
    assert records[0]["signed_by"].startswith("signed by ada (key ")
    assert champion_history.warnings(entries, records) == []
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    assert champion_history.warnings(entries, records) == ["record 3 is not signed"]
    forged = {"actor": "eve", "reason": "of course"}
    with connect(store) as client:
        fields = {name: dict(records[1])[name] or "" for name in audit_log.TEXT_FIELDS} | {"number": "2"} | forged
        for key, value in (forged | {audit_log.DIGEST_TAG: json_digest(fields)}).items():
            client.set_tag(records[1]["id"], key, value)
    with monkeypatch.context() as patch:
        patch.setenv("VERDICT_TRUSTED_KEYS", str(tmp_path / "nowhere.pem"))
        with pytest.raises(UsageError, match=r"VERDICT_TRUSTED_KEYS: .* cannot be read"):
            audit_log.read_changes(store)
    entries, records = promotion.history(store)
    assert "record 2 was altered after it was written" in champion_history.warnings(entries, records)
    with pytest.raises(UsageError, match="VERDICT_REQUIRE_SIGNATURE is set and VERDICT_SIGNING_KEY is not"):
        audit_log.begin(store, records, kind="promote", version=first)
