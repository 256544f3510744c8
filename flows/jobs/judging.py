"""Measures a candidate and the champion, and judges; part of the main job."""

import logging
from pathlib import Path
from typing import Any

from flows.jobs.job import JobContext
from flows.steps import retrying_task, timed_task
from tasks.core.errors import VerdictError
from tasks.core.files import read_json, write_json
from tasks.core.policy import Policy
from tasks.core.timestamps import utc_now
from tasks.data.drift import drifted_names
from tasks.data.gate import GateReport
from tasks.data.sentence_sketch import sketch_snapshot
from tasks.evaluation.baselines import measure_baselines
from tasks.evaluation.evidence import Evidence, JudgeContext, gather_evidence, read_evidence
from tasks.evaluation.judge import Verdict, judge, stamp
from tasks.export.bundle_export import ExportResult
from tasks.inference.bundle import CHAMPION
from tasks.inference.decision import threshold_of
from tasks.registry import lookup, promotion, tracking
from tasks.registry.audit_log import actor
from tasks.registry.lookup import RegisteredVersion
from tasks.training.finetune import TrainingResult

log = logging.getLogger("tasks.judging")

find_alias = retrying_task("find champion", lookup.find_alias)
read_champion_state = retrying_task("find champion", promotion.read_champion_state)
count_holdout_uses = retrying_task("find champion", tracking.count_holdout_uses)
tag_run = retrying_task("log to MLflow", tracking.tag_run)
measure = timed_task("measure", gather_evidence)
baselines = timed_task("measure", measure_baselines)
decide = timed_task("judge", judge)


def evaluate_and_judge(
    context: JobContext, exported: ExportResult, gate: GateReport, training: TrainingResult
) -> tuple[Evidence, Verdict]:
    """Measure candidate and champion, and judge, unless a killed run of this job did so and nothing changed since.

    The holdout use is recorded before the holdout is read, so that a process that dies in between is counted.
    """
    timer, store, folder, data = context.timer, context.store, context.folder, context.inputs.data
    champion = find_alias(timer, store, CHAMPION)
    holdout, policy = data["holdout"], context.settings.judge.chosen_policy()
    sketch = sketch_snapshot(holdout["path"])
    judge_context = JudgeContext(
        champion_state="active" if champion else read_champion_state(timer, store),
        holdout_uses=count_holdout_uses(timer, store, holdout["digest"], sketch, exported["digest"]),
        drift=drifted_names(gate["drift"]),
        training_digest=data["train"]["digest"],
        policy=policy.recorded(),
    )
    if exported["threshold"]:
        judge_context["threshold_choice"] = exported["threshold"]
    if exported["costs"]:
        judge_context["costs"] = {**exported["costs"], "training_seconds": training["seconds"]}
    if reusable := find_reusable_verdict(folder, exported, judge_context, champion):
        return reusable
    use = {"holdout": holdout["digest"], tracking.SKETCH_TAG: sketch, "bundle_digest": exported["digest"]}
    tag_run(timer, store, context.run_id, use)
    secondary = data["secondary"]
    sides = ("train", "validation", "text") if data["text"] else ("train", "validation")
    evidence = measure(
        timer,
        exported["bundle"],
        {"digest": holdout["digest"], "path": holdout["path"]},
        {"digest": secondary["digest"], "path": secondary["path"]} if secondary else None,
        {key: champion[key] for key in ("version", "digest", "manifest_digest", "bundle")} if champion else None,  # type: ignore[arg-type]
        split=read_json(folder / "split.json"),
        training=[str(folder / f"{side}.parquet") for side in sides],
        context=judge_context,
        device=context.inputs.device,
        resamples=context.settings.judge.resamples,
    )
    evidence["baselines"] = baselines(timer, str(folder / "train.parquet"), holdout["path"], evidence["resamples"])
    verdict = stamp(decide(timer, evidence, policy), utc_now(), actor())
    write_json(folder / "evidence.json", evidence)
    write_json(folder / "verdict.json", verdict)
    return evidence, verdict


def find_reusable_verdict(
    folder: Path, exported: ExportResult, judge_context: JudgeContext, champion: RegisteredVersion | None
) -> tuple[Evidence, Verdict] | None:
    """Return a killed run's verdict if it was carried out already, or nothing that it depends on changed since."""
    if not (folder / "verdict.json").is_file():
        return None
    try:
        evidence, verdict = read_evidence(folder / "evidence.json"), read_json(folder / "verdict.json")
    except VerdictError as error:
        log.warning("%s; the candidate is judged again", str(error).partition(";")[0])
        return None
    # A run that was killed between the two writes leaves the verdict of other evidence.
    expected = stamp(judge(evidence, Policy.model_validate(evidence["policy"])), verdict["time"], verdict["actor"])
    if verdict != expected or verdict["candidate_digest"] != exported["digest"]:
        return None
    carried_out = champion is not None and champion["digest"] == exported["digest"]
    compared, now = ((one["version"], one["digest"]) if one else None for one in (evidence["champion"], champion))
    same = compared == now and judge_context.items() <= evidence.items()
    return (evidence, verdict) if carried_out or same else None


def list_figures(evidence: Evidence) -> dict[str, float]:
    """Return the single figures of an evidence that are logged to its MLflow run."""
    measured, comparison = evidence["candidate"], evidence["comparison"]
    interval = measured["interval"]
    figures: dict[str, Any] = {"mcc": interval["mcc"], "mcc_low": interval["low"], "mcc_high": interval["high"]}
    figures |= {f"mcc_{name}": other["interval"]["mcc"] for name, other in evidence["variants"].items()}
    figures |= {name: dict(measured)[name] for name in ("accuracy", "f1", "auroc", "brier", "ece")}
    figures |= {"minimal_pairs": evidence["minimal_pairs"]["share"], "holdout_uses": evidence["holdout_uses"]}
    figures["decision_threshold"] = threshold_of(measured)
    if costs := evidence.get("costs"):  # of what serves; the report has those of all variants
        served = dict(costs["variants"][measured["variant"]])
        figures |= {f"costs/{name}": value for name, value in served.items() if name != "provider"}
        figures["costs/training_seconds"] = costs.get("training_seconds")
    if comparison:
        figures |= {
            "mcc_difference": comparison["difference"],
            "mcc_difference_low": comparison["low"],
            "mcc_difference_high": comparison["high"],
        }
    return figures
