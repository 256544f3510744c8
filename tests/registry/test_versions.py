"""Registering versions and looking them up, on a real SQLite store and a real server."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from toy import facts

from flows import environment
from tasks.core.errors import NoChampion, UnknownModel, UnreachableError, UsageError, VerdictError
from tasks.core.files import write_json
from tasks.inference.bundle import CHALLENGER, CHAMPION, PROFILE, write_manifest
from tasks.registry import lookup, register
from tasks.registry import mlflow_flavor as flavour
from tasks.registry import promotion as moves
from tasks.registry import promotion_lock as turns
from tasks.registry import tracking as runs
from tasks.registry.champion_profile import fetch_profile
from tasks.registry.local_database import AUDIT_EXPERIMENT
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.store import MlflowStore, locate_store

TAGS = {"verdict": "PROMOTE", "mcc": "0.5", "dataset": "d" * 64}
FETCH = """
import os, sys
from pathlib import Path
from tasks.registry.lookup import resolve_version
bundles = [Path(resolve_version({"uri": sys.argv[1], "artifacts": ""}, fetch=True)["bundle"]) for _ in range(2)]
print([bundle.is_relative_to(os.environ["TMPDIR"]) for bundle in bundles], len({*bundles}), flush=True)
if pid := os.fork():
    os.waitpid(pid, 0)
    assert all((bundle / "model.onnx").is_file() for bundle in bundles), "the end of a forked process deleted them"
