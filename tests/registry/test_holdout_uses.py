"""Each other candidate that was judged on a holdout, or on much of it, counts as one use of it."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from tasks.data.sentence_sketch import sketch_snapshot
from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.tracking import SKETCH_TAG, close_run, count_holdout_uses, open_run, tag_run


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> MlflowStore:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return locate_store(str(tmp_path))


def judge_once(store: MlflowStore, job: str, holdout: str, bundle: str, sketch: str = "") -> str:
    run = open_run(store, job, {}, {})
    tag_run(store, run, {"holdout": holdout, SKETCH_TAG: sketch, "bundle_digest": bundle})
    close_run(store, run, "FINISHED")
    return run


def test_other_bundles_on_the_same_holdout_are_counted_once_each(store: MlflowStore) -> None:
    assert count_holdout_uses(store, "h", "", "mine") == 0
    for number, (holdout, bundle) in enumerate([("h", "a"), ("h", "b"), ("h", "a"), ("other", "c"), ("h", "mine")]):
        judge_once(store, f"job{number}", holdout, bundle)
    assert count_holdout_uses(store, "h", "", "mine") == 2
    assert count_holdout_uses(store, "h", "", "a") == 2
    assert count_holdout_uses(store, "other", "", "mine") == 1


def test_a_holdout_that_grew_or_changed_by_less_than_half_is_the_same_one(store: MlflowStore, tmp_path: Path) -> None:
    def sketch(first: int, last: int) -> str:
        path = tmp_path / "rows.parquet"
        pd.DataFrame({"sentence": [f"Sentence {number}." for number in range(first, last)]}).to_parquet(path)
        return sketch_snapshot(str(path))

    week = [(0, 800), (0, 801), (0, 1600), (300, 900), (700, 1500)]
    for number, rows in enumerate(week):
        judge_once(store, f"job{number}", f"h{number}", f"bundle{number}", sketch(*rows))
    judge_once(store, "earlier release", "h", "bundle")  # without a sketch
    assert count_holdout_uses(store, "new", sketch(0, 820), "mine") == 4
    assert count_holdout_uses(store, "h4", sketch(*week[4]), "bundle4") == 1  # all of it is in the third
    assert count_holdout_uses(store, "new", sketch(5000, 5800), "mine") == 0


def test_deleting_a_run_does_not_undo_its_holdout_use(store: MlflowStore) -> None:
    run = judge_once(store, "job", "h", "a")
    mlflow.MlflowClient(store["uri"]).delete_run(run)
    assert count_holdout_uses(store, "h", "", "mine") == 1


def test_a_run_that_never_judged_is_not_counted(store: MlflowStore) -> None:
    close_run(store, open_run(store, "job", {}, {"host": "here"}), "FAILED")
    assert count_holdout_uses(store, "h", "", "mine") == 0
