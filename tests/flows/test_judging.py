"""The recorded verdict of a killed run is reused only if it is still valid."""

from pathlib import Path
from typing import Any

from candidates import export, weigh
from toy import policy

from flows.jobs.judging import find_reusable_verdict
from tasks.core.files import write_json
from tasks.evaluation.evidence import JudgeContext
from tasks.evaluation.judge import judge, stamp


def record(folder: Path, evidence: Any) -> Any:
    """Write evidence and its verdict as a run does; return the verdict."""
    verdict = stamp(judge(evidence, policy()), "2026-01-01T00:00:00+00:00", "somebody")
    write_json(folder / "evidence.json", evidence)
    write_json(folder / "verdict.json", verdict)
    return verdict


def reuse(folder: Path, evidence: Any, champion: Any = None) -> Any:
    context: Any = {key: evidence[key] for key in JudgeContext.__required_keys__}
    return find_reusable_verdict(folder, export(str(folder / "bundle")), context, champion)


def test_a_verdict_is_reused_where_its_folder_was_moved(tmp_path: Path) -> None:
    evidence = weigh()
    verdict = record(tmp_path / "before", evidence)
    (tmp_path / "before").rename(tmp_path / "after")
    assert reuse(tmp_path / "after", evidence) == (evidence, verdict)


def test_a_verdict_is_not_reused_if_a_champion_a_holdout_use_or_the_schema_changed(tmp_path: Path) -> None:
    evidence = weigh()
    record(tmp_path, evidence)
    assert reuse(tmp_path, evidence | {"holdout_uses": 1}) is None
    assert reuse(tmp_path, evidence, {"version": "9", "digest": "e" * 64, "bundle": "elsewhere"}) is None
    write_json(tmp_path / "evidence.json", evidence | {"schema_version": 2})
    assert reuse(tmp_path, evidence) is None


def test_the_verdict_of_other_evidence_is_not_reused(tmp_path: Path) -> None:
    record(tmp_path, weigh())
    compared = weigh(champion=1.0)
    write_json(tmp_path / "evidence.json", compared)  # killed before the new verdict was written
    champion = compared["champion"]
    assert (
        reuse(tmp_path, compared, {"version": champion["version"], "digest": champion["digest"], "bundle": ""}) is None
    )