"""


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> MlflowStore:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"))


@pytest.fixture
def run_id(store: MlflowStore) -> str:
    return runs.open_run(store, "a" * 16, {"finetune.epochs": 2}, {"home": "here"})


def register_exported(store: MlflowStore, run_id: str, bundle: str, digest: str) -> str:
    return register.register_bundle(store, run_id, bundle, digest, TAGS, "a description")


def versions(store: MlflowStore) -> list[Any]:
    return mlflow.MlflowClient(store["uri"], registry_uri=store["uri"]).search_model_versions("name = 'acceptability'")


def test_a_bundle_registered_twice_is_one_version(store: MlflowStore, run_id: str, exported: Any) -> None:
    first = register_exported(store, run_id, exported["bundle"], exported["digest"])
    assert register_exported(store, "b" * 32, exported["bundle"], exported["digest"]) == first == "1"
    (version,) = versions(store)
    assert version.tags["judged_in"] == "b" * 32
    assert version.tags["bundle_digest"] == exported["digest"]
    assert version.tags["verdict"] == "PROMOTE"
    assert version.description == "a description"
    assert version.run_id == run_id


def test_a_logged_model_without_a_version_is_taken_up(store: MlflowStore, run_id: str, exported: Any) -> None:
    """What a process leaves that is killed between storing the files and creating the version."""
    with connect(store, process_wide=True) as client:
        logged = flavour.log_model(experiment_of(client, store), run_id, exported["bundle"], exported["digest"])
    register_exported(store, run_id, exported["bundle"], exported["digest"])
    (version,) = versions(store)
    assert version.source == f"models:/{logged}"


def test_aliases_lead_to_the_bundle(store: MlflowStore, run_id: str, exported: Any) -> None:
    version = register_exported(store, run_id, exported["bundle"], exported["digest"])
    assert lookup.find_alias(store, CHAMPION) is None
    register.move_alias(store, CHAMPION, version)
    found = lookup.find_alias(store, CHAMPION)
    assert found is not None
    assert (found["version"], found["digest"], found["mcc"]) == ("1", exported["digest"], 0.5)
    assert Path(found["bundle"], "model.onnx").read_bytes() == Path(exported["bundle"], "model.onnx").read_bytes()
    assert lookup.find_alias(store, CHALLENGER) is None


def test_a_store_that_does_not_answer_is_not_a_store_without_champion(tmp_path: Path) -> None:
    broken = tmp_path / "mlflow.db"
    broken.write_text("this is no database, but it is long enough to be read as one" * 50)
    with pytest.raises(UnreachableError, match=r"MLflow store .* failed"):
        lookup.find_alias({"uri": f"sqlite:///{broken}", "artifacts": ""}, CHAMPION)


def test_a_server_that_is_down_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError) as caught:
        lookup.find_alias({"uri": "http://127.0.0.1:9", "artifacts": ""}, CHAMPION)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["acceptability", "models:/acceptability", "runs:/x/model", "models:/a/b/c"])
def test_an_address_of_another_form_is_a_usage_error(store: MlflowStore, uri: str) -> None:
    with pytest.raises(UsageError, match="is no registry address"):
        lookup.resolve_version(store, uri, fetch=True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/acceptability@champion", "there is no champion yet"),
        ("models:/acceptability@challenger", "there is no version with the alias 'challenger' yet"),
        ("models:/acceptability/7", "model 'acceptability' has no version '7'"),
        ("models:/acceptability/x", "model 'acceptability' has no version 'x'"),
        ("models:/other@champion", "model 'other' is unknown in .*, which holds no model; expected for example"),
    ],
)
@pytest.mark.parametrize("fetch", [False, True])
def test_a_version_that_does_not_exist_is_an_error(store: MlflowStore, uri: str, message: str, fetch: bool) -> None:
    with pytest.raises(NoChampion if "@" in uri and "other" not in uri else UnknownModel, match=message):
        lookup.resolve_version(store, uri, fetch=fetch)


def test_a_query_does_not_create_a_store_that_was_never_written(tmp_path: Path) -> None:
    store = MlflowStore(uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path))
    with pytest.raises(NoChampion, match=r"there is no champion yet: nothing is in "):
        lookup.resolve_version(store, fetch=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_left_running_is_gone_on_with(store: MlflowStore, run_id: str) -> None:
    assert runs.open_run(store, "a" * 16, {"finetune.epochs": 2}, {"home": "another"}) != run_id
    assert runs.open_run(store, "a" * 16, {"finetune.epochs": 2}, {"home": "here"}) == run_id
    assert runs.running_jobs(store, "here") == {run_id: "a" * 16}
    runs.close_run(store, run_id, "FINISHED")
    assert runs.running_jobs(store, "here") == {}
    assert runs.open_run(store, "a" * 16, {}, {"home": "here"}) != run_id


def test_series_keep_their_steps_and_leave_out_what_is_missing(store: MlflowStore, run_id: str) -> None:
    runs.log_series(store, run_id, {"loss": {step: float(step) for step in range(1, 1_501)} | {9: None}})
    history = mlflow.MlflowClient(store["uri"], registry_uri=store["uri"]).get_metric_history(run_id, "loss")
    assert sorted(entry.step for entry in history) == [step for step in range(1, 1_501) if step != 9]


def test_data_sets_are_inputs_of_the_run(store: MlflowStore, run_id: str, toy_split: tuple[str, str, str]) -> None:
    runs.log_dataset(store, run_id, "train", "train", "e" * 64, toy_split[0], "a folder")
    (entry,) = mlflow.MlflowClient(store["uri"], registry_uri=store["uri"]).get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("train", "e" * 32)


@pytest.mark.parametrize(
    "address",
    [
        "/data/cola",
        "hf:nyu-mll/glue/cola@main",
        "sample + feedback.tsv",
        "hf:org/name + https://host/a.zip#sha256=00&member=raw",
        "s3://bucket/x",
    ],
)
def test_a_data_set_comes_from_its_snapshot_and_its_address_is_a_tag(
    store: MlflowStore, run_id: str, toy_split: tuple[str, str, str], address: str
) -> None:
    runs.log_dataset(store, run_id, "train", "training", "e" * 64, toy_split[0], address)
    (entry,) = mlflow.MlflowClient(store["uri"], registry_uri=store["uri"]).get_run(run_id).inputs.dataset_inputs
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training", "address": address}
    assert json.loads(entry.dataset.source) == {"uri": toy_split[0]}
    assert entry.dataset.source_type == "local"
    assert '"label"' in entry.dataset.schema


def test_an_endless_address_is_cut_to_what_the_store_takes(
    store: MlflowStore, run_id: str, toy_split: tuple[str, str, str]
) -> None:
    runs.log_dataset(store, run_id, "train", "train", "e" * 64, toy_split[0], "x" * 10_000)
    (entry,) = mlflow.MlflowClient(store["uri"], registry_uri=store["uri"]).get_run(run_id).inputs.dataset_inputs
    assert {tag.key: tag.value for tag in entry.tags}["address"] == "x" * 494 + " [...]"


def test_recent_runs_come_newest_first(store: MlflowStore, run_id: str) -> None:
    runs.tag_run(store, run_id, {"verdict": "HOLD", "version": "4"})
    (run,) = runs.recent_runs(store)
    assert (run["run"], run["status"], run["verdict"], run["version"]) == (run_id, "RUNNING", "HOLD", "4")


def test_versions_of_one_digest_are_found_by_it(store: MlflowStore, run_id: str, exported: Any, tmp_path: Path) -> None:
    register_exported(store, run_id, exported["bundle"], exported["digest"])
    other = Path(shutil.copytree(exported["bundle"], tmp_path / "other"))
    digest = write_manifest(other, facts(max_length=12), {})["digest"]
    assert register_exported(store, run_id, str(other), digest) == "2"
    assert lookup.find_version(store, exported["digest"]) == "1"
    assert lookup.find_version(store, digest) == "2"
    assert lookup.find_version(store, "f" * 64) is None


def test_files_lie_in_the_store_and_nowhere_else(
    tmp_path: Path, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store made from nothing: the copied one of the other tests keeps its artifacts where it was made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    store = locate_store(str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    run_id = runs.open_run(store, "a" * 16, {}, {})
    version = register_exported(store, run_id, exported["bundle"], exported["digest"])
    register.move_alias(store, CHAMPION, version)
    found = lookup.find_alias(store, CHAMPION)
    assert found is not None
    assert Path(found["bundle"]).is_relative_to(tmp_path / "home" / "artifacts")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowStore]:
    """A real MLflow tracking server on loopback, without its job runners, which nothing here uses."""
    environment.set_process_defaults()
    shutil.copy(empty_store, tmp_path / "server.db")
    with sqlite3.connect(tmp_path / "server.db") as database:  # the local store's experiments name a local folder
        for table in ("experiments", "experiment_tags"):
            database.execute(f"DELETE FROM {table}")
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--port", str(port)]
    places = ["--host", "127.0.0.1", "--workers", "1", "--artifacts-destination", str(tmp_path / "served")]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, *places], stdout=log, stderr=log, cwd=tmp_path, env=env
        )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        time.sleep(0.2)
    yield MlflowStore(uri=address, artifacts="")
    process.terminate()
    process.wait(20)


def test_a_tracking_server_serves_like_the_local_store(
    server: MlflowStore, exported: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_id = runs.open_run(server, "a" * 16, {"finetune.epochs": 2}, {})
    version = register_exported(server, run_id, exported["bundle"], exported["digest"])
    assert register_exported(server, run_id, exported["bundle"], exported["digest"]) == version
    assert moves.read_champion_state(server) == "none"
    assert moves.promote(server, version, kind="promote", expected=None, reason="first")["state"] == "done"
    runs.close_run(server, run_id, "FINISHED")
    found = lookup.resolve_version(server, fetch=True)
    assert Path(found["bundle"], "model.onnx").read_bytes() == Path(exported["bundle"], "model.onnx").read_bytes()
    (tmp_path / "scratch").mkdir()
    environ = os.environ | {"TMPDIR": str(tmp_path / "scratch"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FETCH, server["uri"]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout == "[True, True] 2\n", done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []  # what was downloaded is gone with the process
    with connect(server) as client:  # the lease was given back
        assert not [
            tag
            for tag in client.get_experiment_by_name(AUDIT_EXPERIMENT).tags
            if tag.startswith(turns.LEASE_TAG_PREFIX)
        ]
    other = Path(shutil.copytree(exported["bundle"], tmp_path / "other"))
    digest = write_manifest(other, facts(max_length=12), {})["digest"]
    held = register.register_bundle(server, run_id, str(other), digest, {"verdict": "HOLD", "compared_with": ""}, "")
    moves.set_challenger(server, held)
    (kept,) = (path for path in (tmp_path / "served").rglob("bundle.json") if digest in path.read_text())
    (kept.parent / "tokenizer.json").write_text("{}")
    with pytest.raises(VerdictError, match=f"bundle of version {held}: tokenizer.json does not match its SHA-256"):
        moves.promote(server, held, kind="approve", expected=version, reason="x")
    shutil.copy(exported["bundle"] + "/tokenizer.json", kept.parent)
    (code,) = (kept.parents[2] / "code").glob("*/inference/classifier.py")  # what consumers execute
    code.write_text(code.read_text() + "\n")
    with pytest.raises(VerdictError, match=f"version {held} holds files around its bundle [0-9a-f]+, registered"):
        moves.promote(server, held, kind="approve", expected=version, reason="x")
    shutil.rmtree(kept.parents[2])
    with pytest.raises(VerdictError, match=f"version {held} is no bundle: it holds no bundle.json"):
        moves.promote(server, held, kind="approve", expected=version, reason="x")
    moves.reject(server, held, "damaged")
    register.drop_alias(server, CHAMPION, version)
    assert moves.read_champion_state(server) == "lost"
    assert [(entry["kind"], entry["to"]) for entry in moves.history(server)[0]] == [
        ("promote", version),
        ("reject", version),
        ("lost", None),
    ]
    assert capsys.readouterr().out == ""  # standard output belongs to the command


def test_the_profile_of_the_champions_data_is_fetched_alone(
    store: MlflowStore, run_id: str, exported: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fetch_profile(store) is None  # no champion yet
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    register.move_alias(store, CHAMPION, register_exported(store, run_id, str(bundle), exported["digest"]))
    assert fetch_profile(store) is None  # a champion from before bundles held profiles
    write_json(bundle / PROFILE, {"dataset": "d" * 64, "rows": 3})
    write_manifest(bundle, facts(max_length=18), {})
    register.move_alias(store, CHAMPION, register_exported(store, run_id, str(bundle), "another digest"))
    assert fetch_profile(store) == {"dataset": "d" * 64, "rows": 3}
    stored = Path(lookup.resolve_version(store, fetch=True)["bundle"])
    (stored / PROFILE).write_text('{"dataset": "forged"}')
    assert fetch_profile(store) is None
    assert "version 2: data.json is not the one that was registered" in caplog.text


def test_a_store_that_nothing_was_written_to_has_no_profile(tmp_path: Path) -> None:
    assert fetch_profile(MlflowStore(uri=f"sqlite:///{tmp_path}/none.db", artifacts=str(tmp_path))) is None
    assert list(tmp_path.iterdir()) == []
