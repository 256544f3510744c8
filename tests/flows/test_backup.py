"""The commands backup, restore and upgrade: what they refuse, and what they leave."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from flows.commands import backup
from tasks.core.errors import UsageError, VerdictError
from tasks.registry import schema_upgrade


@pytest.fixture
def home(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the schema before the latest."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    path = tmp_path_factory.mktemp("older") / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_revision("head")
    assert head is not None
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, str(head.down_revision))
    engine.dispose()
    return path


def stop(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "folder"), [("job", "runs"), ("sweep", "sweeps")])
def test_stores_are_replaced_only_where_that_was_asked_for_and_nothing_uses_them(
    kind: str, folder: str, home: Path, tmp_path: Path
) -> None:
    archive = str(tmp_path / "copy.tar")
    assert backup.backup(archive, True, str(home))["files"] == ["mlflow.db"]
    assert not Path(archive).exists()
    backup.backup(archive, False, str(home))
    with pytest.raises(UsageError, match="holds stores; expected an empty folder, or --replace"):
        backup.restore(archive, False, False, str(home))
    (home / folder / "one").mkdir(parents=True)
    with FileLock(home / folder / "one" / "lock"), pytest.raises(VerdictError, match=f"{kind} one runs in"):
        backup.restore(archive, True, False, str(home))
    assert backup.restore(archive, True, True, str(home))["aside"] == ""
    assert (home / folder).is_dir()
    aside = backup.restore(archive, True, False, str(home))["aside"]
    assert (Path(aside) / folder).is_dir()
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]


def test_files_that_vanish_before_their_sizes_are_added_up_do_not_matter(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "rows").write_bytes(b"0" * 1_000)
    (home / "link").symlink_to(tmp_path / "gone")  # is there when it is listed, and not when its size is asked for
    monkeypatch.setattr(backup.home_backup, "list_files", lambda _: ["link", "rows"])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: path.name != "copy")
        assert backup.backup(str(tmp_path / "copy"), True, str(home))["megabytes"] == 0.001


def test_stores_elsewhere_are_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "db")
    outcome = backup.backup(str(tmp_path / "copy"), True, str(home))
    assert outcome["notices"] == ["the services' databases are PostgreSQL's: back them up with pg_dump"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="is upgraded where its database is"):
        backup.upgrade(False, str(home))


def test_an_older_schema_is_upgraded_after_a_copy_and_a_killed_upgrade_changed_nothing(
    older: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = home / "mlflow.db"
    shutil.copy(older, database)
    before = schema_upgrade.read_revision(database)
    planned = backup.upgrade(True, str(home))
    assert [change["revision"] for change in planned["changes"]] == ["dc11669786a5"]
    with monkeypatch.context() as patch:
        patch.setattr(schema_upgrade, "_upgrade_db", stop)
        with pytest.raises(KeyboardInterrupt):
            backup.upgrade(False, str(home))
    assert schema_upgrade.read_revision(database) == before
    done = backup.upgrade(False, str(home))
    assert schema_upgrade.read_revision(database) == "dc11669786a5"
    assert schema_upgrade.read_revision(Path(done["backup"])) == before
    assert backup.upgrade(False, str(home))["changes"] == []


def test_a_newer_schema_is_refused(home: Path) -> None:
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    connection.close()
    with pytest.raises(VerdictError, match=r"has schema ffffffffffff, which MLflow .* does not know"):
        backup.upgrade(False, str(home))
