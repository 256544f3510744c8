"""The expectations of the data gate as tables, and how Great Expectations evaluates them."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from tasks.core.quick_imports import collection_paused
from tasks.core.settings import GateSettings
from tasks.data.drift import DriftResult
from tasks.data.snapshots import SNAPSHOT_SCHEMA

SIDES = ("training", "validation")  # of the split
MAX_LISTED_LINES = 20  # unexpected rows that a result lists

Severity = Literal["critical", "warning"]


class ExpectationResult(TypedDict):
    """What one expectation expected and observed, the setting of its limit, and the first unexpected rows.

    `in_quarantine`: the rows it is about are quarantined ones, so that the table has none to list.
    """

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
    in_quarantine: bool


@dataclass(frozen=True)
class RowCheck:
    """One expectation on the features of rows."""

    description: str
    """May name settings in braces, and what the table's facts hold."""
    expectation: str
    """Class of great_expectations.expectations."""
    column: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Setting under `gate` by the argument that it limits; that of `mostly` is the largest share of other rows."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _flag_check(column: str, setting: str, description: str) -> RowCheck:
    """Limit the share of rows with a flag."""
    return RowCheck(description, "ExpectColumnValuesToBeInSet", column, {"mostly": setting}, {"value_set": [False]})


COMMON_CHECKS = (
    RowCheck("share of rows without a sentence", "ExpectColumnValuesToNotBeNull", "characters"),
    RowCheck("share of rows without a label", "ExpectColumnValuesToNotBeNull", "label"),
    RowCheck("labels that occur", "ExpectColumnDistinctValuesToEqualSet", "label", arguments={"value_set": [0, 1]}),
    RowCheck(
        "share of acceptable sentences",
        "ExpectColumnMeanToBeBetween",
        "label",
        {"min_value": "min_acceptable", "max_value": "max_acceptable"},
    ),
    RowCheck(
        "share of sentences outside {min_characters} to {max_characters} characters",
        "ExpectColumnValuesToBeBetween",
        "characters",
        {"min_value": "min_characters", "max_value": "max_characters", "mostly": "max_odd_lengths"},
    ),
    RowCheck(
        "share of sentences outside {min_words} to {max_words} words",
        "ExpectColumnValuesToBeBetween",
        "words",
        {"min_value": "min_words", "max_value": "max_words", "mostly": "max_odd_lengths"},
    ),
    _flag_check("control", "max_control", "share of sentences with control characters"),
)
TOKEN_CHECK = _flag_check(
    "truncated", "max_truncated", "share of sentences truncated at {token_limit} tokens ({limited_by}){sampled}"
)
TRAIN_CHECKS = (
    RowCheck("number of rows", "ExpectTableRowCountToBeBetween", limits={"min_value": "min_rows"}),
    *COMMON_CHECKS,
    _flag_check("duplicate", "max_duplicates", "share of rows that repeat an earlier sentence"),
    _flag_check("conflicting", "max_conflicts", "share of rows whose sentence has both labels"),
)
HOLDOUT_CHECKS = (
    RowCheck("number of rows", "ExpectTableRowCountToBeBetween", limits={"min_value": "min_holdout_rows"}),
    *COMMON_CHECKS,
    _flag_check("leaked", "max_leak", "share of rows whose sentence is also in the training data"),
    _flag_check("unseen_source", "max_unseen_sources", "share of rows from sources without training rows"),
)


