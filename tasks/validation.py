"""The data gate: a Great Expectations suite over the snapshots, run before anything is trained.

Rows are checked as rows. What only a whole file has (quarantined, repeated, conflicting, leaked shares) is put into a
one-row table of figures and checked there, so that every limit is an expectation and is reported alike.
"""

import warnings
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from tasks.errors import DataRefused
from tasks.files import write_json
from tasks.reading import Snapshot, load_rows
from tasks.splitting import fold


class Finding(TypedDict):
    """One expectation: what it looked at, what it saw, what it allows."""

    table: str
    expectation: str
    column: str | None
    observed: Any
    allowed: dict[str, Any]
    passed: bool


class Gate(TypedDict):
    """The gate's answer; `report` is the JSON file with every finding."""

    passed: bool
    findings: list[Finding]
    report: str


def validate_snapshots(train: Snapshot, holdout: Snapshot, report: str, limits: dict[str, Any]) -> Gate:
    """Run the suite and write its report.

    Args:
        train: the training file's snapshot.
        holdout: the judging file's snapshot.
        report: path of the JSON report.
        limits: the settings under `gate`, by name.
    """
    train_rows, holdout_rows = load_rows(train["path"]), load_rows(holdout["path"])
    figures = measure_figures(train, holdout, train_rows, holdout_rows)
    # Figures come first: where rows were quarantined, that is the cause and too few rows the consequence.
    findings = [
        *check_table("figures", pd.DataFrame([figures]), figure_expectations(limits)),
        *check_table("training rows", train_rows, row_expectations(limits["min_rows"], limits)),
        *check_table("holdout rows", holdout_rows, row_expectations(limits["min_holdout_rows"], limits)),
    ]
    gate = Gate(passed=all(finding["passed"] for finding in findings), findings=findings, report=report)
    write_json(Path(report), {**gate, "figures": figures, "examples": train["examples"] + holdout["examples"]})
    return gate


def refuse_unfit(gate: Gate, examples: list[str]) -> None:
    """Stop a run whose data did not pass.

    Args:
        gate: the gate's answer.
        examples: quarantined rows to show.

    Raises:
        DataRefused: naming the first failed expectation, the observed value and the allowed range.
    """
    failed = [finding for finding in gate["findings"] if not finding["passed"]]
    if not failed:
        return
    first = failed[0]
    subject = f"{first['table']}, {first['column']}" if first["column"] else first["table"]
    shown = f"; {examples[0]}" if examples else ""
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise DataRefused(
        f"data refused: {first['expectation']} on {subject}: observed {_short(first['observed'])}, "
        f"allowed {_range(first['allowed'])}{more}{shown}\nreport: {gate['report']}"
    )


def measure_figures(
    train: Snapshot, holdout: Snapshot, train_rows: pd.DataFrame, holdout_rows: pd.DataFrame
) -> dict[str, float]:
    """Return the shares that belong to whole files, each between 0 and 1; sentences are compared folded."""
    folded, holdout_folded = train_rows["sentence"].map(fold), holdout_rows["sentence"].map(fold)
    conflicting = train_rows.groupby(folded)["label"].transform("nunique") > 1
    rows_in = train["rows_in"] + holdout["rows_in"]
    return {
        "quarantined": (train["quarantined"] + holdout["quarantined"]) / rows_in,
        "duplicates": _share(folded.duplicated()),
        "conflicts": _share(conflicting),
        "leak": _share(holdout_folded.isin(set(folded))),
    }


def row_expectations(min_rows: int, limits: dict[str, Any]) -> list[Any]:
    """Return the expectations on a table of rows."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=["line", "source", "label", "mark", "sentence"]),
        gxe.ExpectTableRowCountToBeBetween(min_value=min_rows),
        gxe.ExpectColumnValuesToNotBeNull(column="sentence"),
        gxe.ExpectColumnValueLengthsToBeBetween(column="sentence", min_value=1),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="label", value_set=[0, 1]),
        gxe.ExpectColumnMeanToBeBetween(
            column="label", min_value=limits["min_acceptable"], max_value=limits["max_acceptable"]
        ),
    ]


def figure_expectations(limits: dict[str, Any]) -> list[Any]:
    """Return the expectations on the table of figures."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnMaxToBeBetween(column=name, max_value=limits[f"max_{name}"])
        for name in ("quarantined", "duplicates", "conflicts", "leak")
    ]


def check_table(table: str, rows: pd.DataFrame, expectations: list[Any]) -> list[Finding]:
    """Validate a table with Great Expectations and return one finding an expectation, in their order."""
    import great_expectations as gx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
        batch = (
            context.data_sources.add_pandas("rows")
            .add_dataframe_asset("rows")
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": rows})
        )
        # The suite is complete before it meets the batch: expectations added later are not seen by it.
        result = batch.validate(gx.ExpectationSuite(name=table, expectations=expectations), result_format="SUMMARY")
    findings = [_finding(table, entry.to_json_dict()) for entry in result.results]
    order = [expectation.expectation_type for expectation in expectations]
    return sorted(findings, key=lambda finding: order.index(finding["expectation"]))


def _finding(table: str, entry: dict[str, Any]) -> Finding:
    config, result = entry["expectation_config"], entry["result"]
    allowed = {key: value for key, value in config["kwargs"].items() if key not in ("batch_id", "column")}
    observed = result.get("observed_value", result.get("unexpected_count", "not computable"))
    if observed is None and "partial_missing_list" in result:  # sets are described by their differences
        observed = {key: result[f"partial_{key}_list"] for key in ("missing", "unexpected")}
    if isinstance(observed, np.generic):
        observed = observed.item()
    return Finding(
        table=table,
        expectation=config["type"],
        column=config["kwargs"].get("column"),
        observed=observed,
        allowed=allowed,
        passed=bool(entry["success"]),
    )


def _range(allowed: dict[str, Any]) -> str:
    low, high = allowed.get("min_value"), allowed.get("max_value")
    if low is None and high is None:
        return ", ".join(str(value) for value in allowed.values()) or "none"
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(flags: pd.Series) -> float:
    return float(flags.mean()) if len(flags) else 0.0
