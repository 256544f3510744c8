"""The data gate: a Great Expectations suite over the snapshots, run before training.

Rows are checked by their features, so that each result lists the rows it is about. Figures of whole files (quarantined
share, unknown word pieces, drift) form a table of one row, so that every limit is an expectation and is reported in the
same way. A failed critical expectation rejects the data; a failed warning is only reported.
"""

from pathlib import Path
from typing import TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write, write_json
from tasks.core.settings import GateSettings
from tasks.data.drift import DataProfile, DriftResult, compare_profiles, profile_snapshot
from tasks.data.expectations import (
    HOLDOUT_CHECKS,
    TRAIN_CHECKS,
    ExpectationResult,
    figure_expectations,
    row_expectations,
    run_suite,
    schema_expectations,
    show_allowed,
    show_observed,
)
from tasks.data.ingestion import Dataset
from tasks.data.row_features import (
    QualityIssue,
    compute_row_features,
    count_quality_issues,
    flag_duplicates,
    flag_leakage,
)
from tasks.data.snapshots import QUARANTINE_SCHEMA, SNAPSHOT_SCHEMA, Snapshot, iter_snapshot
from tasks.data.vocabulary_coverage import unk_rate

HEAD_ROWS = 1_000  # rows whose types are checked; a Parquet column has one type


class ReadCounts(TypedDict):
    """Numbers of rows of several snapshots: rows_in = kept + quarantined; `reasons` counts the quarantined by kind."""

    rows_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    examples: list[str]


class GateReport(ReadCounts):
    """What the gate found; it passed if no critical expectation failed. `report` is the JSON file with all of this."""

    passed: bool
    results: list[ExpectationResult]
    quality_issues: dict[str, list[QualityIssue]]
    drift: list[DriftResult]
    reference: str | None
    profile: DataProfile
    dataset: str
    report: str


def validate_data(
    data: Dataset,
    folder: str,
    limits: GateSettings,
    max_quarantined: float,
    encoder: str | None = None,
    reference: DataProfile | None = None,
) -> GateReport:
    """Run the suite; write gate.json and, where rows were quarantined, quarantine.parquet.

    Args:
        data: the snapshots.
        folder: receives both files.
        limits: the settings under `gate`.
        max_quarantined: largest share of quarantined rows of each role.
        encoder: folder of the encoder whose vocabulary is checked; None: not checked.
        reference: profile of the champion's training data; None: drift is not checked.
    """
    train, holdout = compute_row_features(data["train"]["path"]), compute_row_features(data["holdout"]["path"])
    flag_duplicates(train)
    flag_leakage(holdout, train)
    profile = profile_snapshot(data["train"]["path"], data["train"]["digest"])
    drift = compare_profiles(profile, reference, limits) if reference else []
    # Figures come first: too few rows may be the consequence of quarantined ones.
    values = compute_figures(data, encoder, drift, limits.drift_level)
    figures = figure_expectations(values, drift, limits, max_quarantined)
    results = run_suite("whole data", pd.DataFrame([values]), figures)
    for name, snapshot, rows, checks in (
        ("training rows", data["train"], train, TRAIN_CHECKS),
        ("holdout rows", data["holdout"], holdout, HOLDOUT_CHECKS),
    ):
        results += run_suite(f"{name}, schema", _head(snapshot["path"]), schema_expectations())
        results += run_suite(name, rows, row_expectations(checks, limits))
    snapshots = list(roles_of(data).values())
    merge_quarantine(snapshots, Path(folder) / "quarantine.parquet")
    gate = GateReport(
        passed=not any(failed_critically(result) for result in results),
        **sum_counts(snapshots),
        results=results,
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
        DataRejected: naming the first failed expectation, what was observed, what is allowed, and where.
    """
    failed = [result for result in gate["results"] if failed_critically(result)]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    example = f"; {gate['examples'][0]}" if failed[0]["in_quarantine"] and gate["examples"] else ""
    limit = ", or change the limit: --set KEY=VALUE" if failed[0]["setting"] else ""
    raise DataRejected(
        f"data refused: {describe_result(failed[0])}{more}{example}\n"
        f"see {Path(gate['report']).with_suffix('.html')}; correct the data{limit}"
    )


def describe_result(result: ExpectationResult) -> str:
    """Return one line: what was expected, observed and allowed, and the first unexpected row."""
    failed = not result["passed"]
    setting = f" ({result['setting']})" if result["setting"] and failed else ""
    where = f", first in {result['lines'][0]}" if result["lines"] and failed else ""
    return (
        f"{result['table']}: {result['description']}: {show_observed(result)}, "
        f"allowed {show_allowed(result)}{setting}{where}"
    )


def failed_critically(result: ExpectationResult) -> bool:
    """Return whether a result rejects the data."""
    return not result["passed"] and result["severity"] == "critical"


def compute_figures(data: Dataset, encoder: str | None, drift: list[DriftResult], level: float) -> dict[str, float]:
    """Return the figures of whole files: quarantined shares, unknown word pieces, distances from the reference.

    Args:
        data: the snapshots.
        encoder: folder of the encoder; None: unknown word pieces are not counted.
        drift: distances from the champion's data.
        level: significance level; a distance that is not significant counts as 0.
    """
    roles = roles_of(data)
    values: dict[str, float] = {
        f"{role} quarantined": snapshot["quarantined"] / max(snapshot["rows_in"], 1) for role, snapshot in roles.items()
    }
    values["empty_files"] = sum(len(snapshot["empty_files"]) for snapshot in roles.values())
    if encoder:
        values["unknown"] = unk_rate(data["train"]["path"], encoder)
    return values | {f"{shift['name']} shift": shift["distance"] if shift["p"] < level else 0.0 for shift in drift}


def roles_of(data: Dataset) -> dict[str, Snapshot]:
    """Return the snapshots with labels, by role."""
    roles = {"training": data["train"], "holdout": data["holdout"], "secondary": data["secondary"]}
    return {role: snapshot for role, snapshot in roles.items() if snapshot}


def sum_counts(snapshots: list[Snapshot]) -> ReadCounts:
    """Add up the counts of snapshots."""
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
    """Write the quarantined rows of all files into one table; without any, remove the file of an earlier run."""
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
