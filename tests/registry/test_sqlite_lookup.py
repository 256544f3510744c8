"""The local database read without MLflow: it says what MLflow says, or leaves the answer to MLflow."""

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from registered import make_champion_store

from tasks.core.errors import VerdictError
from tasks.inference.bundle import CHAMPION, MODEL_NAME
from tasks.registry import local_database, lookup, promotion, register
from tasks.registry.mlflow_client import connect
from tasks.registry.promotion_lock import promotion_lock
from tasks.registry.sqlite_lookup import (
    KNOWN_SCHEMAS,
    check_local_version,
    find_local_champion,
    find_local_digest,
    find_local_version,
)
from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.verification import verify_version


@pytest.fixture
def store(empty_store: Path, exported: Any, tmp_path: Path) -> MlflowStore:
    return locate_store(str(make_champion_store(tmp_path, empty_store, exported)))


def second_version(store: MlflowStore) -> str:
    with connect(store) as client:
        first = client.get_model_version(MODEL_NAME, "1")
        tags = {"bundle_digest": "d" * 64}
        return str(client.create_model_version(MODEL_NAME, first.source, model_id=first.model_id, tags=tags).version)


def second_on_hold(store: MlflowStore) -> str:
    version = second_version(store)
    register.tag_version(store, version, {"verdict": "HOLD"})
    return version


def test_the_schema_is_that_of_the_installed_mlflow(empty_store: Path) -> None:
    with sqlite3.connect(empty_store) as database:
        assert {row[0] for row in database.execute("SELECT version_num FROM alembic_version")} == KNOWN_SCHEMAS


def test_alias_and_number_lead_where_mlflow_leads(store: MlflowStore, exported: Any) -> None:
    for alias, number in ((CHAMPION, ""), ("", "1")):
        address = f"models:/{MODEL_NAME}" + (f"@{alias}" if alias else f"/{number}")
        expected = lookup.resolve_version(store, address, fetch=True)
        found = find_local_version(store, MODEL_NAME, alias, number)
        assert found is not None
        assert (found.version, str(found.model / "data" / "bundle")) == (expected["version"], expected["bundle"])
        digests = [found.tags[tag] for tag in ("bundle_digest", "manifest_digest", "wrapping_digest")]
        assert digests == [expected["digest"], expected["manifest_digest"], expected["wrapping_digest"]]
    assert find_local_digest(store, MODEL_NAME, exported["digest"]) == "1"


def test_a_moved_alias_is_seen_at_once_and_a_deleted_version_no_more(store: MlflowStore) -> None:
    second = second_version(store)
    register.move_alias(store, CHAMPION, second)
    found = find_local_version(store, MODEL_NAME, CHAMPION, "")
    assert found is not None
    assert (found.version, find_local_digest(store, MODEL_NAME, "d" * 64)) == ("2", "2")
    register.drop_alias(store, CHAMPION, second)
    assert find_local_version(store, MODEL_NAME, CHAMPION, "") is None
    with connect(store) as client:
        client.delete_model_version(MODEL_NAME, second)
    assert find_local_version(store, MODEL_NAME, "", second) is None
    assert find_local_digest(store, MODEL_NAME, "d" * 64) is None


def test_a_missing_version_gives_the_same_message_as_through_mlflow(store: MlflowStore) -> None:
    check_local_version(store, f"models:/{MODEL_NAME}@{CHAMPION}")
    check_local_version(store, f"models:/{MODEL_NAME}/1")
    check_local_version(store, f"models:/{MODEL_NAME}@latest")
    check_local_version(store, "models:/other/1")
    for address in (f"models:/{MODEL_NAME}/7", f"models:/{MODEL_NAME}@challenger"):
        with pytest.raises(VerdictError) as ours:
            check_local_version(store, address)
        with pytest.raises(VerdictError) as mlflows:
            lookup.resolve_version(store, address)
        assert (type(ours.value), str(ours.value)) == (type(mlflows.value), str(mlflows.value))


def test_the_champion_is_known_with_the_time_of_its_promotion(store: MlflowStore) -> None:
    assert find_local_champion(store, MODEL_NAME) == ("1", "")  # no record says so
    change = promotion.promote(store, "1", kind="promote", expected="1", reason="it is good")
    promotion.reject(store, second_on_hold(store), "it is not")  # moves nothing
    assert find_local_champion(store, MODEL_NAME) == ("1", change["time"])
    register.drop_alias(store, CHAMPION, "1")
    assert find_local_champion(store, MODEL_NAME) is None


