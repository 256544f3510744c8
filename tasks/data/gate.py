"""The data gate: a Great Expectations suite over the snapshots, run before training.

Rows are checked by their features, so that each result lists the rows it is about. Figures of whole files (quarantined
share, unknown word pieces, labels on each side of the split, drift) form a table of one row, so that every limit is an
expectation and is reported in the same way. A failed critical expectation rejects the data; a failed warning is only
reported.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.core.errors import DataRejected
from tasks.core.files import atomic_write, write_json
from tasks.core.settings import Settings
from tasks.core.spreadsheet import write_csv
from tasks.data.drift import DataProfile, DriftResult, Histogram, compare_profiles, profile_snapshot
from tasks.data.encoder_view import EncodedSentences, EncoderView
from tasks.data.expectations import (
    HOLDOUT_CHECKS,
    SIDES,
    TOKEN_CHECK,
    TRAIN_CHECKS,
    ExpectationResult,
    figure_expectations,
    row_expectations,
    run_suite,
    schema_expectations,
    show_allowed,
    show_observed,
)
from tasks.data.gate_samples import Samples, pick_samples
from tasks.data.ingestion import Dataset, holdout_digests
from tasks.data.row_features import (
    QualityIssue,
    compute_row_features,
    count_leaks,
    count_quality_issues,
    flag_duplicates,
    flag_leakage,
    flag_truncated,
)
from tasks.data.snapshots import QUARANTINE_SCHEMA, SNAPSHOT_SCHEMA, Snapshot, iter_snapshot
from tasks.data.splitting import SplitPlan, plan_split
from tasks.data.validation_group import choose_group

QUARANTINE_FILE = "quarantine.parquet"
HEAD_ROWS = 1_000  # rows whose types are checked; a Parquet column has one type


class ReadCounts(TypedDict):
    """Numbers of rows of several snapshots: rows_in = kept + quarantined; `reasons` counts the quarantined by kind."""

    rows_in: int
    kept: int
    quarantined: int
    reasons: dict[str, int]
    examples: list[str]


class GateReport(ReadCounts):
    """What the gate found; it passed if no critical expectation failed. `report` is the JSON file with all of this.

    By role: `labels` counts rows by label, `tokens` sentences by their number of tokens (empty without an encoder; of a
    sample, where the encoder read one), `samples` has sentences of each quality issue.
    """

    passed: bool
    results: list[ExpectationResult]
    quality_issues: dict[str, list[QualityIssue]]
    labels: dict[str, Histogram]
    tokens: dict[str, Histogram]
    samples: Samples
    drift: list[DriftResult]
    reference: str | None
    profile: DataProfile
    dataset: str
    report: str


def validate_data(
    data: Dataset,
    folder: str,
    settings: Settings,
    encoder: str | None = None,
    reference: DataProfile | None = None,
) -> GateReport:
    """Run the suite; write gate.json and, where rows were quarantined, quarantine.parquet and quarantine.csv.

    Args:
        data: the snapshots.
        folder: receives these files.
        settings: the limits under `gate`, and how rows are split and truncated.
        encoder: folder of the encoder whose vocabulary and longest input are checked; None: not checked.
        reference: profile of the champion's training data; None: drift is not checked.
    """
    limits, roles = settings.gate, roles_of(data)
    rows = {role: compute_row_features(snapshot["path"]) for role, snapshot in roles.items()}
    _flag_rows(rows)
    view = EncoderView(encoder, settings.finetune.max_length) if encoder else None
    encoded = {role: view.read(snapshot["path"]) for role, snapshot in roles.items()} if view else {}
    for role, sentences in encoded.items():
        flag_truncated(rows[role], sentences)
    plan = _plan(data, rows["training"], settings)
    profile = profile_snapshot(data["train"]["path"], data["train"]["digest"], holdout_digests(data))
    drift = compare_profiles(profile, reference, limits) if reference else []
    # Figures come first: too few rows may be the consequence of quarantined ones.
    values = compute_figures(data, encoded.get("training"), plan, drift, limits.drift_level)
    figures = figure_expectations(values, drift, limits, settings.data.max_quarantined)
    results = run_suite("whole data", pd.DataFrame([values]), figures)
    for role, checks in (("training", TRAIN_CHECKS), ("holdout", HOLDOUT_CHECKS)):
        results += run_suite(f"{role} rows, schema", _head(roles[role]["path"]), schema_expectations())
        expected = row_expectations(checks, limits)
        if view:
            expected += row_expectations([TOKEN_CHECK], limits, _describe_reading(view, encoded[role]))
        results += run_suite(f"{role} rows", rows[role], expected)
    snapshots = list(roles.values())
    merge_quarantine(snapshots, Path(folder) / QUARANTINE_FILE)
    gate = GateReport(
        passed=not any(failed_critically(result) for result in results),
        **sum_counts(snapshots),
        results=results,
        quality_issues=_count_issues(rows, plan),
        labels={f"{role} rows": _count_values(table["label"]) for role, table in rows.items()},
        tokens={f"{role} rows": _count_values(sentences.tokens) for role, sentences in encoded.items()},
        samples=pick_samples(rows, {role: snapshot["path"] for role, snapshot in roles.items()}),
        drift=drift,
        reference=reference["dataset"] if reference else None,
        profile=profile,
        dataset=data["digest"],
        report=str(Path(folder) / "gate.json"),
    )
    write_json(Path(gate["report"]), gate)
    return gate


def _flag_rows(rows: dict[str, pd.DataFrame]) -> None:
    """Add what rows are in comparison with others; `dropped`: the split leaves a training row out."""
    train = rows["training"]
    flag_duplicates(train)
    train["dropped"] = train["duplicate"] | train["conflicting"]
    for role, others in rows.items():
        if role != "training":
            flag_leakage(others, train)
            train["dropped"] |= train["normalised_key"].isin(others["normalised_key"])


def _plan(data: Dataset, train: pd.DataFrame, settings: Settings) -> SplitPlan | None:
    """Plan the split; None where too few rows or labels are the reason for what it would leave."""
    if len(train) < settings.gate.min_rows or train["label"].nunique() < 2:
        return None
    path, share, seed = data["train"]["path"], settings.data.validation_share, settings.finetune.seed
    group = choose_group(settings.data.group, path, data["holdout"]["path"], share, seed).group
    return plan_split(path, train, share, seed, group)


def _describe_reading(view: EncoderView, encoded: EncodedSentences) -> dict[str, Any]:
    """Return what the description of a check on tokens names."""
    sampled = f", of every {encoded.step}th sentence" if encoded.step > 1 else ""
    return {"token_limit": view.limit, "limited_by": view.limited_by, "sampled": sampled}


def _count_issues(rows: dict[str, pd.DataFrame], plan: SplitPlan | None) -> dict[str, list[QualityIssue]]:
    """Count quality issues by role; of validation rows those that the encoder cannot tell from training rows."""
    train = rows["training"]
    issues = {"training rows": count_quality_issues(train)}
    if plan and len(plan.validates) == len(train):
        kept = ~train["dropped"]
        issues["validation rows"] = [count_leaks(train[kept & plan.validates], train[kept & ~plan.validates])]
    for role in ("holdout", "secondary"):
        if role in rows:
            issues[f"{role} rows"] = count_quality_issues(rows[role], train)
    return issues


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
    raise DataRejected(
        f"data refused: {describe_result(failed[0])}{more}{example}\n"
        f"see {Path(gate['report']).with_suffix('.html')}; {describe_remedy(gate)}"
    )


def describe_remedy(gate: GateReport) -> str:
    """Return what to do about the first failed expectation; empty where the data passed."""
    failed = next((result for result in gate["results"] if failed_critically(result)), None)
    if failed is None:
        return ""
    limit = f", or change the limit: --set {failed['setting']}=VALUE" if failed["setting"] else ""
    return f"correct the data{limit}"


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


def compute_figures(
    data: Dataset, train: EncodedSentences | None, plan: SplitPlan | None, drift: list[DriftResult], level: float
) -> dict[str, float]:
    """Return the figures of whole files: quarantined shares, unknown pieces, labels after the split, drift.

    Args:
        data: the snapshots.
        train: the training sentences as the encoder reads them; None: unknown word pieces are not counted.
        plan: of the split; None: labels are not counted.
        drift: distances from the champion's data.
        level: significance level; a distance that is not significant counts as 0.
    """
    roles = roles_of(data)
    values: dict[str, float] = {
        f"{role} quarantined": snapshot["quarantined"] / max(snapshot["rows_in"], 1) for role, snapshot in roles.items()
    }
    values["empty_files"] = sum(len(snapshot["empty_files"]) for snapshot in roles.values())
    if train:
        values["unknown"] = train.unknown
    if plan:
        values |= {f"{side} labels": int(np.count_nonzero(rows)) for side, rows in zip(SIDES, plan.rows, strict=True)}
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
    """Write the quarantined rows of all files into one table, as Parquet and as CSV for spreadsheets.

    Without any, remove the files of an earlier run. In the CSV bytes that are not UTF-8 are escapes such as \\xe9.
    """
    paths = [snapshot["quarantine"] for snapshot in snapshots if snapshot["quarantine"]]
    for written in (path, path.with_suffix(".csv")):
        written.unlink(missing_ok=True)
    if not paths:
        return
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, QUARANTINE_SCHEMA) as writer:
        for part in paths:
            for batch in iter_snapshot(part):
                writer.write_table(pa.Table.from_batches([batch]).cast(QUARANTINE_SCHEMA))
    write_csv(path.with_suffix(".csv"), QUARANTINE_SCHEMA.names, _quarantined_rows(path))


def _quarantined_rows(path: Path) -> Iterator[list[str | int]]:
    for batch in iter_snapshot(str(path)):
        for row in batch.to_pylist():
            yield [value.decode(errors="backslashreplace") if name == "raw" else value for name, value in row.items()]


def _count_values(values: pd.Series | NDArray[np.int64]) -> Histogram:
    found, counts = np.unique(values, return_counts=True)
    return {str(int(value)): int(count) for value, count in zip(found, counts, strict=True)}


def _head(path: str) -> pd.DataFrame:
    batch = next(iter_snapshot(path, rows=HEAD_ROWS), None)
    return batch.to_pandas() if batch is not None else SNAPSHOT_SCHEMA.empty_table().to_pandas()
