"""kill -9 at every step of a run: the same command again ends with one version and one record."""

import json
from pathlib import Path
from typing import Any

from job_cache import Choose, PictureCache
from kill_points import KILLED, KillableProcess
from registry_store import aliases, is_complete
from webhook_receiver import receiving

from tasks.inference.bundle import MODEL_NAME
from tasks.registry import audit_log
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.store import MlflowStore, locate_store

TRAINING = ("tasks.registry.tracking.log_metrics", "after")  # the first epoch ended
# Between "evidence written" and "result written", in the order in which a run reaches them.
POINTS = [
    ("tasks.registry.mlflow_flavor.log_model", "after"),
    ("flows.jobs.publish.register", "after"),
    ("tasks.registry.promotion.begin", "after"),
    ("tasks.registry.register.move_alias", "after"),
    ("flows.jobs.retrain.outcome_of", "after"),
]
# What a run imports on its way. The parent only imports: the threads that tokenizers start would be missing in a child.
ALERT = "flows.jobs.dead_runs.notify_verdict"  # after "result written"
LIBRARIES = ("great_expectations.expectations", "matplotlib.pyplot", "onnxruntime", "mlflow.pyfunc", "transformers")
RETRAIN = "flows.jobs.retrain.retrain"


def statuses(store: MlflowStore) -> list[str]:
    """Return the status of each MLflow run of a job."""
    with connect(store) as client:
        return [run.info.status for run in client.search_runs([experiment_of(client, store)], "tags.job LIKE '%'")]


def versions(store: MlflowStore) -> list[Any]:
    with connect(store) as client:
        return list(client.search_model_versions(f"name = '{MODEL_NAME}'"))


def test_a_run_that_is_killed_at_each_step_ends_with_one_version_and_one_record(
    home: Path, choose: Choose, prefect_server: str, picture_cache: PictureCache
) -> None:
    store = locate_store(str(home))
    resolved = choose(finetune__epochs=2, judge__threshold=0.0, judge__variant_difference=1.0)
    arguments = (resolved.settings.model_dump(mode="json"), resolved.origins, str(home))
    with (
        receiving() as receiver,
        KillableProcess(
            "flows.jobs.retrain", *LIBRARIES, PREFECT_API_URL=prefect_server, VERDICT_ALERT_URL=receiver.url
        ) as process,
    ):
        process.preload("tasks.registry.promotion.current_champion", store)
        process.preload("job_cache.copy_pictures", str(picture_cache.folder))
        assert process.run(RETRAIN, *arguments, point=TRAINING[0], when=TRAINING[1]) == KILLED
        assert (versions(store), aliases(store), statuses(store)) == ([], {}, ["RUNNING"])
        assert not list(home.glob("runs/*/evidence.json"))
        for point, when in POINTS:
            ended = process.run(RETRAIN, *arguments, point=point, when=when)
            assert ended == KILLED, (point, [path.read_text() for path in home.glob("runs/*/result.json")])
            assert list(home.glob("runs/*/evidence.json"))
            assert not list(home.glob("runs/*/result.json"))
        for when in ("before", "after"):
            assert process.run(RETRAIN, *arguments, point=ALERT, when=when) == KILLED
            assert list(home.glob("runs/*/result.json"))
            assert statuses(store) == ["RUNNING"]
        assert process.run(RETRAIN, *arguments, point=None) == 0
        assert process.run(RETRAIN, *arguments, point=None) == 0
        # Once by the process that was killed right after it, once by the next.
        assert [alert["text"].partition(":")[0] for alert in receiver.received] == ["PROMOTE", "PROMOTE"]
    assert aliases(store) == {"champion": "1"}
    assert statuses(store) == ["FINISHED"]
    (version,) = versions(store)
    assert version.tags["verdict"] == "PROMOTE"
    with connect(store) as client:
        assert len(client.search_logged_models([experiment_of(client, store)])) == 1
    records = audit_log.read_changes(store)
    assert is_complete(records)
    (move,) = (move for move in records if move["state"] == "done")
    assert (move["kind"], move["from"], move["to"]) == ("promote", None, "1")
    (result,) = (json.loads(path.read_text()) for path in home.glob("runs/*/result.json"))
    assert (result["decision"], result["version"]) == ("PROMOTE", "1")
