"""The retrain flow as a whole, on a real Prefect server and a real SQLite store."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from job_cache import JobCache
from toy import flow_settings, write_toy_data

from flows import environment
from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.core.settings_loader import ResolvedSettings, load_settings
from tasks.data.snapshots import read_snapshot

ROOT = Path(__file__).parents[2]
Retrain = Callable[..., dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def choose(toy_data: Path, tiny_encoder: Path) -> Callable[..., ResolvedSettings]:
    """Resolve the sample profile for the toy corpus and the tiny model, with changes."""

    def resolve(**changes: Any) -> ResolvedSettings:
        toy = flow_settings(toy_data, tiny_encoder)
        return load_settings("sample", toy | {key.replace("__", "."): value for key, value in changes.items()}, {})

    return resolve


@pytest.fixture
def retrain_anew(prefect_server: str, home: Path, choose: Callable[..., ResolvedSettings]) -> Retrain:
    """Run the flow with nothing finished before; return what --json prints."""
    from flows.jobs.retrain import retrain as flow

    def run(force: bool = False, **changes: Any) -> dict[str, Any]:
        resolved = choose(**changes)
        return flow(resolved.settings.model_dump(), resolved.origins, str(home), force).to_json()

    return run


@pytest.fixture
def retrain(
    retrain_anew: Retrain,
    home: Path,
    choose: Callable[..., ResolvedSettings],
    job_cache: JobCache,
    copied_pictures: None,
) -> Retrain:
    """Run the flow; what an equal job of this session trained and exported is there already."""

    def run(force: bool = False, **changes: Any) -> dict[str, Any]:
        with job_cache.resumed(home, choose(**changes)):
            return retrain_anew(force, **changes)

    return run


def client(home: Path) -> mlflow.MlflowClient:
    uri = f"sqlite:///{home}/mlflow.db"
    return mlflow.MlflowClient(uri, registry_uri=uri)


def versions(home: Path) -> list[str]:
    return sorted(str(found.version) for found in client(home).search_model_versions("name = 'acceptability'"))


def aliases(home: Path) -> dict[str, str]:
    found = client(home).search_registered_models("name = 'acceptability'")
    return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def runs(home: Path) -> list[Any]:
    experiment = client(home).get_experiment_by_name("verdict")
    return list(client(home).search_runs([experiment.experiment_id]))


def test_the_first_fit_candidate_becomes_champion_and_everything_is_recorded(retrain_anew: Retrain, home: Path) -> None:
    outcome = retrain_anew()
    assert outcome["decision"] == "PROMOTE"
    assert outcome["reasons"] == ["there is no champion yet"]
    assert outcome["mcc"] > 0.9
    assert outcome["mcc_low"] <= outcome["mcc"] <= outcome["mcc_high"]
    assert outcome["provider"] == "CPUExecutionProvider"
    assert set(outcome["mcc_by_variant"]) == {"fp32", "fp16", "int8"}
    assert outcome["mcc"] == outcome["mcc_by_variant"][outcome["variant"]]
    assert outcome["variant"] == "int8"
    assert outcome["holdout_rows"] == 80
    assert Path(outcome["report"]).is_file()
    assert aliases(home) == {"champion": outcome["version"]} == {"champion": "1"}
    (run,) = runs(home)
    assert run.info.status == "FINISHED"
    assert run.data.params["finetune.learning_rate"] == "0.003"
    assert run.data.tags["origin.finetune.learning_rate"] == "flag"
    assert run.data.tags["origin.finetune.encoder"] == "flag"
    assert run.data.tags["origin.judge.threshold"] == "profile sample"
    assert "origin.gate.min_rows" not in run.data.tags  # a default
    assert run.data.tags["verdict"] == "PROMOTE"
    assert "[version 1](#/models/acceptability/versions/1)" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["mcc"] == pytest.approx(outcome["mcc"])
    epochs = client(home).get_metric_history(run.info.run_id, "validation_mcc")
    assert [entry.step for entry in epochs] == [1, 2, 3, 4]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "holdout"}
    pictures = {entry.path for entry in client(home).list_artifacts(run.info.run_id, "pictures")}
    names = ("intervals", "calibration", "confusion", "loss_per_step", "epochs", "mcc_per_batch")
    assert pictures == {f"pictures/{name}.png" for name in names}
    records = {entry.path for entry in client(home).list_artifacts(run.info.run_id, "records")}
    assert records == {f"records/{name}" for name in ("evidence.json", "verdict.json", "report.html", "card.md")}
    assert {entry.path for entry in client(home).list_artifacts(run.info.run_id, "gate")} == {
        "gate/gate.json",
        "gate/gate.html",
    }


def test_no_password_of_an_address_is_recorded(choose: Callable[..., ResolvedSettings]) -> None:
    from flows.jobs.job import recordable_rows

    address = "https://somebody:SECRET@example.org/rows.tsv#sha256=00"
    resolved = choose(data__path=[address], data__train=address, data__holdout=address, data__text=address)
    rows = {key: value for key, value, _ in recordable_rows(*resolved)}
    assert "SECRET" not in str(rows)
    for name in ("path", "train", "holdout", "text"):
        assert rows[f"data.{name}"] == "https://example.org/rows.tsv#sha256=00"


def test_several_seeds_follow_one_another_in_the_record(retrain: Retrain, home: Path) -> None:
    outcome = retrain(finetune__seeds=2, finetune__epochs=3, finetune__corruptions=1, finetune__restarts=0)
    assert outcome["decision"] == "PROMOTE"
    (run,) = runs(home)
    epochs = client(home).get_metric_history(run.info.run_id, "validation_mcc")
    assert [entry.step for entry in epochs] == [1, 2, 3, 4, 5, 6]
    assert "2 seeds were trained from the same weights" in Path(outcome["report"]).read_text()


def test_text_without_labels_trains_the_corruption_stage_and_is_recorded(
    retrain: Retrain, home: Path, toy_data: Path, tmp_path: Path
) -> None:
    text = tmp_path / "more.txt"
    labelled = [
        row.split("\t")[3].strip()
        for name in ("out_of_domain_dev", "in_domain_train")
        for row in (toy_data / f"{name}.tsv").read_text().splitlines()
    ]
    text.write_text("\n".join([*labelled[:10], *labelled[-10:], *(f"the cat sees dog {n} now" for n in range(30))]))
    outcome = retrain(data__text=str(text))
    (run,) = runs(home)
    kept = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert set(kept) == {"train", "holdout", "text"}
    (learned,) = (home / "runs").glob("*/text.parquet")
    assert len(read_snapshot(str(learned))) == run.data.metrics["rows_text"] == 30
    assert run.data.metrics["rows_text_left_out"] == 20
    assert retrain(data__text=str(text))["unchanged"]
    text.write_text("the cat sees another dog now\n")
    again = retrain(data__text=str(text))
    assert not again["unchanged"]
    assert again["digest"] != outcome["digest"]


def test_the_evidence_counts_the_removed_rows_by_reason(retrain: Retrain, home: Path, toy_data: Path) -> None:
    folder = Path(shutil.copytree(toy_data, home / "blemished"))
    train, holdout = folder / "in_domain_train.tsv", folder / "out_of_domain_dev.tsv"
    rows = train.read_text().splitlines(keepends=True)
    leaked, first = holdout.read_text().splitlines()[0], rows[0].split("\t")
    conflict = [first[0], "1" if first[1] == "0" else "0", first[2], first[3].upper()]
    train.write_text("".join([*rows, rows[1], leaked + "\n", "\t".join(conflict)]))
    retrain(data__path=str(folder))
    (job,) = (home / "runs").iterdir()
    split = json.loads((job / "evidence.json").read_text())["split"]
    assert {name: split[name] for name in ("in_holdout", "conflicting", "repeated")} == {
        "in_holdout": 1,
        "conflicting": 2,
        "repeated": 1,
    }
    assert sum(split.values()) == len(rows) + 3


def test_several_addresses_are_merged_and_train_together(retrain: Retrain, home: Path, toy_data: Path) -> None:
    feedback = home / "feedback.csv"
    feedback.write_text("sentence,label,source\nthe cat sees the dog quietly here,1,feedback\n")
    outcome = retrain(data__path=[str(toy_data), str(feedback)])
    assert outcome["decision"] == "PROMOTE"
    (job,) = (home / "runs").iterdir()
    rows = pd.concat([pd.read_parquet(job / f"{side}.parquet") for side in ("train", "validation")])
    assert rows["source"].value_counts().to_dict() == {"toy": 400, "feedback": 1}


def test_the_second_candidate_is_compared_with_what_the_champion_was_trained_on(
    retrain: Retrain, home: Path, toy_data: Path
) -> None:
    first = retrain()
    folder = Path(shutil.copytree(toy_data, home / "drifted"))
    train = folder / "in_domain_train.tsv"
    train.write_text(
        "".join(row for row in train.read_text().splitlines(keepends=True) if "\t1\t" in row or "cat" in row)
    )
    second = retrain(data__path=str(folder))
    assert second["dataset"] != first["dataset"]
    (gate,) = (
        record
        for record in (json.loads(path.read_text()) for path in (home / "runs").glob("*/gate.json"))
        if record["reference"]
    )
    assert gate["passed"]
    assert "label" in {shift["name"] for shift in gate["drift"] if shift["drifted"]}


def test_prefect_shows_the_summary_and_the_progress(retrain_anew: Retrain, copied_pictures: None) -> None:
    from prefect.client.orchestration import get_client

    outcome = retrain_anew()
    with get_client(sync_client=True) as prefect:
        artifacts = prefect.read_artifacts()
    (summary,) = (entry for entry in artifacts if entry.key == "verdict" and outcome["report"] in str(entry.data))
    assert str(summary.data).startswith("# PROMOTE")
    flow_run = [entry for entry in artifacts if entry.flow_run_id == summary.flow_run_id]
    assert [entry.data for entry in flow_run if entry.key == "fine-tuning"] == [100.0]
    (gate,) = (str(entry.data) for entry in flow_run if entry.key == "data-gate")
    assert gate.startswith("# Data accepted\n\n480 rows in, 480 kept, 0 quarantined.")
    assert "| training rows | number of rows | 400 | at least 100 | passed |" in gate
    (figures,) = (json.loads(entry.data) for entry in flow_run if entry.key == "figures")
    assert figures[0] == {"figure": "MCC", "candidate": f"{outcome['mcc']:.3f}", "champion": ""}
    assert "minimal pairs ranked correctly" in {row["figure"] for row in figures}
    assert not [entry for entry in flow_run if entry.key == "mlflow-run"]  # a database has no page


def test_nothing_changed_means_nothing_is_registered_and_force_runs_anyway(retrain: Retrain, home: Path) -> None:
    first = retrain()
    again = retrain()
    assert again["unchanged"]
    assert not first["unchanged"]
    assert "fine-tune" not in again["seconds"]
    assert {key: again[key] for key in ("decision", "version", "mcc")} == {
        key: first[key] for key in ("decision", "version", "mcc")
    }
    assert len(runs(home)) == 1
    forced = retrain(force=True)
    assert "fine-tune" in forced["seconds"]
    # The same seed gives the same bundle, which has its version already.
    assert (forced["decision"], forced["version"]) == ("HOLD", "1")
    assert forced["reasons"] == ["it is the same bundle as champion 1"]
    assert aliases(home) == {"champion": "1"}


def test_a_deleted_store_is_filled_again_by_the_same_job(retrain: Retrain, home: Path, empty_store: Path) -> None:
    retrain()
    shutil.copy(empty_store, home / "mlflow.db")
    assert retrain()["decision"] == "PROMOTE"
    assert aliases(home) == {"champion": "1"}


def test_below_the_threshold_is_rejected_and_the_alias_stays(retrain: Retrain, home: Path) -> None:
    retrain(judge__threshold=0.5)
    weaker = retrain(judge__threshold=1.0, finetune__seed=3, finetune__epochs=1, finetune__learning_rate=1e-5)
    assert weaker["decision"] == "REJECT"
    assert "below_threshold" in weaker["rules"]
    assert any(reason.endswith("is below the threshold 1.000") for reason in weaker["reasons"])
    assert aliases(home) == {"champion": "1"}
    assert client(home).get_model_version("acceptability", weaker["version"]).tags["verdict"] == "REJECT"


def test_a_first_candidate_below_the_threshold_leaves_no_champion(retrain: Retrain, home: Path) -> None:
    outcome = retrain(judge__threshold=0.99, finetune__epochs=1, finetune__learning_rate=1e-5)
    assert outcome["decision"] == "REJECT"
    assert aliases(home) == {}


def test_a_better_candidate_replaces_the_champion_and_a_tie_is_held(retrain: Retrain, home: Path) -> None:
    weak = {"judge__threshold": -1.0, "judge__variant_difference": 1.0}  # int8 and fp32 of a model near chance differ
    weak |= {"finetune__epochs": 1, "finetune__learning_rate": 4e-4}
    first = retrain(**weak)
    better = retrain(judge__threshold=-1.0)
    tie = retrain(judge__threshold=-1.0, finetune__max_length=18)
    assert first["decision"] == "PROMOTE"
    assert (better["decision"], better["champion_before"]) == ("PROMOTE", first["version"])
    assert better["mcc"] > first["mcc"]
    assert tie["mcc"] == better["mcc"]
    assert tie["decision"] == "HOLD"
    assert aliases(home) == {"champion": better["version"], "challenger": tie["version"]}
    tags = {each: client(home).get_model_version("acceptability", each).tags for each in versions(home)}
    assert "first" in tags[first["version"]]["changed"]
    assert tags[better["version"]]["changed"].startswith("finetune.epochs 1 -> 4; finetune.learning_rate 0.0004 -> ")
    described = client(home).get_model_version("acceptability", tie["version"]).description
    assert described.startswith("HOLD: MCC ")
    assert f"**Changed since champion {better['version']}**\n\n- `finetune.max_length`: 16 → 18\n" in described
    assert f"Differences from champion {better['version']}" in Path(tie["report"]).read_text()


def test_text_labels_are_refused_and_nothing_is_registered(retrain: Retrain, home: Path, toy_data: Path) -> None:
    folder = Path(shutil.copytree(toy_data, home / "text"))
    rows = (toy_data / "in_domain_train.tsv").read_text()
    (folder / "in_domain_train.tsv").write_text(rows.replace("\t1\t", "\tyes\t").replace("\t0\t", "\tno\t"))
    with pytest.raises(DataRejected) as caught:
        retrain(data__path=str(folder))
    message = str(caught.value)
    assert "whole data: share of quarantined training rows: 1, allowed at most 0.01" in message
    assert "in_domain_train.tsv line 1: label '" in message
    assert "instead of 0 or 1" in message
    (run,) = runs(home)
    assert (run.info.status, run.data.tags["verdict"]) == ("FAILED", "REFUSED")
    assert run.data.tags["mlflow.note.content"].startswith("The data gate refused the data: ")
    assert versions(home) == []
    # The gate's report is where people look for it, although nothing else was made.
    kept = {entry.path for entry in client(home).list_artifacts(run.info.run_id, "gate")}
    assert kept == {"gate/gate.json", "gate/gate.html", "gate/quarantine.parquet"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__path": "no/such/folder"}, "data 'no/such/folder' does not exist"),
        ({"finetune__encoder": "./no-model"}, "encoder folder './no-model' does not exist"),
    ],
)
def test_wrong_addresses_are_refused_before_a_run_is_opened(
    retrain: Retrain, home: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        retrain(**changes)
    assert runs(home) == []


def test_an_empty_file_fails_before_a_run_is_opened(retrain: Retrain, home: Path, toy_data: Path) -> None:
    folder = Path(shutil.copytree(toy_data, home / "empty"))
    (folder / "in_domain_train.tsv").write_text("")
    with pytest.raises(VerdictError, match=r"in_domain_train\.tsv is empty"):
        retrain(data__path=str(folder))
    assert runs(home) == []


def test_the_same_job_does_not_run_twice_at_once(
    retrain: Retrain, home: Path, choose: Callable[..., ResolvedSettings]
) -> None:
    from filelock import FileLock

    retrain()
    (job,) = (home / "runs").iterdir()
    hold = f"import filelock, time; lock = filelock.FileLock({str(job / 'lock')!r}); "
    script = hold + "lock.acquire(); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(VerdictError, match="the same job is running already"):
            retrain(force=True)
        holder.kill()
        holder.wait()
        with FileLock(job / "lock", timeout=5):
            pass  # a killed holder keeps nothing


def train_and_die(home: Path, resolved: ResolvedSettings, server: str) -> int:
    """Run the flow in a process that kills itself after the first epoch; return its exit code."""
    script = """
