"""The data gate: a Great Expectations suite over the snapshots, run before anything is trained.

Rows are checked by their measures, so that each finding names the lines it is about. What only a whole file has (the
quarantined share, unknown word pieces, drift) stands in a table of one row and is checked there, so that every limit is
an expectation and is reported alike. A finding is critical, and then refuses the data, or a warning.
"""

from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write, write_json
from tasks.data.drift import DataProfile, DriftResult, compare_profiles, profile_snapshot
from tasks.data.expectations import (
    ExpectationResult,
    figure_expectations,
    row_expectations,
    run_suite,
    schema_expectations,
    show_allowed,
    show_observed,
)
from tasks.data.ingestion import Dataset
from tasks.data.row_features import compute_row_features, count_quality_issues, flag_duplicates, flag_leakage
from tasks.data.snapshots import QUARANTINE_SCHEMA, SNAPSHOT_SCHEMA, Snapshot, iter_snapshot
from tasks.data.vocabulary_coverage import unk_rate

HEAD_ROWS = 1_000  # rows whose types are checked; Parquet keeps one type a column


class ReadCounts(TypedDict):
    """Rows of several snapshots: rows_in = kept + quarantined, the latter by kind, and the first examples."""

    rows_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    examples: list[str]


class GateReport(ReadCounts):
    """The gate's answer; it passed when no critical finding failed. `report` is the JSON file that holds all of it."""

    passed: bool
    results: list[ExpectationResult]
    quality_issues: dict[str, dict[str, int]]
    drift: list[DriftResult]
    reference: str | None
    profile: DataProfile
    dataset: str
    report: str


def validate_data(
    data: Dataset, folder: str, limits: dict[str, Any], encoder: str | None = None, reference: DataProfile | None = None
) -> GateReport:
    """Run the suite; write gate.json and, where rows were quarantined, quarantine.parquet.

    Args:
        data: the snapshots to look at.
        folder: receives both files.
        limits: the settings under `gate` and data.max_quarantined, by name.
        encoder: folder of the encoder whose word pieces are counted; None: not checked.
        reference: profile of the data that the champion was trained on; None: drift is not checked.
    """
    roles = {"training rows": data["train"], "holdout rows": data["holdout"]}
    rows = {name: compute_row_features(snapshot["path"]) for name, snapshot in roles.items()}
    train, holdout = rows.values()
    flag_duplicates(train)
    flag_leakage(holdout, train)
    profile = profile_snapshot(data["train"]["path"], data["train"]["digest"])
    drift = compare_profiles(profile, reference, limits) if reference else []
    # Figures come first: where rows were quarantined, that is the cause and too few rows the consequence.
    values = compute_figures(data, encoder, drift, limits["drift_level"])
    findings = run_suite("whole data", pd.DataFrame([values]), figure_expectations(values, drift, limits))
    for name, snapshot in roles.items():
        findings += run_suite(f"{name}, schema", _head(snapshot["path"]), schema_expectations())
        findings += run_suite(name, rows[name], row_expectations(name == "training rows", limits))
    merge_quarantine(format_results(data), Path(folder) / "quarantine.parquet")
    gate = GateReport(
        passed=not any(failed_critically(finding) for finding in findings),
        **sum_counts(format_results(data)),
        results=findings,
        quality_issues={
            "training rows": count_quality_issues(train),
            "holdout rows": count_quality_issues(holdout, train),
        },
        drift=drift,
        reference=reference["dataset"] if reference else None,
        profile=profile,
        dataset=data["digest"],
        report=str(Path(folder) / "gate.json"),
    )
    write_json(Path(gate["report"]), gate)
    return gate


