"""The part of the main job that weighs a candidate: what is known, what is measured, what follows."""

import datetime
import logging
from pathlib import Path
from typing import Any

from flows.steps import retrying_task, timed_task
from tasks.core.errors import VerdictError
from tasks.core.files import read_json, write_json
from tasks.core.settings import Settings
from tasks.data.gate import GateReport
from tasks.data.ingestion import Dataset
from tasks.evaluation.evidence import Evidence, JudgeContext, gather_evidence, read_evidence
from tasks.evaluation.judge import Verdict, judge, stamp
from tasks.export.bundle_export import ExportResult
from tasks.registry import promotion as moves
from tasks.registry import tracking as runs
from tasks.registry import versions as registry
from tasks.registry.audit_log import actor
from tasks.registry.mlflow_client import MlflowStore
from tasks.registry.versions import CHAMPION, RegisteredVersion

log = logging.getLogger("tasks.judging")

find_alias = retrying_task("find champion", registry.find_alias)
find_incumbency = retrying_task("find champion", moves.read_champion_state)
count_holdout_uses = retrying_task("find champion", runs.count_holdout_uses)
tag_run = retrying_task("log to MLflow", runs.tag_run)
measure = timed_task("measure", gather_evidence)
decide = timed_task("judge", judge)


def evaluate_and_judge(
    exported: ExportResult,
    data: Dataset,
    gate: GateReport,
    settings: Settings,
    device: str,
    folder: Path,
    store: MlflowStore,
    run_id: str,
) -> tuple[Evidence, Verdict]:
    """Measure candidate and champion, and judge, unless a killed run of this job did so and nothing changed since.

    The look at the holdout is recorded before it is taken: a process that dies in between has still looked.
    """
    champion = find_alias(store, CHAMPION)
    holdout, policy = data["holdout"], settings.judge.chosen_policy()
    judge_context = JudgeContext(
        champion_state="active" if champion else find_incumbency(store),
        holdout_uses=count_holdout_uses(store, holdout["digest"], exported["digest"]),
        drift=[shift["name"] for shift in gate["drift"] if shift["drifted"]],
        training_digest=data["train"]["digest"],
        policy=policy.model_dump(),
    )
    if standing := find_reusable_verdict(folder, exported, judge_context, champion):
        return standing
    tag_run(store, run_id, {"holdout": holdout["digest"], "bundle_digest": exported["digest"]})
    reported = data["secondary"]
    sides = ("train", "validation", "text") if data["text"] else ("train", "validation")
    evidence = measure(
        exported["bundle"],
        {"digest": holdout["digest"], "path": holdout["path"]},
        {"digest": reported["digest"], "path": reported["path"]} if reported else None,
        {key: champion[key] for key in ("version", "digest", "bundle")} if champion else None,  # type: ignore[arg-type]
        split=read_json(folder / "split.json"),
        training=[str(folder / f"{side}.parquet") for side in sides],
        context=judge_context,
        device=device,
        resamples=settings.judge.resamples,
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    verdict = stamp(decide(evidence, policy), now, actor())
    write_json(folder / "evidence.json", evidence)
    write_json(folder / "verdict.json", verdict)
    return evidence, verdict


def find_reusable_verdict(
    folder: Path, exported: ExportResult, judge_context: JudgeContext, champion: RegisteredVersion | None
) -> tuple[Evidence, Verdict] | None:
    """Return the verdict that a killed run left where it still stands: it was carried out, or nothing changed since."""
    if not (folder / "verdict.json").is_file():
        return None
    try:
        evidence, verdict = read_evidence(folder / "evidence.json"), read_json(folder / "verdict.json")
    except VerdictError as error:
        log.warning("%s; the candidate is judged again", str(error).partition(";")[0])
        return None
    if verdict["candidate_digest"] != exported["digest"]:
        return None
    carried_out = champion is not None and champion["digest"] == exported["digest"]
    compared, now = ((one["version"], one["digest"]) if one else None for one in (evidence["champion"], champion))
    same = compared == now and judge_context.items() <= evidence.items()
    return (evidence, verdict) if carried_out or same else None


def list_figures(evidence: Evidence) -> dict[str, float]:
    """Return the single numbers of an evidence that are logged to its run."""
    measured, comparison = evidence["candidate"], evidence["comparison"]
    interval = measured["interval"]
    figures: dict[str, Any] = {"mcc": interval["mcc"], "mcc_low": interval["low"], "mcc_high": interval["high"]}
    figures |= {f"mcc_{name}": other["interval"]["mcc"] for name, other in evidence["variants"].items()}
    figures |= {name: dict(measured)[name] for name in ("accuracy", "f1", "auroc", "brier", "ece")}
    figures |= {"minimal_pairs": evidence["minimal_pairs"]["share"], "holdout_uses": evidence["holdout_uses"]}
    if comparison:
        figures |= {
            "mcc_difference": comparison["difference"],
            "mcc_difference_low": comparison["low"],
            "mcc_difference_high": comparison["high"],
        }
    return figures