import json, os, signal, sys
from flows import environment
environment.set_process_defaults()
import flows.jobs.retrain
module = sys.modules["flows.jobs.retrain"]
fine_tune = module.fine_tune
def die(record):
    os.kill(os.getpid(), signal.SIGKILL)
module.fine_tune = lambda *args, on_epoch, **options: fine_tune(*args, on_epoch=die, **options)
settings, origins = json.loads(sys.stdin.read())
module.retrain(settings, origins, sys.argv[1])
"""
    return subprocess.run(
        [sys.executable, "-c", script, str(home)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": server},
        input=json.dumps([resolved.settings.model_dump(), resolved.origins]),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    ).returncode


def test_a_run_that_is_killed_while_it_trains_is_run_again_with_the_same_command(
    retrain_anew: Retrain,
    home: Path,
    choose: Callable[..., ResolvedSettings],
    prefect_server: str,
    copied_pictures: None,
) -> None:
    # tests/registry/test_promotion_kills.py kills runs at every later step.
    assert train_and_die(home, choose(), prefect_server) == -signal.SIGKILL
    assert (versions(home), aliases(home)) == ([], {})
    assert [run.info.status for run in runs(home)] == ["RUNNING"]
    outcome = retrain_anew()
    assert outcome["decision"] == "PROMOTE"
    assert "fine-tune" in outcome["seconds"]
    assert (versions(home), aliases(home)) == (["1"], {"champion": "1"})
    assert [run.info.status for run in runs(home)] == ["FINISHED"]


def test_a_moved_home_resumes_where_its_run_stopped(
    prefect_server: str,
    empty_store: Path,
    tmp_path: Path,
    choose: Callable[..., ResolvedSettings],
    copied_pictures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.jobs.retrain import retrain as flow

    def stop(*_: Any) -> None:
        raise VerdictError("stopped before measuring")

    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copy(empty_store, before / "mlflow.db")
    settings, origins = choose().settings.model_dump(), choose().origins
    with monkeypatch.context() as patch:
        patch.setattr("flows.jobs.retrain.evaluate_and_judge", stop)
        with pytest.raises(VerdictError, match="stopped before measuring"):
            flow(settings, origins, str(before))
    shutil.move(before, after)
    outcome = flow(settings, origins, str(after))
    assert not {"split", "fine-tune", "export"} & outcome.seconds.keys()
    assert (outcome.decision, aliases(after)) == ("PROMOTE", {"champion": "1"})
    assert Path(outcome.report).is_relative_to(after)
    again = flow(settings, origins, str(shutil.move(after, tmp_path / "third")))
    assert again.unchanged
    assert Path(again.report).is_relative_to(tmp_path / "third")


def test_the_run_of_a_dead_process_is_closed_by_the_next_job(retrain: Retrain, home: Path) -> None:
    from tasks.core.files import home_id
    from tasks.registry.mlflow_client import locate_store
    from tasks.registry.tracking import open_run

    store = locate_store(str(home))
    (home / "runs" / ("b" * 16)).mkdir(parents=True)
    dead = open_run(store, "b" * 16, {}, {"home": home_id(str(home))})
    elsewhere = open_run(store, "c" * 16, {}, {"home": "another"})
    retrain()
    assert client(home).get_run(dead).info.status == "KILLED"
    assert client(home).get_run(elsewhere).info.status == "RUNNING"


def test_a_server_named_by_the_environment_is_used(prefect_server: str) -> None:
    from flows.services.embedded_prefect import prefect_api

    with prefect_api(environment.verdict_home()) as server:
        assert server is None


def test_every_step_is_a_plain_function(trained: Any, toy_data: Path, tmp_path: Path) -> None:
    """The whole job without Prefect: what the flow calls can be called directly."""
    from toy import SPLIT, circumstances, origin, policy

    from flows.commands.check import read_data, run_gate
    from tasks.data.gate import raise_if_failed
    from tasks.evaluation.evidence import gather_evidence
    from tasks.evaluation.judge import judge
    from tasks.export.bundle_export import export_bundle

    settings = load_settings("sample", {"data.path": str(toy_data)}, {}).settings
    data = read_data(settings.data, str(tmp_path))
    raise_if_failed(run_gate(data, settings, str(tmp_path), None, None))
    exported = export_bundle(trained["model"], str(tmp_path), origin())
    holdout = {"digest": data["holdout"]["digest"], "path": data["holdout"]["path"]}
    known = {"split": SPLIT, "training": [], "context": circumstances()}
    evidence = gather_evidence(exported["bundle"], holdout, None, None, **known, device="cpu", resamples=200)  # type: ignore[arg-type]
    assert judge(evidence, policy(threshold=0.5))["decision"] == "PROMOTE"


def test_toy_data_of_another_seed_is_another_job(retrain: Retrain, home: Path) -> None:
    first = retrain()
    other = retrain(data__path=str(write_toy_data(home / "other", seed=1)))
    assert first["dataset"] != other["dataset"]
    assert not other["unchanged"]
    assert len(list((home / "runs").iterdir())) == 2


def test_holdout_uses_are_counted_and_recorded_evidence_gives_the_same_verdict(retrain: Retrain, home: Path) -> None:
    from tasks.evaluation.rejudge import rejudge

    weak = {"judge__threshold": -1.0, "judge__variant_difference": 1.0}  # int8 and fp32 of a model near chance differ
    weak |= {"finetune__epochs": 1, "finetune__learning_rate": 4e-4}
    first, second = retrain(**weak), retrain(judge__threshold=-1.0)
    third = retrain(judge__threshold=-1.0, force=True)  # the same bundle again is not another holdout use
    assert [outcome["holdout_uses"] for outcome in (first, second, third)] == [0, 1, 1]
    assert [outcome["rules"] for outcome in (first, second, third)] == [
        ["first_champion"],
        ["better_than_champion"],
        ["same_bundle"],
    ]
    for path in (home / "runs").glob("*/evidence.json"):
        found = rejudge(str(path))
        assert found["contradictions"] == []
        assert found["recorded"] is not None
        assert found["recorded"]["actor"]
        assert found["verdict"]["candidate_digest"] in {first["digest"], second["digest"]}
    tags = [run.data.tags for run in runs(home)]
    assert len({each["holdout"] for each in tags}) == 1
    assert {each["bundle_digest"] for each in tags} == {first["digest"], second["digest"]}
    logged = runs(home)[0].data.metrics
    assert {"f1", "auroc", "brier", "ece", "minimal_pairs", "holdout_uses", "mcc_int8"} <= set(logged)


def test_a_candidate_after_a_lost_champion_is_held(retrain: Retrain, home: Path) -> None:
    first = retrain()
    client(home).delete_model_version("acceptability", first["version"])
    assert aliases(home) == {}
    outcome = retrain(finetune__max_length=18)
    assert (outcome["decision"], outcome["rules"]) == ("HOLD", ["champion_lost"])
    assert "champion" not in aliases(home)