def raise_if_failed(gate: GateReport) -> None:
    """Stop a run whose data did not pass.

    Raises:
        DataRefused: naming the first failed expectation, what was observed, what is allowed, and where.
    """
    failed = [finding for finding in gate["results"] if failed_critically(finding)]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    unreadable = str(failed[0]["column"]).endswith(("quarantined", "empty_files"))
    shown = f"; {gate['examples'][0]}" if unreadable and gate["examples"] else ""
    limit = ", or move the limit: --set KEY=VALUE" if failed[0]["setting"] else ""
    raise DataRejected(
        f"data refused: {describe_result(failed[0])}{more}{shown}\n"
        f"see {Path(gate['report']).with_suffix('.html')}; mend the data{limit}"
    )


def describe_result(finding: ExpectationResult) -> str:
    """Say in one line what a finding asks, what was observed and what is allowed, with the first row it is about."""
    setting = f" ({finding['setting']})" if finding["setting"] and not finding["passed"] else ""
    where = f", first in {finding['lines'][0]}" if finding["lines"] and not finding["passed"] else ""
    return (
        f"{finding['table']}: {finding['description']}: {show_observed(finding)}, "
        f"allowed {show_allowed(finding)}{setting}{where}"
    )


def failed_critically(finding: ExpectationResult) -> bool:
    """Tell whether a finding refuses the data."""
    return not finding["passed"] and finding["severity"] == "critical"


def compute_figures(data: Dataset, encoder: str | None, drift: list[DriftResult], level: float) -> dict[str, float]:
    """Return what only whole files have: the quarantined share, unknown word pieces, distances from the reference.

    Args:
        data: the snapshots.
        encoder: folder of the encoder; None: its word pieces are not counted.
        drift: distances from the champion's data.
        level: a distance whose p value is not below this is chance and counts as none; `drift` holds the true one.
    """
    values: dict[str, float] = {
        f"{role} quarantined": snapshot["quarantined"] / max(snapshot["rows_in"], 1)
        for role, snapshot in roles_of(data).items()
    }
    values["empty_files"] = sum(len(snapshot["empty_files"]) for snapshot in format_results(data))
    if encoder:
        values["unknown"] = unk_rate(data["train"]["path"], encoder)
    return values | {f"{shift['name']} shift": shift["distance"] if shift["p"] < level else 0.0 for shift in drift}


def format_results(data: Dataset) -> list[Snapshot]:
    """Return the snapshots that there are."""
    return list(roles_of(data).values())


def roles_of(data: Dataset) -> dict[str, Snapshot]:
    """Return the snapshots that there are, by role."""
    roles = {"training": data["train"], "holdout": data["holdout"], "secondary": data["secondary"]}
    return {role: snapshot for role, snapshot in roles.items() if snapshot}


def sum_counts(snapshots: list[Snapshot]) -> ReadCounts:
    """Add up the rows of snapshots."""
    reasons: dict[str, int] = {}
    for snapshot in snapshots:
        for kind, count in snapshot["reasons"].items():
            reasons[kind] = reasons.get(kind, 0) + count
    return ReadCounts(
        rows_in=sum(snapshot["rows_in"] for snapshot in snapshots),
        kept=sum(snapshot["kept"] for snapshot in snapshots),
        quarantined=sum(snapshot["quarantined"] for snapshot in snapshots),
        reasons=reasons,
        examples=[example for snapshot in snapshots for example in snapshot["examples"]],
    )


def merge_quarantine(snapshots: list[Snapshot], path: Path) -> None:
    """Write the quarantined rows of all files into one table, piece by piece; none where there are none."""
    paths = [snapshot["quarantine"] for snapshot in snapshots if snapshot["quarantine"]]
    path.unlink(missing_ok=True)
    if not paths:
        return
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, QUARANTINE_SCHEMA) as writer:
        for part in paths:
            for batch in iter_snapshot(part):
                writer.write_table(pa.Table.from_batches([batch]).cast(QUARANTINE_SCHEMA))


def _head(path: str) -> pd.DataFrame:
    batch = next(iter_snapshot(path, rows=HEAD_ROWS), None)
    return batch.to_pandas() if batch is not None else SNAPSHOT_SCHEMA.empty_table().to_pandas()
