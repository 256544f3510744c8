"""Homes for runs of a tiny model, on SQLite or PostgreSQL, and what must not be in one after commands were killed."""

import contextlib
import os
import shutil
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from flows import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from toy import flow_settings, write_quick_encoder, write_toy_data


class CommandHome:
    """A folder with toy data, a tiny encoder and an empty home, whose store is in SQLite."""

    needs_tables = False
    """whether an empty home is one with empty tables"""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.settings = flow_settings(write_toy_data(folder / "data"), write_quick_encoder(folder / "encoder"))
        self.settings |= {"judge.threshold": -1.0, "judge.variant_difference": 1.0, "finetune.checkpoint_seconds": 0}
        root = str(Path(__file__).parents[2])
        self.environment = {"VERDICT_HOME": str(self.home), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}

    def retrain(self, seed: int) -> list[str]:
        """Return the arguments of a run."""
        chosen = {key: value for key, value in self.settings.items() if key != "data.path"}
        given = [f"--set={key}={value}" for key, value in (chosen | {"finetune.seed": seed}).items()]
        paths = self.settings["data.path"]
        paths = [paths] if isinstance(paths, str) else paths
        return ["retrain", *[f"--data={path}" for path in paths], *given]

    def keep(self, name: str) -> None:
        """Keep home and store under a name."""
        shutil.copytree(self.home, self.home.with_name(f"kept-{name}"))

    def is_kept(self, name: str) -> bool:
        """Return whether a home was kept under a name."""
        return self.home.with_name(f"kept-{name}").is_dir()

    def restore(self, name: str) -> None:
        """Put home and store back as they were kept; a name that nothing was kept under: an empty home."""
        kept = self.home.with_name(f"kept-{name}")
        shutil.rmtree(self.home, ignore_errors=True)
        if kept.is_dir():
            shutil.copytree(kept, self.home)

    def processes(self) -> list[int]:
        """Return the processes that commands of this home left."""
        marker, found = f"VERDICT_HOME={self.home}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]

    def faults(self) -> dict[str, Any]:
        """Return what must be zero in the home, and the number of its versions."""
        os.environ["VERDICT_HOME"] = str(self.home)
        state = read_state()
        return {"versions": len(state["versions"]), **state["faults"]}

    def close(self) -> None:
        """End what the home needed."""


def prepare_store() -> None:
    """Make the tables of this process's store, and its experiments, whose artifacts lie in the home."""
    from tasks.registry.local_database import AUDIT_EXPERIMENT, EXPERIMENT
    from tasks.registry.mlflow_client import connect
    from tasks.registry.store import locate_store

    store = locate_store(environment.verdict_home())
    Path(store["artifacts"]).mkdir(parents=True)
    with connect(store) as client:
        for name in (EXPERIMENT, AUDIT_EXPERIMENT):
            client.create_experiment(name, Path(store["artifacts"]).as_uri())


def read_state() -> dict[str, Any]:
    """Return what this process's home and store hold: what a command decides, and counts of what must not be there."""
    environment.set_process_defaults()
    from tasks.inference.bundle import MODEL_NAME
    from tasks.registry import audit_log
    from tasks.registry.mlflow_client import connect, experiment_of, search_all
    from tasks.registry.store import locate_store

    home = environment.verdict_home()
    store = locate_store(home)
    with connect(store) as client:
        versions = search_all(client.search_model_versions, f"name = '{MODEL_NAME}'")
        model = next(iter(client.search_registered_models(f"name = '{MODEL_NAME}'")), None)
        runs = search_all(client.search_runs, [experiment_of(client, store)], "tags.job != ''")
        models = search_all(client.search_logged_models, [experiment_of(client, store)])
    changes = audit_log.read_changes(store)
    digests = Counter(version.tags.get("bundle_digest", "") for version in versions)
    return {
        "aliases": {name: str(version) for name, version in model.aliases.items()} if model else {},
        "versions": {version.version: version.tags.get("verdict") for version in versions},
        "changes": [[change["kind"], change["from"], change["to"]] for change in changes if change["state"] == "done"],
        "runs": sorted(run.info.status for run in runs),
        "faults": {
            "duplicates": sum(count - 1 for count in digests.values()),
            "stuck_records": sum(change["state"] == "pending" for change in changes),
            "runs_left_running": sum(run.info.status == "RUNNING" for run in runs),
        },
        "left_over": {
            "models_without_a_version": len(models) - len(versions),
            "prefect_runs_unfinished": unfinished_prefect_runs(Path(home, "prefect.db")),
        },
    }


def unfinished_prefect_runs(database: Path) -> int:
    """Count the flow runs that Prefect does not know to have ended."""
    if not database.is_file():
        return 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = "select count(*) from flow_run where state_type in ('RUNNING', 'PENDING', 'SCHEDULED', 'CANCELLING')"
        return int(connection.execute(query).fetchone()[0])
