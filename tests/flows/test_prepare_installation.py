"""What is made once for an installation is what Prefect and MLflow would make in each new folder of stores."""

import queue
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.services import embedded_prefect
from tasks.core import database_templates
from tasks.registry import mlflow_client, tracking
from tasks.registry.store import locate_store

ROOT = Path(__file__).parents[2]


def schema(path: Path) -> set[tuple[str, ...]]:
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master").fetchall()
        revisions = database.execute("SELECT version_num FROM alembic_version").fetchall()
    # Constraints of a table are in another order each time.
    parts = {(*row[:3], *sorted(line.strip(" ,\t") for line in row[3].splitlines())) for row in rows}
    return parts | {("revision", row[0]) for row in revisions}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Templates, made in a process of its own: Prefect reads the address of its database once."""
    folder = tmp_path_factory.mktemp("templates")
    code = "import sys; from pathlib import Path; from flows.services.prepare_installation import prepare; "
    subprocess.run([sys.executable, "-c", f"{code} prepare(Path(sys.argv[1]))", str(folder)], check=True, cwd=ROOT)
    return folder


def test_a_server_starts_with_the_template_and_runs_a_flow(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(
        embedded_prefect,
        "copy_template",
        lambda library, path: database_templates.copy_template(library, path, templates),
    )
    server = embedded_prefect.EmbeddedServer(str(tmp_path))
    try:
        assert schema(tmp_path / "prefect.db") == schema(database_templates.template_path("prefect", templates))
        lost: queue.Queue[str] = queue.Queue()
        with embedded_prefect.connected(server, lost.put):
            from prefect import flow
            from prefect.client.orchestration import get_client

            @flow(persist_result=True)
            def answer() -> int:
                return 42

            assert answer() == 42
            with get_client(sync_client=True) as client:
                assert [run.state_name for run in client.read_flow_runs()] == ["Completed"]
            assert lost.empty()
            server.stop()  # as if it ended by itself
            assert "the embedded Prefect server ended with exit code" in lost.get(timeout=60)
    finally:
        server.stop()
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_new_store_is_a_copy_and_is_what_mlflow_makes(
    templates: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        mlflow_client,
        "copy_template",
        lambda library, path: database_templates.copy_template(library, path, templates),
    )
    store = locate_store(str(tmp_path))
    assert tracking.recent_runs(store) == []
    assert schema(tmp_path / "mlflow.db") == schema(empty_store)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        names = [row[0] for row in database.execute("SELECT name FROM experiments ORDER BY name")]
    assert names == ["Default", "verdict"]


def test_of_processes_that_open_a_new_store_at_once_one_makes_it(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def create(path: Path) -> None:
        made.append(path)
        time.sleep(0.3)
        shutil.copy(empty_store, path)

    monkeypatch.setattr(mlflow_client, "copy_template", lambda library, path: False)
    monkeypatch.setattr(mlflow_client, "create_tables", create)
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(tracking.recent_runs, locate_store(str(tmp_path))) for _ in range(3)]
        assert [each.result() for each in found] == [[], [], []]
    assert len(made) == 1
