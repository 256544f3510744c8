"""The retrain flow as a whole, on a real Prefect server and a real SQLite store."""

import functools
import json
import logging
import logging.handlers
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
import pytest
from job_cache import Choose, FirstRun, FlowHome, JobCache, PictureCache, find_job
from registry_store import new_store, restore

from flows import environment
from flows.commands.report import find_report
from tasks.core.errors import DataRejected, UsageError, VerdictError
from tasks.core.settings_loader import load_settings
from tasks.data.snapshots import read_snapshot

Retrain = Callable[..., dict[str, Any]]

# One epoch: near chance, where int8 and fp32 differ.
WEAK = {"finetune__epochs": 1, "finetune__learning_rate": 4e-4, "judge__variant_difference": 1.0}


@pytest.fixture(scope="module")
def retrain_in(job_cache: JobCache, choose: Choose) -> Callable[..., dict[str, Any]]:
    """Run the flow in a home; what an equal job of this session trained and exported is there already."""
    from flows.jobs.retrain import retrain as flow

    def run(home: Path, force: bool = False, **changes: Any) -> dict[str, Any]:
        resolved = choose(**changes)
        with job_cache.resumed(home, resolved):
            return flow(resolved.settings.model_dump(), resolved.origins, str(home), force).to_json()

    return run


@pytest.fixture
def retrain(
    prefect_server: str, home: Path, retrain_in: Callable[..., dict[str, Any]], copied_pictures: None
) -> Retrain:
    return functools.partial(retrain_in, home)


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