def schema_expectations() -> list[Any]:
    """Return the expectations on the first rows of a snapshot."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchOrderedList(
            column_list=SNAPSHOT_SCHEMA.names, meta={"description": "columns in their order"}
        ),
        gxe.ExpectColumnValuesToBeOfType(column="label", type_="int8", meta={"description": "type of the label"}),
        gxe.ExpectColumnValuesToBeOfType(column="sentence", type_="str", meta={"description": "type of the sentence"}),
    ]


def row_expectations(
    checks: Iterable[RowCheck], limits: GateSettings, facts: Mapping[str, Any] | None = None
) -> list[Any]:
    """Return the expectations of checks with their limits.

    Args:
        checks: TRAIN_CHECKS or HOLDOUT_CHECKS, and TOKEN_CHECK where an encoder is known.
        limits: the settings under `gate`.
        facts: what descriptions name besides settings.
    """
    import great_expectations.expectations as gxe

    values = {**limits.model_dump(), **(facts or {})}
    expectations = []
    for check in checks:
        arguments = dict(check.arguments) | ({"column": check.column} if check.column else {})
        for argument, setting in check.limits.items():
            arguments[argument] = _complement(values[setting]) if argument == "mostly" else values[setting]
        meta = {
            "description": check.description.format_map(values),
            "settings": {argument: f"gate.{setting}" for argument, setting in check.limits.items()},
        }
        expectations.append(getattr(gxe, check.expectation)(**arguments, meta=meta))
    return expectations


def _complement(share: float) -> float:
    """Return the float nearest to 1 - share, which is what Great Expectations computes of rows exactly at the limit.

    In binary 1 - 0.059 is larger than 0.941, so that 941 good rows of 1,000 would not be enough.
    """
    return float(1 - Decimal(str(share)))


def figure_expectations(
    values: Mapping[str, float], drift: Iterable[DriftResult], limits: GateSettings, max_quarantined: float
) -> list[Any]:
    """Return the expectations on the table of one row that holds the figures of whole files.

    Args:
        values: the figures; one that is not among them is not expected.
        drift: distances from the champion's data.
        limits: the settings under `gate`.
        max_quarantined: largest share of quarantined rows of each role.
    """
    with collection_paused():  # a run imports it here first
        import great_expectations.expectations as gxe

    def at_most(
        column: str, limit: float, setting: str, description: str, severity: Severity = "critical", **meta: bool
    ) -> Any:
        meta_data = {"description": description, "settings": {"max_value": setting} if setting else {}} | meta
        return gxe.ExpectColumnMaxToBeBetween(column=column, max_value=limit, severity=severity, meta=meta_data)

    quarantined = [
        at_most(
            f"{role} quarantined",
            max_quarantined,
            "data.max_quarantined",
            f"share of quarantined {role} rows",
            in_quarantine=True,
        )
        for role in ("training", "holdout", "secondary")
    ]
    split = [_both_labels(side) for side in SIDES]
    severity: Severity = "critical" if limits.drift == "refuse" else "warning"
    shifts = [
        at_most(
            f"{shift['name']} shift",
            shift["limit"],
            shift["setting"],
            f"drift from the champion's data, {shift['statistic']}",
            severity,
        )
        for shift in drift
    ]
    expectations = [
        *quarantined,
        at_most("empty_files", 0, "", "files without a readable row", in_quarantine=True),
        at_most(
            "unknown", limits.max_unknown, "gate.max_unknown", "share of word pieces that the encoder does not know"
        ),
        *split,
        *shifts,
    ]
    return [expectation for expectation in expectations if expectation.column in values]


def _both_labels(side: str) -> Any:
    """Return the expectation that both labels occur on a side of the split."""
    import great_expectations.expectations as gxe

    description = f"labels that occur in the {side} rows after the split"
    return gxe.ExpectColumnMinToBeBetween(
        column=f"{side} labels",
        min_value=2,
        meta={"description": description, "settings": {"min_value": "data.validation_share"}},
    )


def run_suite(table: str, rows: pd.DataFrame, expectations: list[Any]) -> list[ExpectationResult]:
    """Validate a table with Great Expectations; return one result for each expectation, in their order."""
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
        # The suite must be complete here: expectations added after validation began are ignored.
        result = batch.validate(gx.ExpectationSuite(name=table, expectations=expectations), result_format=options)
    results = [_to_result(table, entry.to_json_dict()) for entry in result.results]
    order = [expectation.meta["description"] for expectation in expectations]
    return sorted(results, key=lambda one: order.index(one["description"]))


def allowed_range(allowed: Mapping[str, Any]) -> str:
    """Return the text of an allowed range."""
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
    """Format a value with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_observed(result: ExpectationResult) -> str:
    """Return the text of what was observed."""
    observed = result["observed"]
    if isinstance(observed, dict):  # differences of a set from the allowed one
        return "; ".join(f"{_join(values)} {how}" for how, values in observed.items() if values) or "exactly these"
    return "not computable" if observed is None else _join(observed)


def show_allowed(result: ExpectationResult) -> str:
    """Return the text of what is allowed."""
    values = list(result["allowed"].values())
    return _join(values[0]) if len(values) == 1 and isinstance(values[0], list) else allowed_range(result["allowed"])


def _join(value: Any) -> str:
    return ", ".join(format_value(entry) for entry in value) if isinstance(value, list) else format_value(value)


def _to_result(table: str, entry: dict[str, Any]) -> ExpectationResult:
    config, result = entry["expectation_config"], entry["result"]
    allowed = {key: value for key, value in config["kwargs"].items() if key not in ("batch_id", "column")}
    if "unexpected_percent" in result:  # an expectation on each row
        share = result.get("unexpected_percent_nonmissing", result["unexpected_percent"])  # as `mostly` counts
        observed: Any = (share or 0.0) / 100
    else:
        observed = result.get("observed_value", "not computable")
    if observed is None and "partial_missing_list" in result:  # an expectation on a set of values
        observed = {key: result[f"partial_{key}_list"] for key in ("missing", "unexpected")}
    if isinstance(observed, np.generic):
        observed = observed.item()
    rows = result.get("partial_unexpected_index_list") or []
    return ExpectationResult(
        table=table,
        description=config["meta"]["description"],
        setting=_name_setting(config["meta"].get("settings", {}), observed, allowed),
        expectation=config["type"],
        column=config["kwargs"].get("column"),
        observed=observed,
        allowed=allowed,
        passed=bool(entry["success"]),
        severity=config["severity"],
        unexpected=int(result.get("unexpected_count") or 0),
        lines=[f"{row['file']} line {row['line']}" for row in rows[:MAX_LISTED_LINES]],
        in_quarantine=config["meta"].get("in_quarantine", False),
    )


def _name_setting(settings: Mapping[str, str], observed: Any, allowed: Mapping[str, Any]) -> str | None:
    """Return the setting of the limit; of a lower and an upper one, that on whose side the observed value lies."""
    if "mostly" in settings:
        return settings["mostly"]
    if len(settings) < 2:
        return next(iter(settings.values()), None)
    below = isinstance(observed, int | float) and observed < allowed["min_value"]
    return settings["min_value" if below else "max_value"]
