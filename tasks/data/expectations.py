"""The expectations of the data gate, and how Great Expectations is asked whether they hold."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from tasks.data.drift import DriftResult
from tasks.data.snapshots import SNAPSHOT_SCHEMA

MAX_LISTED_LINES = 20  # lines that a finding names, at most

Severity = Literal["critical", "warning"]


class ExpectationResult(TypedDict):
    """One expectation: what it asks, what was seen, what is allowed and by which setting, and the first odd rows."""

    table: str
    description: str
    setting: str | None
    expectation: str
    column: str | None
    observed: Any
    allowed: dict[str, Any]
    passed: bool
    severity: Severity
    unexpected: int
    lines: list[str]


def schema_expectations() -> list[Any]:
    """Return the expectations on the first rows as they stand in the snapshot."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchOrderedList(
            column_list=SNAPSHOT_SCHEMA.names, meta={"description": "columns in their order"}
        ),
        gxe.ExpectColumnValuesToBeOfType(column="label", type_="int8", meta={"description": "type of the label"}),
        gxe.ExpectColumnValuesToBeOfType(column="sentence", type_="str", meta={"description": "type of the sentence"}),
    ]


def row_expectations(train: bool, limits: dict[str, Any]) -> list[Any]:
    """Return the expectations on the measures of training rows, or of a holdout's."""
    import great_expectations.expectations as gxe

    def few(column: str, limit: str, asks: str) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(
            column=column,
            value_set=[False],
            mostly=1 - limits[limit],
            meta={"description": asks, "setting": f"gate.{limit}"},
        )

    def within(column: str) -> Any:
        lowest, highest = limits[f"min_{column}"], limits[f"max_{column}"]
        description = f"share of sentences outside {lowest} to {highest} {column}"
        return gxe.ExpectColumnValuesToBeBetween(
            column=column,
            min_value=lowest,
            max_value=highest,
            mostly=1 - limits["max_odd_lengths"],
            meta={"description": description, "setting": "gate.max_odd_lengths"},
        )

    own = (
        [
            few("repeated", "max_duplicates", "share of rows that repeat an earlier sentence"),
            few("conflicting", "max_conflicts", "share of rows whose sentence has both labels"),
        ]
        if train
        else [
            few("leaked", "max_leak", "share of rows whose sentence trains too"),
            few("unseen_source", "max_unseen_sources", "share of rows from sources that do not train"),
        ]
    )
    fewest = "min_rows" if train else "min_holdout_rows"
    return [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=limits[fewest], meta={"description": "number of rows", "setting": f"gate.{fewest}"}
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="characters", meta={"description": "share of rows without a sentence"}
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="label", meta={"description": "share of rows without a label"}),
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="label", value_set=[0, 1], meta={"description": "labels that occur"}
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="label",
            min_value=limits["min_acceptable"],
            max_value=limits["max_acceptable"],
            meta={"description": "share of acceptable sentences", "setting": "gate.{side}_acceptable"},
        ),
        within("characters"),
        within("words"),
        few("control", "max_control", "share of sentences with control characters"),
        *own,
    ]


def figure_expectations(values: Mapping[str, float], drift: list[DriftResult], limits: dict[str, Any]) -> list[Any]:
    """Return the expectations on the table of one row that holds what only whole files have."""
    import great_expectations.expectations as gxe

    asks: dict[str, tuple[str, str | None, str]] = {
        **{
            f"{role} quarantined": (f"share of quarantined {role} rows", "data.max_quarantined", "critical")
            for role in ("training", "holdout", "secondary")
        },
        "empty_files": ("files without a readable row", None, "critical"),
        "unknown": ("share of word pieces that the encoder does not know", "gate.max_unknown", "critical"),
    }
    severity = "critical" if limits["drift"] == "refuse" else "warning"
    for shift in drift:
        text = f"drift from the champion's data, {shift['statistic']}"
        asks[f"{shift['name']} shift"] = (text, f"gate.max_{shift['name']}_shift", severity)
    return [
        gxe.ExpectColumnMaxToBeBetween(
            column=name,
            max_value=limits[setting.partition(".")[2]] if setting else 0,
            severity=severity,
            meta={"description": text, "setting": setting},
        )
        for name, (text, setting, severity) in asks.items()
        if name in values
    ]


