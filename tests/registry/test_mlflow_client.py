"""Clients of a store, whatever MLflow's address of the process is."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from registry_store import new_store
from toy import facts

from tasks.core.errors import UnreachableError
from tasks.inference.bundle import CHAMPION, MODEL_NAME, write_manifest
from tasks.registry import lookup, register, retention_queries, tracking
from tasks.registry.champion_profile import fetch_profile
from tasks.registry.local_database import AUDIT_EXPERIMENT, EXPERIMENT, SWEEP_EXPERIMENT
from tasks.registry.mlflow_client import EXPERIMENT_TAGS, NOTE, connect, experiment_of
from tasks.registry.promotion import promote, read_champion_state
from tasks.registry.store import MlflowStore
from tasks.registry.verification import read_recorded

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def elsewhere(own_mlflow_address: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process's address be a server that does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(NOBODY)
    mlflow.set_registry_uri(NOBODY)


def make_store(empty_store: Path, folder: Path) -> MlflowStore:
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))


def fill(store: MlflowStore, folder: Path, exported: Any, max_length: int, split: str) -> str:
    """Do everything that a run does; return the digest of the champion that the store then holds."""
    bundle = Path(shutil.copytree(exported["bundle"], folder / f"bundle-{max_length}"))
    digest = write_manifest(bundle, facts(max_length=max_length), {})["digest"]
    run = tracking.open_run(store, "a" * 16, {"epochs": 2}, {})
    tracking.log_metrics(store, run, {"mcc": 0.5})
    tracking.log_dataset(store, run, "train", "train", "e" * 64, split, "sample")
    (folder / f"verdict-{max_length}.json").write_text(str(max_length))
    tracking.log_files(store, run, [str(folder / f"verdict-{max_length}.json")], "records")
    version = register.register_bundle(store, run, str(bundle), digest, {"verdict": "REJECT"}, "a bundle")
    promote(store, version, kind="promote", expected=None, reason="first")
    tracking.close_run(store, run, "FINISHED")
    assert read_recorded(store, run, f"verdict-{max_length}.json") == max_length
    assert read_champion_state(store) == "active"
    assert fetch_profile(store) is None
    (rejected,) = retention_queries.list_rejected(store)
    assert rejected["megabytes"] > 0
    found = lookup.find_alias(store, CHAMPION)
    assert found is not None
    assert (Path(found["bundle"]) / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
    fetched = lookup.fetch_bundle(store, MODEL_NAME, version, str(folder / f"fetched-{max_length}"))
    assert (Path(fetched) / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
    return digest


@pytest.mark.usefixtures("elsewhere")
def test_threads_with_a_store_each_reach_their_own_whatever_the_process_s_address(
    empty_store: Path, exported: Any, tmp_path: Path, toy_split: tuple[str, str, str]
) -> None:
    stores = [make_store(empty_store, tmp_path / name) for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(fill, store, tmp_path, exported, length, toy_split[0])
            for store, length in zip(stores, (16, 15), strict=True)
        ]
        digests = [job.result() for job in jobs]
    for store, digest in zip(stores, digests, strict=True):
        found = lookup.find_alias(store, CHAMPION, fetch=False)
        assert found is not None
        assert found["digest"] == digest
    assert os.environ["MLFLOW_TRACKING_URI"] == NOBODY


def test_a_client_leaves_the_address_of_the_process_alone(empty_store: Path, tmp_path: Path, elsewhere: None) -> None:
    store = make_store(empty_store, tmp_path / "a")
    with connect(store) as client:
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (NOBODY, NOBODY)
        assert client.search_experiments()
    with connect(store, process_wide=True):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (store["uri"], store["uri"])
    assert os.environ["MLFLOW_TRACKING_URI"] == NOBODY


def test_a_deleted_experiment_is_not_restored_but_for_the_audit_log(
    empty_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = new_store(empty_store, tmp_path)
    with connect(store) as client:
        runs = [client.create_run(experiment_of(client, store)).info.run_id for _ in "ab"]
        client.delete_run(runs[0])
        for name in (EXPERIMENT, AUDIT_EXPERIMENT):
            client.delete_experiment(experiment_of(client, store, name))
    with pytest.raises(UnreachableError, match=r"was deleted in MLflow; .* experiments restore --experiment-id 1$"):
        tracking.open_run(store, "a" * 16, {}, {})
    with connect(store) as client:
        assert client.get_run(runs[0]).info.lifecycle_stage == "deleted"
        assert client.get_experiment(experiment_of(client, store, AUDIT_EXPERIMENT)).lifecycle_stage == "active"
    assert "is restored, because it is the audit log" in caplog.text


def test_a_server_that_does_not_answer_is_named_with_the_reason(
    own_mlflow_address: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = f"MLflow store {NOBODY} failed (no server answers: Connection refused); check it: verdict doctor"
    with (
        pytest.raises(UnreachableError, match=f"^{re.escape(line)}$"),
        connect(MlflowStore(uri=NOBODY, artifacts="")) as client,
    ):
        client.search_experiments()


def test_an_experiment_that_another_program_made_gets_its_description(empty_store: Path, tmp_path: Path) -> None:
    store = MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with connect(store) as client:
        made = client.create_experiment(SWEEP_EXPERIMENT, tags={NOTE: "ours"})
        assert experiment_of(client, store, SWEEP_EXPERIMENT) == made
        assert client.get_experiment(made).tags == EXPERIMENT_TAGS[SWEEP_EXPERIMENT] | {NOTE: "ours"}