def test_a_run_that_would_end_unsigned_does_not_start_where_a_signature_is_required(
    home: Path, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.jobs.retrain import retrain as flow

    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    with pytest.raises(UsageError, match="VERDICT_REQUIRE_SIGNATURE is set and VERDICT_SIGNING_KEY is not"):
        flow.fn(choose().settings.model_dump(), {}, str(home))


def test_the_first_fit_candidate_becomes_champion_and_everything_is_recorded(
    champion: dict[str, Any], home: Path
) -> None:
    outcome = champion
    assert outcome["decision"] == "PROMOTE"
    assert outcome["reasons"] == ["there is no champion yet"]
    assert outcome["mcc"] > 0.9
    assert outcome["mcc_low"] <= outcome["mcc"] <= outcome["mcc_high"]
    assert outcome["provider"] == "CPUExecutionProvider"
    assert set(outcome["mcc_by_variant"]) == {"fp32", "fp16", "int8"}
    assert outcome["mcc"] == outcome["mcc_by_variant"][outcome["variant"]]
    assert outcome["variant"] == "int8"
    assert outcome["holdout_rows"] == 80
    assert "run in Prefect" not in Path(outcome["report"]).read_text()  # the server has no pages, and ends with the run
    assert find_report("1", str(home)) == {"version": "1", "report": outcome["report"]}
    Path(outcome["report"]).unlink()  # as `verdict prune` does: the bundle has its own, which names no version
    bundled = Path(find_report("1", str(home))["report"])
    assert "/bundle/" in str(bundled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.commands.report.is_download", lambda path: path == bundled)  # which ends with the process
        kept = Path(find_report("1", str(home))["report"])
    assert kept.parent == home / "cache" / "reports"
    assert kept.read_text() == bundled.read_text()
    assert aliases(home) == {"champion": outcome["version"]} == {"champion": "1"}
    (run,) = runs(home)
    assert run.info.status == "FINISHED"
    assert run.data.params["finetune.learning_rate"] == "0.003"
    assert run.data.tags["origin.finetune.learning_rate"] == "flag"
    assert run.data.tags["origin.finetune.encoder"] == "flag"
    assert run.data.tags["origin.judge.threshold"] == "profile sample"
    assert "origin.gate.min_rows" not in run.data.tags  # a default
    assert run.data.tags["verdict"] == "PROMOTE"
    data = f"{Path(run.data.params['data.path']).name} {outcome['dataset'][:8]}"
    assert run.info.run_name == f"acceptability 1 PROMOTE, {data}"
    assert len(client(home).get_model_version("acceptability", "1").tags) <= 12
    table = pd.read_json(client(home).download_artifacts(run.info.run_id, "predictions.json"), orient="split")
    assert len(table) == outcome["holdout_rows"]
    assert table["correct"].mean() == pytest.approx(run.data.metrics["accuracy"])
    assert table["correct"].is_monotonic_increasing  # the worst errors come first
    assert (
        "[version 1](#/models/acceptability/versions/1?workflowType=machine_learning)"
        in run.data.tags["mlflow.note.content"]
    )
    assert run.data.metrics["mcc"] == pytest.approx(outcome["mcc"])
    assert run.data.metrics["decision_threshold"] == 0.5
    costs = {name.removeprefix("costs/") for name in run.data.metrics if name.startswith("costs/")}
    assert costs == {"latency_ms", "latency_p95_ms", "sentences_per_second", "size_mb", "memory_mb", "training_seconds"}
    assert run.data.metrics["seconds/check data"] == pytest.approx(outcome["seconds"]["check data"])
    assert run.data.metrics["seconds/so far"] > run.data.metrics["seconds/before the flow"] > 0.0
    epochs = client(home).get_metric_history(run.info.run_id, "validation_mcc")
    assert [entry.step for entry in epochs] == [1, 2, 3, 4]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "holdout"}
    pictures = {entry.path for entry in client(home).list_artifacts(run.info.run_id, "pictures")}
    names = (
        "intervals",
        "calibration",
        "confusion",
        "ranking",
        "thresholds",
        "loss_per_step",
        "epochs",
        "mcc_per_batch",
    )
    assert pictures == {f"pictures/{name}.png" for name in names}
    records = {entry.path for entry in client(home).list_artifacts(run.info.run_id, "records")}
    assert records == {
        f"records/{name}" for name in ("evidence.json", "verdict.json", "report.html", "errors.csv", "card.md")
    }
    assert {entry.path for entry in client(home).list_artifacts(run.info.run_id, "gate")} == {
        "gate/gate.json",
        "gate/gate.html",
    }


def test_no_password_of_an_address_is_recorded(choose: Choose) -> None:
    from flows.jobs.job import recordable_rows

    address = "https://somebody:SECRET@example.org/rows.tsv#sha256=00"
    resolved = choose(data__path=[address], data__train=address, data__holdout=address, data__text=address)
    rows = {key: value for key, value, _ in recordable_rows(*resolved)}
    assert "SECRET" not in str(rows)
    for name in ("path", "train", "holdout", "text"):
        assert rows[f"data.{name}"] == "https://***@example.org/rows.tsv#sha256=00"


class Blemishes(NamedTuple):
    """Data with every blemish, and text."""

    rows: int
    """Of the training file, without the blemished ones."""
    path: list[str]
    text: str


def blemish(toy_data: Path, folder: Path) -> Blemishes:
    """Write rows that drifted, with one of the holdout, a repeated and a conflicting one; another file; and text."""
    shutil.copytree(toy_data, folder / "data")
    train, holdout = folder / "data" / "in_domain_train.tsv", folder / "data" / "out_of_domain_dev.tsv"
    rows = [row for row in train.read_text().splitlines(keepends=True) if "\t1\t" in row or "cat" in row]
    leaked, first = holdout.read_text().splitlines()[0], rows[0].split("\t")
    conflict = [first[0], "1" if first[1] == "0" else "0", first[2], first[3].upper()]
    train.write_text("".join([*rows, rows[1], leaked + "\n", "\t".join(conflict)]))
    labelled = [row.split("\t")[3].strip() for row in [*holdout.read_text().splitlines()[:10], *rows[-10:]]]
    text = folder / "more.txt"
    text.write_text("\n".join([*labelled, *(f"the cat sees dog {n} now" for n in range(30))]))
    feedback = folder / "feedback.csv"
    feedback.write_text("sentence,label,source\nthe cat sees the dog quietly here,1,feedback\n")
    return Blemishes(len(rows), [str(folder / "data"), str(feedback)], str(text))


class SecondRun(NamedTuple):
    """What a run over such data leaves, after a champion: outcome, MLflow run, a copy of its job folder, log."""

    data: Blemishes
    outcome: dict[str, Any]
    run: Any
    epochs: list[Any]
    job: Path
    log: list[str]


@pytest.fixture(scope="module")
def second_run(
    first_run: FirstRun,
    flow_home: FlowHome,
    retrain_in: Callable[..., dict[str, Any]],
    picture_cache: PictureCache,
    toy_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> SecondRun:
    from flows.jobs import publish

    flow_home.put_back(first_run.kept)
    home, folder = flow_home.folder, tmp_path_factory.mktemp("second")
    data = blemish(toy_data, folder)
    recipe = {"finetune__seeds": 2, "finetune__epochs": 3, "finetune__restarts": 0}
    recorder = logging.handlers.BufferingHandler(1_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "draw", picture_cache.copying(publish.draw))
        patch.setattr(logging.getLogger("tasks"), "handlers", [recorder])
        patch.setattr(logging.getLogger("tasks"), "level", logging.INFO)
        outcome = retrain_in(home, data__path=data.path, data__text=data.text, **recipe)
    (run,) = (found for found in runs(home) if found.info.run_id == outcome["run"])
    epochs = client(home).get_metric_history(outcome["run"], "validation_mcc")
    job = Path(shutil.copytree(Path(outcome["report"]).parent, folder / "job"))
    return SecondRun(data, outcome, run, epochs, job, [entry.getMessage() for entry in recorder.buffer])


def test_several_seeds_follow_one_another_in_the_record(second_run: SecondRun) -> None:
    assert [entry.step for entry in second_run.epochs] == [1, 2, 3, 4, 5, 6]
    assert "2 seeds were trained from the same weights" in (second_run.job / "bundle" / "report.html").read_text()


def test_text_without_labels_trains_the_corruption_stage_and_is_recorded(second_run: SecondRun) -> None:
    run = second_run.run
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "holdout", "text"}
    assert len(read_snapshot(str(second_run.job / "text.parquet"))) == run.data.metrics["rows_text"] == 30
    assert run.data.metrics["rows_text_left_out"] == 20
    assert "corruption stage: 60 sentences, 30 of them corrupted" in second_run.log


def test_the_evidence_counts_the_removed_rows_by_reason(second_run: SecondRun) -> None:
    split = json.loads((second_run.job / "evidence.json").read_text())["split"]
    assert {name: split[name] for name in ("in_holdout", "conflicting", "repeated")} == {
        "in_holdout": 1,
        "conflicting": 2,
        "repeated": 1,
    }
    assert sum(split.values()) == second_run.data.rows + 3 + 1  # the blemished rows, and that of feedback.csv


def test_several_addresses_are_merged_and_train_together(second_run: SecondRun) -> None:
    rows = pd.concat([pd.read_parquet(second_run.job / f"{side}.parquet") for side in ("train", "validation")])
    assert rows["source"].value_counts().to_dict() == {"toy": second_run.data.rows - 1, "feedback": 1}


def test_other_data_is_another_job_and_compared_with_what_the_champion_was_trained_on(
    first_run: FirstRun, second_run: SecondRun
) -> None:
    first, second = first_run.outcome, second_run.outcome
    assert second["dataset"] != first["dataset"]
    assert not second["unchanged"]
    assert second["champion_before"] == first["version"]
    gate = json.loads((second_run.job / "gate.json").read_text())
    (before,) = first_run.kept.glob("runs/*/gate.json")
    assert gate["reference"] == json.loads(before.read_text())["profile"]["dataset"]
    assert gate["passed"]
    assert "label" in {shift["name"] for shift in gate["drift"] if shift["drifted"]}


def test_other_text_is_another_job(home: Path, choose: Choose, tmp_path: Path) -> None:
    text, jobs = tmp_path / "more.txt", []
    for sentence in ("the cat sees the dog now", "the cat sees the dog now", "the cat sees another dog now"):
        text.write_text(sentence)
        jobs.append(find_job(home, choose(data__text=str(text)))[0].name)
    assert jobs[0] == jobs[1] != jobs[2]


def test_prefect_shows_the_summary_and_the_progress(champion: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client

    outcome = champion
    with get_client(sync_client=True) as prefect:
        artifacts = prefect.read_artifacts()
        names = {run.id: run.name for run in prefect.read_flow_runs()}
    (summary,) = (entry for entry in artifacts if entry.key == "verdict" and outcome["report"] in str(entry.data))
    assert str(summary.data).startswith("# PROMOTE")
    assert names[summary.flow_run_id].startswith(f"acceptability {outcome['version']} PROMOTE, ")
    assert names[summary.flow_run_id].endswith(f" {outcome['dataset'][:8]}")
    flow_run = [entry for entry in artifacts if entry.flow_run_id == summary.flow_run_id]
    assert [entry.data for entry in flow_run if entry.key == "fine-tuning"] == [100.0]
    (gate,) = (str(entry.data) for entry in flow_run if entry.key == "data-gate")
    assert gate.startswith("# Data accepted\n\n480 rows in, 480 kept, 0 quarantined.")
    assert "| training rows | number of rows | 400 | at least 100 | passed |" in gate
    (figures,) = (json.loads(entry.data) for entry in flow_run if entry.key == "figures")
    assert figures[0] == {"figure": "MCC", "candidate": f"{outcome['mcc']:.3f}", "champion": ""}
    assert "minimal pairs ranked correctly" in {row["figure"] for row in figures}
    assert not [entry for entry in flow_run if entry.key == "mlflow-run"]  # a database has no page


def test_nothing_changed_means_nothing_is_registered_and_force_runs_anyway(
    champion: dict[str, Any], retrain: Retrain, home: Path
) -> None:
    first = champion
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
    assert (forced["rules"], forced["holdout_uses"]) == (["same_bundle"], 0)  # not another holdout use
    assert aliases(home) == {"champion": "1"}


def test_no_candidate_is_promoted_uncompared_where_the_database_is_lost(
    champion: dict[str, Any], retrain: Retrain, home: Path, empty_store: Path
) -> None:
    restore(empty_store, home)
    for changes in ({}, {"finetune__max_length": 18}):
        with pytest.raises(
            VerdictError, match=r"mlflow.db is empty, but .*/artifacts/models/m-.* was registered in it"
        ):
            retrain(**changes)
    assert aliases(home) == {}
    restore(empty_store, home)
    for path in (home / "artifacts", *home.glob("runs/*/result.json")):  # as a person does who starts over
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert retrain()["decision"] == "PROMOTE"


def test_below_the_threshold_is_rejected_and_the_alias_stays(
    champion: dict[str, Any], retrain: Retrain, home: Path
) -> None:
    weaker = retrain(**WEAK, judge__threshold=1.0, export__decision_threshold="validation")
    assert weaker["decision"] == "REJECT"
    assert "below_threshold" in weaker["rules"]
    assert any(reason.endswith("is below the threshold 1.000") for reason in weaker["reasons"])
    assert aliases(home) == {"champion": "1"}
    assert client(home).get_model_version("acceptability", weaker["version"]).tags["verdict"] == "REJECT"
    # Its decision threshold was chosen on validation sentences: bundle, evidence, figures and report have the same.
    job = Path(weaker["report"]).parent
    manifest, evidence = (json.loads((job / name).read_text()) for name in ("bundle/bundle.json", "evidence.json"))
    threshold = manifest.get("decision_threshold", 0.5)
    assert evidence["threshold_choice"]["threshold"] == threshold
    assert evidence["candidate"].get("decision_threshold", 0.5) == threshold
    assert runs(home)[0].data.metrics["decision_threshold"] == threshold
    assert f"The decision threshold {threshold:.3g} was chosen on" in Path(weaker["report"]).read_text()


def test_a_first_candidate_below_the_threshold_leaves_no_champion(retrain: Retrain, home: Path) -> None:
    outcome = retrain(**WEAK, judge__threshold=0.99)
    assert outcome["decision"] == "REJECT"
    assert aliases(home) == {}


class Succession(NamedTuple):
    """What three candidates in a row leave: a weak one, a better one, and one that equals it."""

    outcomes: list[dict[str, Any]]
    aliases: dict[str, str]
    versions: dict[str, Any]
    """MLflow's record of each version."""
    runs: list[Any]
    """MLflow's records, the last run first."""
    jobs: list[Path]
    """Copies of the jobs' folders."""


@pytest.fixture(scope="module")
def succession(
    first_run: FirstRun,
    flow_home: FlowHome,
    retrain_in: Callable[..., dict[str, Any]],
    picture_cache: PictureCache,
    tmp_path_factory: pytest.TempPathFactory,
) -> Succession:
    from flows.jobs import publish

    flow_home.clear()
    home = flow_home.folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "draw", picture_cache.copying(publish.draw))
        weak = retrain_in(home, **WEAK, judge__threshold=-1.0)
        better, tie = (retrain_in(home, judge__threshold=-1.0, finetune__max_length=length) for length in (16, 18))
    registered = {version: client(home).get_model_version("acceptability", version) for version in versions(home)}
    kept = Path(shutil.copytree(home / "runs", tmp_path_factory.mktemp("succession") / "runs"))
    outcomes = [weak, better, tie]
    jobs = [kept / Path(outcome["report"]).parts[-2] for outcome in outcomes]
    return Succession(outcomes, aliases(home), registered, runs(home), jobs)


def test_a_better_candidate_replaces_the_champion_and_a_tie_is_held(succession: Succession) -> None:
    first, better, tie = succession.outcomes
    assert first["decision"] == "PROMOTE"
    assert (better["decision"], better["champion_before"]) == ("PROMOTE", first["version"])
    assert better["mcc"] > first["mcc"]
    assert tie["mcc"] == better["mcc"]
    assert tie["decision"] == "HOLD"
    assert succession.aliases == {"champion": better["version"], "challenger": tie["version"]}
    tags = {version: found.tags for version, found in succession.versions.items()}
    assert succession.versions[better["version"]].description.startswith("Promoted to champion by ")
    assert "first" in tags[first["version"]]["changed"]
    assert tags[better["version"]]["changed"].startswith("finetune.epochs 1 -> 4; finetune.learning_rate 0.0004 -> ")
    described = succession.versions[tie["version"]].description
    assert described.startswith("HOLD: MCC ")
    assert f"**Changed since champion {better['version']}**\n\n- `finetune.max_length`: 16 → 18\n" in described
    report = succession.jobs[2] / "bundle" / "report.html"
    assert f"Differences from champion {better['version']}" in report.read_text()


def test_holdout_uses_are_counted_and_recorded_evidence_gives_the_same_verdict(succession: Succession) -> None:
    from tasks.evaluation.rejudge import rejudge

    outcomes = succession.outcomes
    assert [outcome["holdout_uses"] for outcome in outcomes] == [0, 1, 2]
    assert [outcome["rules"] for outcome in outcomes[:2]] == [["first_champion"], ["better_than_champion"]]
    digests = {outcome["digest"] for outcome in outcomes}
    assert len(digests) == 3
    for job in succession.jobs:
        found = rejudge(str(job / "evidence.json"))
        assert found["contradictions"] == []
        assert found["recorded"] is not None
        assert found["recorded"]["actor"]
        assert found["verdict"]["candidate_digest"] in digests
    tags = [run.data.tags for run in succession.runs]
    assert len({each["holdout"] for each in tags}) == 1
    assert {each["bundle_digest"] for each in tags} == digests
    logged = succession.runs[0].data.metrics
    assert {"f1", "auroc", "brier", "ece", "minimal_pairs", "holdout_uses", "mcc_int8"} <= set(logged)


def test_a_run_that_was_stopped_says_so_and_by_what(
    retrain: Retrain, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.jobs import retrain as module

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("stopped by SIGINT")

    monkeypatch.setattr(module, "check_data", stop)
    with pytest.raises(KeyboardInterrupt):
        retrain()
    (run,) = runs(home)
    assert (run.info.status, run.data.tags["verdict"], run.data.tags["error"]) == (
        "KILLED", "STOPPED", "stopped by SIGINT",
    )  # fmt: skip


def test_a_run_that_was_terminated_says_so(retrain: Retrain, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect has a handler of its own for SIGTERM while a flow runs, and sends the signal on afterwards."""
    from flows.jobs import retrain as module

    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_data", stop)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            retrain()
    finally:
        signal.signal(signal.SIGTERM, before)
    (run,) = runs(home)
    assert (run.info.status, run.data.tags["verdict"], run.data.tags["error"]) == (
        "KILLED", "STOPPED", "stopped by SIGTERM",
    )  # fmt: skip


def test_text_labels_are_refused_and_nothing_is_registered(
    retrain: Retrain, home: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.jobs import retrain as module

    monkeypatch.setattr(module, "try_encoder", lambda *_: pytest.fail("the gate comes first: it takes less time"))
    folder = Path(shutil.copytree(toy_data, home / "text"))
    rows = (toy_data / "in_domain_train.tsv").read_text()
    (folder / "in_domain_train.tsv").write_text(rows.replace("\t1\t", "\tyes\t").replace("\t0\t", "\t2\t"))
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
    assert kept == {"gate/gate.json", "gate/gate.html", "gate/quarantine.csv", "gate/quarantine.parquet"}


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


def test_an_encoder_with_a_fault_is_refused_before_a_run_is_opened(
    retrain: Retrain, home: Path, tiny_encoder: Path
) -> None:
    encoder = Path(shutil.copytree(tiny_encoder, home / "mine"))
    (encoder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UsageError, match=r"model\.safetensors' is a pointer of Git LFS"):
        retrain(finetune__encoder=str(encoder))
    assert not (home / "runs").exists()
    assert runs(home) == []


def test_an_empty_file_fails_before_a_run_is_opened(retrain: Retrain, home: Path, toy_data: Path) -> None:
    folder = Path(shutil.copytree(toy_data, home / "empty"))
    (folder / "in_domain_train.tsv").write_text("")
    with pytest.raises(VerdictError, match=r"in_domain_train\.tsv is empty"):
        retrain(data__path=str(folder))
    assert runs(home) == []


def test_the_same_job_does_not_run_twice_at_once(retrain: Retrain, home: Path, choose: Choose) -> None:
    from filelock import FileLock

    job, _ = find_job(home, choose())
    job.mkdir(parents=True)
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


def test_a_moved_home_resumes_where_its_run_stopped(
    champion: dict[str, Any],
    home: Path,
    empty_store: Path,
    tmp_path: Path,
    choose: Choose,
    copied_pictures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.jobs import retrain as module

    flow = module.retrain
    monkeypatch.setattr(module, "start_forkserver", lambda: pytest.fail("nothing is left to export"))
    moved = Path(shutil.copytree(home, tmp_path / "moved", ignore=shutil.ignore_patterns("mlflow.db*", "artifacts")))
    (job,) = (moved / "runs").iterdir()
    for name in ("result.json", "verdict.json", "evidence.json"):  # as of a run that stopped before it measured
        (job / name).unlink()
    new_store(empty_store, moved)
    settings, origins = choose().settings.model_dump(), choose().origins
    outcome = flow(settings, origins, str(moved))
    assert not {"split", "fine-tune", "export"} & outcome.seconds.keys()
    assert "measure" in outcome.seconds
    assert (outcome.decision, aliases(moved)) == ("PROMOTE", {"champion": "1"})
    assert Path(outcome.report).is_relative_to(moved)
    again = flow(settings, origins, str(shutil.move(moved, tmp_path / "third")))
    assert again.unchanged
    assert Path(again.report).is_relative_to(tmp_path / "third")


def test_the_run_of_a_dead_process_is_closed_by_the_next_job(retrain: Retrain, home: Path) -> None:
    from tasks.core.files import home_id
    from tasks.registry.store import locate_store
    from tasks.registry.tracking import open_run

    store = locate_store(str(home))
    (home / "runs" / ("b" * 16)).mkdir(parents=True)
    dead = open_run(store, "b" * 16, {}, {"home": home_id(str(home))})
    elsewhere = open_run(store, "c" * 16, {}, {"home": "another"})
    with pytest.raises(DataRejected):  # which closes it as well, and takes less long
        retrain(gate__min_rows=401)
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


def test_a_candidate_after_a_lost_champion_is_held(champion: dict[str, Any], retrain: Retrain, home: Path) -> None:
    client(home).delete_model_version("acceptability", champion["version"])
    assert aliases(home) == {}
    outcome = retrain(finetune__max_length=18)
    assert (outcome["decision"], outcome["rules"]) == ("HOLD", ["champion_lost"])
    assert "champion" not in aliases(home)


def test_a_training_learns_from_a_registered_teacher_which_names_the_job_and_is_recorded(
    champion: dict[str, Any], retrain: Retrain, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.txt").write_text("the old cat sees the old bird here\n")
    changes: dict[str, Any] = {"data__text": str(tmp_path / "text.txt"), "finetune__epochs": 1}
    with caplog.at_level(logging.INFO, "tasks"):
        taught = retrain(finetune__teacher="models:/acceptability@champion", **changes)
    assert "the teacher answers 322 sentences, 2 of them without a label" in caplog.messages
    assert not any("learned other training rows" in message for message in caplog.messages)
    assert not taught["unchanged"]
    (run,) = (found for found in runs(home) if found.info.run_id == taught["run"])
    (before,) = client(home).search_model_versions(f"version_number = {champion['version']}")
    assert run.data.tags["teacher_digest"] == before.tags["manifest_digest"]
    again = retrain(finetune__teacher=champion["version"], **changes)  # another address of the same model
    assert again["unchanged"]
    assert again["version"] == taught["version"]
