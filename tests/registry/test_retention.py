"""What retention deletes and what it never deletes, on a real SQLite store and real folders."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from filelock import FileLock
from registry_store import add_version, aliases, new_store, restore, set_alias
from vanishing import once_listed

from tasks.core.errors import UnreachableError, UsageError
from tasks.core.files import json_digest, write_json
from tasks.inference.bundle import MODEL_NAME
from tasks.registry import lookup, register, retention, retention_queries, tracking
from tasks.registry.mlflow_client import connect, experiment_of
from tasks.registry.mlflow_flavor import log_model
from tasks.registry.promotion import promote
from tasks.registry.retention import SECONDS_PER_DAY, RetentionRule, prune
from tasks.registry.store import MlflowStore, locate_store
from tasks.registry.sweep_runs import open_sweep

OLD = RetentionRule(days=30, keep=1)


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retention")
    new_store(empty_store, folder)
    return folder


@pytest.fixture
def home(empty_store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    restore(empty_store, folder)
    return folder


@pytest.fixture
def store(home: Path) -> MlflowStore:
    return locate_store(str(home))


def age(path: Path, days: float) -> Path:
    """Set the time of the last change of a file or folder to days ago."""
    then = time.time() - days * SECONDS_PER_DAY
    for found in (path, *path.rglob("*")) if path.is_dir() else (path,):
        os.utime(found, (then, then))
    return path


def add_job(home: Path, name: str, days: float, **result: Any) -> Path:
    """Write the folder of a job; without a result it was interrupted."""
    folder = home / "runs" / name
    (folder / "model-checkpoints").mkdir(parents=True)
    (folder / "model-checkpoints" / "state.safetensors").write_bytes(b"0" * 1_000)
    (folder / "lock").touch()
    if result:
        write_json(folder / "result.json", result)
    return age(folder, days)


def add_snapshot(home: Path, name: str, days: float) -> Path:
    path = home / "snapshots" / f"{json_digest(name)}.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"rows")
    return age(path, days)


def pruned(home: Path, rule: RetentionRule = OLD, **options: Any) -> set[tuple[str, str]]:
    return {(item["kind"], item["name"]) for item in prune(str(home), rule, **options)["items"]}


def test_old_jobs_are_deleted_and_young_and_newest_ones_stay(home: Path) -> None:
    for name, days in {"newest": 1, "young": 29, "old": 31, "older": 300}.items():
        add_job(home, name, days, version="9", digest=json_digest(name))
    assert pruned(home, RetentionRule(days=30, keep=3)) == {("job", "older")}
    assert pruned(home) == {("job", "old")}
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["newest", "young"]
    assert pruned(home) == set()


def test_a_dry_run_returns_the_same_and_deletes_nothing(home: Path) -> None:
    add_job(home, "newest", 1)
    old = add_job(home, "old", 40, version="9", digest="d")
    snapshots = [add_snapshot(home, name, days) for name, days in {"new": 1, "of nobody": 40}.items()]
    said = pruned(home, dry_run=True)
    assert said == {("job", "old"), ("snapshot", json_digest("of nobody"))}
    assert old.is_dir()
    assert all(path.is_file() for path in snapshots)
    assert pruned(home) == said
    assert not old.exists()


def test_a_running_job_is_never_deleted(home: Path) -> None:
    add_job(home, "newest", 1)
    running = add_job(home, "running", 400)
    with FileLock(running / "lock", timeout=0):
        assert pruned(home) == set()
    assert pruned(home) == {("job", "running")}


def test_old_sweeps_are_deleted_unless_they_run(home: Path) -> None:
    for name, days in {"newest": 1, "young": 29, "old": 31, "running": 40}.items():
        folder = home / "sweeps" / name
        folder.mkdir(parents=True)
        for file in ("lock", "journal"):
            (folder / file).touch()
        age(folder, days)
    with FileLock(home / "sweeps" / "running" / "lock", timeout=0):
        assert pruned(home, dry_run=True) == pruned(home) == {("sweep", "old")}
    assert pruned(home) == {("sweep", "running")}
    assert sorted(path.name for path in (home / "sweeps").iterdir()) == ["newest", "young"]


def test_what_champion_challenger_and_history_reference_stays(home: Path, store: MlflowStore, tmp_path: Path) -> None:
    first, second, third, unneeded = (add_version(store, tmp_path, name) for name in "abcd")
    promote(store, first, kind="promote", expected=None, reason="first")
    promote(store, second, kind="promote", expected=first, reason="better")
    set_alias(store, third, "challenger")
    add_job(home, "newest", 1)
    for version in (first, second, third, unneeded):
        add_job(home, f"job-{version}", 400, version=version, digest=f"bundle {version}")
    assert pruned(home) == {("job", f"job-{unneeded}")}
    assert aliases(store) == {"champion": second, "challenger": third}


def test_what_a_pending_decision_references_stays(home: Path) -> None:
    add_job(home, "newest", 1)
    add_job(home, "held", 400, version="7", digest="bundle 7")
    write_json(home / "waiting" / "flow-run.json", {"version": "7"})
    assert pruned(home) == set()


@pytest.mark.parametrize("needing", ["version", "running", "job"])
def test_a_referenced_snapshot_stays(
    home: Path, store: MlflowStore, tmp_path: Path, needing: str, toy_split: tuple[str, str, str]
) -> None:
    add_snapshot(home, "newest", 1)
    needed = add_snapshot(home, "needed", 400)
    add_snapshot(home, "unneeded", 400)
    if needing == "version":
        version = add_version(store, tmp_path, "a", holdout=needed.stem)
        promote(store, version, kind="promote", expected=None, reason="first")
    elif needing == "running":
        run = tracking.open_run(store, "j" * 16, {}, {})
        tracking.log_dataset(store, run, "train", "train", needed.stem, toy_split[0], "sample")
    else:
        write_json(add_job(home, "newest", 1) / "evidence.json", {"holdout": needed.stem})
    assert pruned(home) == {("snapshot", json_digest("unneeded"))}
    assert needed.is_file()


def test_queries_read_every_page(
    home: Path, store: MlflowStore, tmp_path: Path, toy_split: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [json_digest(name) for name in "abc"]
    tags = [{"home": "here", "holdout": "h", "bundle_digest": digest} for digest in digests]
    started = [tracking.open_run(store, digest[:16], {}, each) for digest, each in zip(digests, tags, strict=True)]
    for run, digest in zip(started, digests, strict=True):
        tracking.log_dataset(store, run, "train", "train", digest, toy_split[0], "sample")
    rejected = [add_version(store, tmp_path, name, verdict="REJECT") for name in "abc"]
    for name in ("search_runs", "search_model_versions"):
        search = getattr(mlflow.MlflowClient, name)
        one_a_page = lambda *args, search=search, **options: search(*args, **{**options, "max_results": 1})  # noqa: E731
        monkeypatch.setattr(mlflow.MlflowClient, name, one_a_page)
    assert retention_queries.inputs_of_running(store) == {digest[:32] for digest in digests}
    assert tracking.running_jobs(store, "here").keys() == set(started)
    assert tracking.count_holdout_uses(store, "h", "", digests[0]) == 2
    assert [each["version"] for each in retention_queries.list_rejected(store)] == rejected[::-1]
    assert set(retention_queries.close_lost_runs(store, 0, dry_run=False)) == set(started)
    assert retention_queries.inputs_of_running(store) == set()


def test_rejected_bundles_are_deleted_but_their_runs_stay(
    home: Path, store: MlflowStore, exported: Any, complete: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.open_run(store, "a" * 16, {}, {"verdict": "REJECT"})
    bundles = {
        register.register_bundle(store, run, each["bundle"], each["digest"], {"verdict": "REJECT"}, "no"): each
        for each in (exported, complete)
    }
    tracking.close_run(store, run, "FINISHED")
    first, second = sorted(bundles, key=int)
    assert pruned(home) == set()  # young
    register.tag_version(store, second, {"verdict": "HOLD"})
    folders = {version: _folder_of(store, version) for version in (first, second)}
    _advance_time(monkeypatch, days=31)
    outcome = prune(str(home), OLD)
    assert [(item["kind"], item["name"]) for item in outcome["items"]] == [("version", first)]
    assert outcome["megabytes"] > 0
    assert not list(folders[first].rglob("*.onnx"))
    assert list(folders[second].rglob("*.onnx"))
    assert lookup.find_version(store, bundles[first]["digest"]) is None
    assert lookup.find_version(store, bundles[second]["digest"]) == second
    # Its logged model is deleted in MLflow's page before it is pruned.
    register.tag_version(store, second, {"verdict": "REJECT"})
    with connect(store) as client:
        client.delete_logged_model(folders[second].parent.name)
    assert pruned(home) == {("version", second)}
    assert not list(folders[second].rglob("*.onnx"))
    assert [each["run"] for each in tracking.recent_runs(store)] == [run]


def test_models_that_killed_processes_left_are_deleted_by_age(
    home: Path, store: MlflowStore, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, live = (tracking.open_run(store, letter * 16, {}, {}) for letter in "ab")
    with connect(store, process_wide=True) as client:
        experiment = experiment_of(client, store)
        left, used = (log_model(experiment, run, exported["bundle"], "d") for run in (killed, live))
    version = register.register_bundle(store, live, exported["bundle"], exported["digest"], {}, "yes")
    for name in ("m-unknown", "m-written-now"):
        (home / "artifacts" / "models" / name).mkdir()
        (home / "artifacts" / "models" / name / "weights").touch()
    tracking.close_run(store, killed, "KILLED")
    assert pruned(home) == set()  # young
    _advance_time(monkeypatch, days=31)
    os.utime(home / "artifacts" / "models" / "m-written-now" / "weights", (time.time(), time.time()))
    expected = {("model", left), ("model", "m-unknown")}
    assert {item for item in pruned(home, dry_run=True) if item[0] == "model"} == expected
    outcome = prune(str(home), OLD)
    assert {(item["kind"], item["name"]) for item in outcome["items"]} == expected
    assert outcome["megabytes"] > 0
    kept = {path.name for path in (home / "artifacts" / "models").iterdir() if list(path.rglob("*"))}
    assert {used, "m-written-now"} < kept
    assert left not in kept
    assert list(_folder_of(store, version).rglob("*.onnx"))


def test_artifacts_of_another_store_are_left_alone(
    home: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = home / "artifacts" / "models" / "m-1"
    model.mkdir(parents=True)
    (model / "weights").touch()
    age(home / "artifacts", 400)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(empty_store, tmp_path / "other")["uri"])
    assert pruned(home) == set()
    assert model.is_dir()


def test_scratch_of_killed_processes_is_deleted_after_a_day(home: Path) -> None:
    add_job(home, "newest", 1)
    left = {name: home / "runs" / name for name in (".pruned-a", "newest/.bundle.b", "newest/.evidence.json.c")}
    for path in left.values():
        path.mkdir(parents=True)
        (path / "model.onnx").touch()
        age(path, 0.9)
    assert pruned(home) == set()
    for path in left.values():
        age(path, 1.1)
    with FileLock(home / "runs" / "newest" / "lock"):
        assert pruned(home) == {("scratch", "runs/.pruned-a")}
    assert pruned(home) == {("scratch", f"runs/{name}") for name in left if name != ".pruned-a"}
    assert [path.name for path in (home / "runs").rglob(".*")] == []


def test_a_decision_that_is_made_while_it_is_looked_for_does_not_matter(home: Path, tmp_path: Path) -> None:
    add_job(home, "newest", 0)
    add_job(home, "older", 300)
    (home / "waiting").mkdir()
    (home / "waiting" / "1.json").symlink_to(tmp_path / "gone")  # listed, and not there when it is read
    assert pruned(home) == {("job", "older")}


def test_a_scratch_file_that_is_renamed_while_it_is_looked_at_stays_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = add_job(home, "running", 0) / ".gate.json.x"
    scratch.write_text("half")
    changed = retention._changed

    def rename(path: Path) -> float:
        seconds = changed(path)
        if path == scratch and scratch.exists():
            scratch.rename(scratch.with_name("gate.json"))
        return seconds

    monkeypatch.setattr(retention, "_changed", rename)
    assert pruned(home) == set()
    assert not scratch.exists()


def test_folders_that_are_replaced_while_they_are_looked_at_do_not_matter(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = add_job(home, "running", 0) / "model-checkpoints"
    with monkeypatch.context() as patch:
        once_listed(patch, checkpoints.parent, lambda: checkpoints.rename(home / "replaced"))
        assert pruned(home) == set()
    assert not checkpoints.exists()


def test_a_rejected_version_with_an_alias_stays(
    home: Path, store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliased, other = (add_version(store, tmp_path, name, verdict="REJECT") for name in "ab")
    set_alias(store, aliased, "kept-by-hand")
    _advance_time(monkeypatch, days=31)
    assert pruned(home) == {("version", other)}


def test_a_version_that_another_process_prunes_at_the_same_time_counts_as_deleted(
    home: Path, store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add_version(store, tmp_path, "a", verdict="REJECT")
    drop = retention_queries.drop_version

    def drop_twice(store: MlflowStore, version: str) -> None:
        drop(store, version)
        drop(store, version)

    monkeypatch.setattr(retention_queries, "drop_version", drop_twice)
    _advance_time(monkeypatch, days=31)
    assert pruned(home) == {("version", version)}
    assert retention_queries.list_rejected(store) == []


def test_runs_of_a_lost_home_and_of_a_killed_sweep_are_closed_after_the_rule_s_days(
    home: Path, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sweep = tracking.open_run(store, "a" * 16, {}, {"home": "lost"}), open_sweep(store, "b" * 16, {}, {})
    assert prune(str(home), OLD)["closed"] == []
    _advance_time(monkeypatch, days=31)
    assert set(prune(str(home), OLD, dry_run=True)["closed"]) == {run, sweep}
    assert tracking.running_jobs(store, "lost") == {run: "a" * 16}
    assert set(prune(str(home), OLD)["closed"]) == {run, sweep}
    assert tracking.running_jobs(store, "lost") == {}
    assert prune(str(home), OLD)["closed"] == []


def test_a_run_that_ends_while_prune_looks_for_lost_ones_keeps_its_status(
    home: Path, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lost = (tracking.open_run(store, letter * 16, {}, {"home": "other"}) for letter in "ab")
    search = retention_queries.search_all

    def search_slowly(*arguments: Any, **options: Any) -> Any:
        found = search(*arguments, **options)
        tracking.close_run(store, run, "FINISHED")
        return found

    _advance_time(monkeypatch, days=31)
    monkeypatch.setattr(retention_queries, "search_all", search_slowly)
    assert retention_queries.close_lost_runs(store, SECONDS_PER_DAY, dry_run=False) == [lost]
    with connect(store) as client:
        assert [client.get_run(each).info.status for each in (run, lost)] == ["FINISHED", "KILLED"]


@pytest.mark.parametrize("kind", ["runs", "sweeps"])
def test_a_job_or_sweep_that_has_run_for_longer_than_the_rule_s_days_is_not_lost(
    kind: str, home: Path, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a" * 16
    run = tracking.open_run(store, name, {}, {}) if kind == "runs" else open_sweep(store, name, {}, {})
    _advance_time(monkeypatch, days=31)
    folder = home / kind / name
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        assert prune(str(home), OLD, dry_run=True)["closed"] == []
        assert prune(str(home), OLD)["closed"] == []
    assert prune(str(home), OLD)["closed"] == [run]


def test_nothing_is_deleted_while_the_store_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    add_job(tmp_path, "newest", 1)
    old = add_job(tmp_path, "old", 400, version="9", digest="d")
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(UnreachableError):
        prune(str(tmp_path), OLD)
    assert old.is_dir()


@pytest.mark.parametrize("rule", [RetentionRule(days=-1, keep=1), RetentionRule(days=30, keep=0)])
def test_a_rule_out_of_range_is_rejected(home: Path, rule: RetentionRule) -> None:
    with pytest.raises(UsageError, match="expected --days 0 or more, --keep 1 or more"):
        prune(str(home), rule)


def test_a_new_home_has_nothing_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert prune(str(tmp_path / "new"), OLD)["items"] == []
    assert not (tmp_path / "new" / "mlflow.db").exists()


def test_the_command_lists_what_would_be_deleted(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from flows.cli import app as cli

    monkeypatch.setenv("VERDICT_HOME", str(home))
    add_job(home, "newest", 1)
    add_job(home, "0123456789abcdef", 40)
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", "--keep", "1", "--dry-run"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "job" in said
    assert "0123456789abcdef" in said
    assert "interrupted 40 days ago" in said
    assert "1 item, 0.0 MB, would be deleted" in said


def _folder_of(store: MlflowStore, version: str) -> Path:
    with connect(store) as client:
        model = client.get_logged_model(client.get_model_version(MODEL_NAME, version).source.removeprefix("models:/"))
    found = Path(str(model.artifact_location).removeprefix("file://"))
    assert list(found.rglob("*.onnx"))
    return found


def _advance_time(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    real: Callable[[], float] = time.time
    monkeypatch.setattr("tasks.registry.retention.time.time", lambda: real() + days * SECONDS_PER_DAY)
