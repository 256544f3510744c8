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

from tasks.core.errors import DataRefused
from tasks.core.files import replacing, write_json
from tasks.data.drift import Profile, Shift, compare_profiles, profile_snapshot
from tasks.data.expectations import (
    Finding,
    check_table,
    figure_expectations,
    row_expectations,
    schema_expectations,
    show_allowed,
    show_observed,
)
from tasks.data.ingestion import Data
from tasks.data.row_features import count_blemishes, mark_known, mark_repeats, measure_rows
from tasks.data.snapshots import QUARANTINE, ROWS, Snapshot, read_tables
from tasks.data.vocabulary_coverage import unknown_share

HEAD = 1_000  # rows whose types are checked; Parquet keeps one type a column


class Counts(TypedDict):
    """Rows of several snapshots: rows_in = kept + quarantined, the latter by kind, and the first examples."""

    rows_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    examples: list[str]


class Gate(Counts):
    """The gate's answer; it passed when no critical finding failed. `report` is the JSON file that holds all of it."""

    passed: bool
    findings: list[Finding]
    blemishes: dict[str, dict[str, int]]
    drift: list[Shift]
    reference: str | None
    profile: Profile
    dataset: str
    report: str


def validate_data(
    data: Data, folder: str, limits: dict[str, Any], encoder: str | None = None, reference: Profile | None = None
) -> Gate:
    """Run the suite; write gate.json and, where rows were quarantined, quarantine.parquet.

    Args:
        data: the snapshots to look at.
        folder: receives both files.
        limits: the settings under `gate` and data.max_quarantined, by name.
        encoder: folder of the encoder whose word pieces are counted; None: not checked.
        reference: profile of the data that the champion was trained on; None: drift is not checked.
    """
    roles = {"training rows": data["train"], "holdout rows": data["holdout"]}
    rows = {name: measure_rows(snapshot["path"]) for name, snapshot in roles.items()}
    train, holdout = rows.values()
    mark_repeats(train)
    mark_known(holdout, train)
    profile = profile_snapshot(data["train"]["path"], data["train"]["digest"])
    drift = compare_profiles(profile, reference, limits) if reference else []
    # Figures come first: where rows were quarantined, that is the cause and too few rows the consequence.
    values = measure_figures(data, encoder, drift, limits["drift_level"])
    findings = check_table("whole data", pd.DataFrame([values]), figure_expectations(values, drift, limits))
    for name, snapshot in roles.items():
        findings += check_table(f"{name}, schema", _head(snapshot["path"]), schema_expectations())
        findings += check_table(name, rows[name], row_expectations(name == "training rows", limits))
    merge_quarantine(present(data), Path(folder) / "quarantine.parquet")
    gate = Gate(
        passed=not any(failed_critically(finding) for finding in findings),
        **count_rows(present(data)),
        findings=findings,
        blemishes={
            "training rows": count_blemishes(train),
            "holdout rows": count_blemishes(holdout, train),
        },
        drift=drift,
        reference=reference["dataset"] if reference else None,
        profile=profile,
        dataset=data["digest"],
        report=str(Path(folder) / "gate.json"),
    )
    write_json(Path(gate["report"]), gate)
    return gate


def refuse_unfit(gate: Gate) -> None:
    """Stop a run whose data did not pass.

    Raises:
        DataRefused: naming the first failed expectation, what was observed, what is allowed, and where.
    """
    failed = [finding for finding in gate["findings"] if failed_critically(finding)]
    if not failed:
        return
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    unreadable = str(failed[0]["column"]).endswith(("quarantined", "unread"))
    shown = f"; {gate['examples'][0]}" if unreadable and gate["examples"] else ""
    limit = ", or move the limit: --set KEY=VALUE" if failed[0]["setting"] else ""
    raise DataRefused(
        f"data refused: {describe_finding(failed[0])}{more}{shown}\n"
        f"see {Path(gate['report']).with_suffix('.html')}; mend the data{limit}"
    )


def describe_finding(finding: Finding) -> str:
    """Say in one line what a finding asks, what was observed and what is allowed, with the first row it is about."""
    setting = f" ({finding['setting']})" if finding["setting"] and not finding["passed"] else ""
    where = f", first in {finding['lines'][0]}" if finding["lines"] and not finding["passed"] else ""
    return (
        f"{finding['table']}: {finding['asks']}: {show_observed(finding)}, "
        f"allowed {show_allowed(finding)}{setting}{where}"
    )


def failed_critically(finding: Finding) -> bool:
    """Tell whether a finding refuses the data."""
    return not finding["passed"] and finding["severity"] == "critical"


def measure_figures(data: Data, encoder: str | None, drift: list[Shift], level: float) -> dict[str, float]:
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
    values["unread"] = sum(len(snapshot["unread"]) for snapshot in present(data))
    if encoder:
        values["unknown"] = unknown_share(data["train"]["path"], encoder)
    return values | {f"{shift['name']} shift": shift["distance"] if shift["p"] < level else 0.0 for shift in drift}


def present(data: Data) -> list[Snapshot]:
    """Return the snapshots that there are."""
    return list(roles_of(data).values())


def roles_of(data: Data) -> dict[str, Snapshot]:
    """Return the snapshots that there are, by role."""
    roles = {"training": data["train"], "holdout": data["holdout"], "reported": data["reported"]}
    return {role: snapshot for role, snapshot in roles.items() if snapshot}


def count_rows(snapshots: list[Snapshot]) -> Counts:
    """Add up the rows of snapshots."""
    reasons: dict[str, int] = {}
    for snapshot in snapshots:
        for kind, count in snapshot["reasons"].items():
            reasons[kind] = reasons.get(kind, 0) + count
    return Counts(
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
    with replacing(path) as temporary, pq.ParquetWriter(temporary, QUARANTINE) as writer:
        for part in paths:
            for batch in read_tables(part):
                writer.write_table(pa.Table.from_batches([batch]).cast(QUARANTINE))


def _head(path: str) -> pd.DataFrame:
    batch = next(read_tables(path, rows=HEAD), None)
    return batch.to_pandas() if batch is not None else ROWS.empty_table().to_pandas()