def test_what_does_not_exist_is_left_to_mlflow(store: MlflowStore) -> None:
    for name, alias, number in (
        (MODEL_NAME, "nobody", ""), (MODEL_NAME, "", "7"), (MODEL_NAME, "", "one"), ("other", CHAMPION, ""),
        (MODEL_NAME, "latest", ""), (MODEL_NAME, "CHAMPION", ""),
    ):  # fmt: skip
        assert find_local_version(store, name, alias, number) is None, (name, alias, number)
    assert find_local_digest(store, MODEL_NAME, "0" * 64) is None


def test_stores_that_only_mlflow_reads(store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "mlflow.db"

    def found(uri: str = store["uri"]) -> object:
        return find_local_version(MlflowStore(uri=uri, artifacts=""), MODEL_NAME, CHAMPION, "")

    assert found() is not None
    assert found("http://127.0.0.1:5000") is None
    assert found(f"{store['uri']}?timeout=3") is None
    missing = tmp_path / "other.db"
    assert found(f"sqlite:///{missing}") is None
    assert not missing.exists()
    missing.write_bytes(b"no database" * 100)
    assert found(f"sqlite:///{missing}") is None
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_WORKSPACE", "team")
        assert found() is None
    with sqlite3.connect(database) as connection:
        (location,) = connection.execute("SELECT artifact_location FROM logged_models").fetchone()
        for elsewhere in ("s3://bucket/model", "file://host/model", "file:///no/such/folder", "relative/folder"):
            connection.execute("UPDATE logged_models SET artifact_location = ?", (elsewhere,))
            connection.execute("UPDATE model_versions SET storage_location = ?", (elsewhere,))
            connection.commit()
            assert found() is None, elsewhere
        connection.execute("UPDATE logged_models SET artifact_location = ?", (location,))
        connection.execute("UPDATE model_versions SET storage_location = NULL")
        connection.commit()
        assert found() is not None
        connection.execute("UPDATE alembic_version SET version_num = 'newer'")
        connection.commit()
    assert found() is None


def test_a_database_that_another_process_writes_is_read_as_committed(store: MlflowStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM registered_model_aliases")
        assert find_local_version(store, MODEL_NAME, CHAMPION, "") is not None
        writer.execute("COMMIT")
    assert find_local_version(store, MODEL_NAME, CHAMPION, "") is None


def test_a_location_with_escaped_characters(store: MlflowStore, tmp_path: Path) -> None:
    before = find_local_version(store, MODEL_NAME, CHAMPION, "")
    assert before is not None
    folder = tmp_path / "models of ours"
    shutil.copytree(before.model, folder)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("UPDATE model_versions SET storage_location = ?", (folder.as_uri(),))
    after = find_local_version(store, MODEL_NAME, CHAMPION, "")
    assert after is not None
    assert after.model == folder


def test_reading_a_version_writes_no_file_beside_it(store: MlflowStore) -> None:
    folder = Path(store["artifacts"])
    before = sorted(folder.rglob("*"))
    assert Path(lookup.resolve_version(store, f"models:/{MODEL_NAME}@{CHAMPION}", fetch=True)["bundle"]).is_dir()
    assert verify_version(store, "1")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("mode", "write"), [("EXCLUSIVE", False), ("IMMEDIATE", True)])
def test_a_database_that_another_program_locks_is_waited_for(
    store: MlflowStore, mode: str, write: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = Path(store["uri"].removeprefix("sqlite:///"))
    monkeypatch.setattr(local_database, "LOCK_NOTICE_S", 0.1)
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute(f"BEGIN {mode}")
        ending = threading.Timer(0.5, other.rollback)
        ending.start()
        if write:
            with promotion_lock(store):
                pass
        else:
            found = find_local_version(store, MODEL_NAME, CHAMPION, "")
            assert found is not None
            assert found.version == "1"
        ending.join()
    [line] = [record.getMessage() for record in caplog.records if record.name == "tasks.registry"]
    assert line == f"{database} is locked by another program; waiting up to 60 s"
