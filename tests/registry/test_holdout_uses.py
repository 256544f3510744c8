"""Each other candidate that was judged on a holdout counts as one use of it."""

import shutil
from pathlib import Path

import mlflow
import pytest

from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.tracking import close_run, count_holdout_uses, open_run, tag_run


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> MlflowStore:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return locate_store(str(tmp_path))


def judge_once(store: MlflowStore, job: str, holdout: str, bundle: str) -> str:
    run = open_run(store, job, {}, {})
    tag_run(store, run, {"holdout": holdout, "bundle_digest": bundle})
    close_run(store, run, "FINISHED")
    return run


def test_other_bundles_on_the_same_holdout_are_counted_once_each(store: MlflowStore) -> None:
    assert count_holdout_uses(store, "h", "mine") == 0
    for number, (holdout, bundle) in enumerate([("h", "a"), ("h", "b"), ("h", "a"), ("other", "c"), ("h", "mine")]):
        judge_once(store, f"job{number}", holdout, bundle)
    assert count_holdout_uses(store, "h", "mine") == 2
    assert count_holdout_uses(store, "h", "a") == 2
    assert count_holdout_uses(store, "other", "mine") == 1


def test_deleting_a_run_does_not_undo_its_holdout_use(store: MlflowStore) -> None:
    run = judge_once(store, "job", "h", "a")
    mlflow.MlflowClient(store["uri"]).delete_run(run)
    assert count_holdout_uses(store, "h", "mine") == 1


def test_a_run_that_never_judged_is_not_counted(store: MlflowStore) -> None:
    close_run(store, open_run(store, "job", {}, {"host": "here"}), "FAILED")
    assert count_holdout_uses(store, "h", "mine") == 0
