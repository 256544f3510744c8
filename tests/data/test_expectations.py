"""Each expectation of the gate fails on its own fault and on no other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.core.settings import GateSettings
from tasks.data.expectations import (
    HOLDOUT_CHECKS,
    TRAIN_CHECKS,
    ExpectationResult,
    allowed_range,
    figure_expectations,
    format_value,
    row_expectations,
    run_suite,
    schema_expectations,
    show_allowed,
    show_observed,
)
from tasks.data.row_features import flag_duplicates, flag_leakage
from tasks.data.snapshots import SNAPSHOT_SCHEMA

COUNT = 40
LIMITS = GateSettings(min_rows=20, min_holdout_rows=20, max_unseen_sources=0.5)


def features(**changes: Any) -> pd.DataFrame:
    """Return the features of forty good rows, changed by column."""
    columns = {
        "file": pd.Categorical(["train.tsv"] * COUNT),
        "line": np.arange(1, COUNT + 1),
        "source": ["gj04"] * COUNT,
        "label": [0, 1] * (COUNT // 2),
        "characters": [20] * COUNT,
        "words": [4] * COUNT,
        "control": [False] * COUNT,
        "exact_key": np.arange(COUNT, dtype=np.uint64),
        "normalised_key": np.arange(COUNT, dtype=np.uint64),
    }
    return pd.DataFrame(columns | changes)


def check_rows(rows: pd.DataFrame, train: bool = True, holdout_keys: int = 1_000) -> list[ExpectationResult]:
    if train:
        flag_duplicates(rows)
    else:
        flag_leakage(rows, features(normalised_key=np.arange(holdout_keys, holdout_keys + COUNT, dtype=np.uint64)))
    return run_suite("rows", rows, row_expectations(TRAIN_CHECKS if train else HOLDOUT_CHECKS, LIMITS))


def with_first(name: str, value: Any, count: int = COUNT) -> Callable[[], pd.DataFrame]:
    def change() -> pd.DataFrame:
        rows = features()
        rows[name] = rows[name].astype(object) if value is None else rows[name]
        rows.loc[: count - 1, name] = value
        return rows

    return change


def failed(results: list[ExpectationResult]) -> list[str]:
    return [result["description"] for result in results if not result["passed"]]


@pytest.mark.parametrize("train", [True, False])
def test_good_rows_pass_all_expectations(train: bool) -> None:
    results = check_rows(features(), train)
    assert failed(results) == []
    assert len(results) == 10
    assert {result["severity"] for result in results} == {"critical"}
    assert {result["unexpected"] for result in results} == {0}


@pytest.mark.parametrize(
    ("rows", "description"),
    [
        (lambda: features().head(19), "number of rows"),
        (with_first("characters", None, 1), "share of rows without a sentence"),
        (with_first("label", None, 1), "share of rows without a label"),
        (with_first("label", 2, 1), "labels that occur"),
        (with_first("label", 1, 37), "share of acceptable sentences"),
        (with_first("label", 0, 37), "share of acceptable sentences"),
        (with_first("characters", 1_001, 1), "share of sentences outside 1 to 1000 characters"),
        (with_first("words", 201, 1), "share of sentences outside 1 to 200 words"),
        (with_first("words", 0, 1), "share of sentences outside 1 to 200 words"),
        (with_first("control", True, 1), "share of sentences with control characters"),
    ],
)
def test_a_fault_fails_its_expectation_alone(rows: Callable[[], pd.DataFrame], description: str) -> None:
    assert failed(check_rows(rows())) == [description]


def test_duplicates_fail_alone_where_their_labels_agree() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[[2, 4, 6]] = 0
    results = check_rows(features(normalised_key=keys))
    assert failed(results) == ["share of rows that repeat an earlier sentence"]
    (result,) = (result for result in results if not result["passed"])
    assert result["observed"] == 3 / COUNT
    assert result["unexpected"] == 3
    assert result["lines"] == ["train.tsv line 3", "train.tsv line 5", "train.tsv line 7"]
    assert allowed_range(result["allowed"]) == "at most 0.05"


def test_conflicts_fail_alone() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[1] = 0
    results = check_rows(features(normalised_key=keys))
    assert failed(results) == ["share of rows whose sentence has both labels"]
    (result,) = (result for result in results if not result["passed"])
    assert result["lines"] == ["train.tsv line 1", "train.tsv line 2"]


def test_a_leak_into_the_holdout_fails_alone() -> None:
    results = check_rows(features(), train=False, holdout_keys=COUNT - 3)
    assert failed(results) == ["share of rows whose sentence is also in the training data"]


def test_unseen_sources_of_the_holdout_fail_alone() -> None:
    rows = features(source=["gj04"] * 19 + ["new"] * 21)
    assert failed(check_rows(rows, train=False)) == ["share of rows from sources without training rows"]


def test_a_share_at_its_limit_passes() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[[2, 4]] = 0  # 2 of 40 are the 5% that may repeat
    assert failed(check_rows(features(normalised_key=keys))) == []


@pytest.mark.parametrize(("thousandths", "passed"), [(58, True), (59, True), (60, False)])
def test_a_thousand_rows_may_have_exactly_as_many_others_as_the_limit_says(thousandths: int, passed: bool) -> None:
    rows = pd.DataFrame({"control": np.arange(1_000) < thousandths, "file": "train.tsv", "line": np.arange(1_000)})
    checks = [check for check in TRAIN_CHECKS if check.column == "control"]
    (result,) = run_suite("rows", rows, row_expectations(checks, GateSettings(max_control=0.059)))
    assert result["passed"] == passed
    assert show_allowed(result) == "at most 0.059"


def test_for_every_limit_in_thousandths_the_row_at_the_limit_passes_and_the_next_does_not() -> None:
    checks = [check for check in TRAIN_CHECKS if check.column == "control"]
    for count in range(1, 500):
        (expectation,) = row_expectations(checks, GateSettings(max_control=count / 1_000))
        # How Great Expectations compares, for tables of several sizes whose share can be exactly the limit.
        for rows in (1_000, 3_000, 7_000, 1_000_000):
            allowed = rows * count // 1_000
            assert (rows - allowed) / rows >= expectation.mostly > (rows - allowed - 1) / rows


def test_the_number_of_listed_rows_is_limited() -> None:
    results = check_rows(features(control=[True] * COUNT))
    (result,) = (result for result in results if not result["passed"])
    assert result["unexpected"] == COUNT
    assert len(result["lines"]) == 20


def snapshot_rows() -> pd.DataFrame:
    return SNAPSHOT_SCHEMA.empty_table().to_pandas().astype({"label": "int8", "sentence": "str"})


@pytest.mark.parametrize(
    ("rows", "description"),
    [
        (snapshot_rows, None),
        (lambda: snapshot_rows()[["line", "file", "source", "label", "mark", "sentence"]], "columns in their order"),
        (lambda: snapshot_rows().assign(extra=1), "columns in their order"),
        (lambda: snapshot_rows().astype({"label": "float64"}), "type of the label"),
        (lambda: snapshot_rows().astype({"sentence": "int64"}), "type of the sentence"),
    ],
)
def test_the_schema_of_a_snapshot_is_checked(rows: Callable[[], pd.DataFrame], description: str | None) -> None:
    assert failed(run_suite("schema", rows(), schema_expectations())) == ([description] if description else [])


def shift(name: str, distance: float) -> Any:
    setting = f"gate.max_{name}_shift"
    limit = getattr(LIMITS, f"max_{name}_shift")
    return {
        "name": name,
        "statistic": f"distance of {name}",
        "distance": distance,
        "limit": limit,
        "setting": setting,
        "p": 0.0,
    }


@pytest.mark.parametrize("name", ["holdout quarantined", "unknown", "label shift", "vocabulary shift"])
def test_a_figure_over_its_limit_fails_alone(name: str) -> None:
    drift = [shift("label", 0.0), shift("vocabulary", 0.0)]
    values = dict.fromkeys(["holdout quarantined", "unknown", "label shift", "vocabulary shift"], 0.0) | {name: 0.4}
    results = run_suite("whole data", pd.DataFrame([values]), figure_expectations(values, drift, LIMITS, 0.01))
    assert [result["column"] for result in results if not result["passed"]] == [name]
    assert len(results) == 4


@pytest.mark.parametrize(("choice", "severity"), [("warn", "warning"), ("refuse", "critical")])
def test_drift_has_the_severity_that_is_set(choice: str, severity: str) -> None:
    values = {"training quarantined": 0.0, "label shift": 0.2}
    expectations = figure_expectations(values, [shift("label", 0.2)], LIMITS.model_copy(update={"drift": choice}), 0.01)
    results = run_suite("whole data", pd.DataFrame([values]), expectations)
    assert [result["severity"] for result in results] == ["critical", severity]
    assert [result["passed"] for result in results] == [True, False]


def test_a_figure_without_value_is_not_expected() -> None:
    values = {"training quarantined": 0.0}
    results = run_suite("whole data", pd.DataFrame([values]), figure_expectations(values, [], LIMITS, 0.01))
    assert [result["column"] for result in results] == ["training quarantined"]


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        ({"min_value": 3}, "at least 3"),
        ({"max_value": 0.5}, "at most 0.5"),
        ({"min_value": 1, "max_value": 2}, "1 to 2"),
        ({"min_value": 1, "max_value": 2, "mostly": 0.99}, "at most 0.01"),
        ({"value_set": [0, 1]}, "[0, 1]"),
        ({}, "none"),
    ],
)
def test_the_text_of_a_range(allowed: dict[str, Any], words: str) -> None:
    assert allowed_range(allowed) == words


def test_values_have_four_digits() -> None:
    assert [format_value(value) for value in (0.123456, 7, [0, 1])] == ["0.1235", "7", "[0, 1]"]


@pytest.mark.parametrize(("share", "setting"), [(1, "gate.max_acceptable"), (0, "gate.min_acceptable")])
def test_the_named_setting_is_that_of_the_exceeded_limit(share: int, setting: str) -> None:
    results = check_rows(with_first("label", share, 38)())
    (result,) = (result for result in results if not result["passed"])
    assert result["setting"] == setting


def test_odd_lengths_name_the_range_and_the_limit_of_their_share() -> None:
    results = check_rows(with_first("words", 500, 1)())
    (result,) = (result for result in results if not result["passed"])
    assert result["description"] == "share of sentences outside 1 to 200 words"
    assert result["setting"] == "gate.max_odd_lengths"


def test_the_text_of_a_result() -> None:
    results = check_rows(with_first("label", 2, 1)())
    (result,) = (result for result in results if not result["passed"])
    assert show_observed(result) == "2 unexpected"
    assert show_allowed(result) == "0, 1"
    assert show_observed({**result, "observed": None}) == "not computable"
