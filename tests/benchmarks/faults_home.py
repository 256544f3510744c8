"""A home for runs of a tiny model, and what must not be in it after commands were broken off."""

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from flows import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from toy import flow_settings, write_quick_encoder, write_toy_data


class CommandHome:
    """A folder with toy data, a tiny encoder and an empty home."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.settings = flow_settings(write_toy_data(folder / "data"), write_quick_encoder(folder / "encoder"))
        self.settings |= {"judge.threshold": -1.0, "judge.variant_difference": 1.0}
        root = str(Path(__file__).parents[2])
        self.environment = {"VERDICT_HOME": str(self.home), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}

    def retrain(self, seed: int) -> list[str]:
        """Return the arguments of a run."""
        chosen = {key: value for key, value in self.settings.items() if key != "data.path"}
        given = [f"--set={key}={value}" for key, value in (chosen | {"finetune.seed": seed}).items()]
        paths = self.settings["data.path"]
        paths = [paths] if isinstance(paths, str) else paths
        return ["retrain", *[f"--data={path}" for path in paths], *given]

    def processes(self) -> list[int]:
        """Return the processes that commands of this home left."""
        marker, found = f"VERDICT_HOME={self.home}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid()]

    def faults(self) -> dict[str, Any]:
        """Count bundles that are registered twice, records that are pending, and runs that are RUNNING."""
        environment.set_process_defaults()
        from tasks.inference.bundle import MODEL_NAME
        from tasks.registry import audit_log
        from tasks.registry.mlflow_client import connect, experiment_of, search_all
        from tasks.registry.store import locate_store

        store = locate_store(str(self.home))
        with connect(store) as client:
            versions = search_all(client.search_model_versions, f"name = '{MODEL_NAME}'")
            running = search_all(
                client.search_runs, [experiment_of(client, store)], "attributes.status = 'RUNNING' and tags.job != ''"
            )
        digests = Counter(version.tags.get("bundle_digest", "") for version in versions)
        return {
            "versions": len(versions),
            "duplicates": sum(count - 1 for count in digests.values()),
            "stuck_records": sum(change["state"] == "pending" for change in audit_log.read_changes(store)),
            "runs_left_running": len(running),
        }
