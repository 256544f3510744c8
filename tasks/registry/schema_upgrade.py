"""Upgrades the schema of a local MLflow database: a copy is upgraded and replaces it, so a killed one leaves it."""

from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.store.db.utils import _get_alembic_config, _get_schema_version, _upgrade_db
from sqlalchemy import create_engine

from ..core.errors import VerdictError
from ..core.files import atomic_write
from ..core.home_backup import copy_database
from .local_database import SQLITE


class SchemaChange(NamedTuple):
    """A migration of MLflow: its revision and what it does."""

    revision: str
    meaning: str


def read_revision(database: Path) -> str:
    """Return the revision of a database's schema; empty where it has none."""
    engine = create_engine(f"{SQLITE}{database}")
    try:
        return str(_get_schema_version(engine) or "")
    finally:
        engine.dispose()


def pending_changes(database: Path) -> list[SchemaChange]:
    """Return what an upgrade of a database does, in this order; nothing where it is current.

    Raises:
        VerdictError: if its schema is newer than this program's MLflow.
    """
    from alembic.script import ScriptDirectory
    from alembic.script.revision import RevisionError
    from alembic.util import CommandError

    scripts, current = ScriptDirectory.from_config(_get_alembic_config("")), read_revision(database)
    try:
        newer: list[Any] = list(scripts.iterate_revisions("heads", current or "base"))
    except (CommandError, RevisionError) as error:
        raise VerdictError(
            f"{database} has schema {current}, which MLflow {mlflow.__version__} does not know: a newer one wrote it; "
            "install that version, or restore a backup: verdict restore FILE"
        ) from error
    return [SchemaChange(each.revision, str(each.doc).splitlines()[0]) for each in reversed(newer)]


def upgrade_database(database: Path) -> None:
    """Upgrade a database; whoever opens it meanwhile sees the old one."""
    with atomic_write(database) as scratch:
        scratch.unlink()
        copy_database(database, scratch)
        scratch.chmod(database.stat().st_mode)
        engine = create_engine(f"{SQLITE}{scratch}")
        try:
            _upgrade_db(engine)
        finally:
            engine.dispose()