def run_suite(table: str, rows: pd.DataFrame, expectations: list[Any]) -> list[ExpectationResult]:
    """Validate a table with Great Expectations and return one finding an expectation, in their order."""
    import great_expectations as gx

    located = [name for name in ("file", "line") if name in rows]
    options: dict[str, Any] = {"result_format": "SUMMARY"}
    if located:
        options["unexpected_index_column_names"] = located
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
        result = batch.validate(gx.ExpectationSuite(name=table, expectations=expectations), result_format=options)
    findings = [_to_result(table, entry.to_json_dict()) for entry in result.results]
    order = [expectation.meta["description"] for expectation in expectations]
    return sorted(findings, key=lambda finding: order.index(finding["description"]))


def allowed_range(allowed: Mapping[str, Any]) -> str:
    """Say in words what a finding allows."""
    low, high = allowed.get("min_value"), allowed.get("max_value")
    share = allowed.get("mostly")
    if share is not None:
        return f"at most {round(1 - share, 6):g}"
    if low is None and high is None:
        return ", ".join(format_value(value) for value in allowed.values()) or "none"
    if high is None:
        return f"at least {format_value(low)}"
    return f"at most {format_value(high)}" if low is None else f"{format_value(low)} to {format_value(high)}"


def format_value(value: Any) -> str:
    """Write a value with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_observed(finding: ExpectationResult) -> str:
    """Say in words what a finding saw."""
    observed = finding["observed"]
    if isinstance(observed, dict):  # how a set differs from the allowed one
        return "; ".join(f"{_words(values)} {how}" for how, values in observed.items() if values) or "exactly these"
    return "not computable" if observed is None else _words(observed)


def show_allowed(finding: ExpectationResult) -> str:
    """Say in words what a finding allows."""
    values = list(finding["allowed"].values())
    return _words(values[0]) if len(values) == 1 and isinstance(values[0], list) else allowed_range(finding["allowed"])


def _words(value: Any) -> str:
    return ", ".join(format_value(entry) for entry in value) if isinstance(value, list) else format_value(value)


def _to_result(table: str, entry: dict[str, Any]) -> ExpectationResult:
    config, result = entry["expectation_config"], entry["result"]
    allowed = {key: value for key, value in config["kwargs"].items() if key not in ("batch_id", "column")}
    if "unexpected_percent" in result:  # an expectation on each row: the share that is not as expected
        observed: Any = (result["unexpected_percent"] or 0.0) / 100
    else:
        observed = result.get("observed_value", "not computable")
    if observed is None and "partial_missing_list" in result:  # sets are described by their differences
        observed = {key: result[f"partial_{key}_list"] for key in ("missing", "unexpected")}
    if isinstance(observed, np.generic):
        observed = observed.item()
    rows = result.get("partial_unexpected_index_list") or []
    return ExpectationResult(
        table=table,
        description=config["meta"]["description"],
        setting=_name_setting(config["meta"].get("setting"), observed, allowed),
        expectation=config["type"],
        column=config["kwargs"].get("column"),
        observed=observed,
        allowed=allowed,
        passed=bool(entry["success"]),
        severity=config["severity"],
        unexpected=int(result.get("unexpected_count") or 0),
        lines=[f"{row['file']} line {row['line']}" for row in rows[:MAX_LISTED_LINES]],
    )


def _name_setting(setting: str | None, observed: Any, allowed: Mapping[str, Any]) -> str | None:
    """Return the setting of the limit; where there are two, that of the side on which the observed value lies."""
    if setting is None or "{side}" not in setting:
        return setting
    low = isinstance(observed, int | float) and observed < allowed["min_value"]
    return setting.format(side="min" if low else "max")
