"""Each expectation of the gate fails alone on the fault that it is meant for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.core.settings import GateSettings
from tasks.data.expectations import (
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
LIMITS = GateSettings(min_rows=20, min_holdout_rows=20, max_unseen_sources=0.5).model_dump() | {"max_quarantined": 0.01}


def measures(**changes: Any) -> pd.DataFrame:
    """Return the measures of forty good rows, changed by column."""
    columns = {
        "file": pd.Categorical(["train.tsv"] * COUNT),
        "line": np.arange(1, COUNT + 1),
        "source": ["gj04"] * COUNT,
        "label": [0, 1] * (COUNT // 2),
        "characters": [20] * COUNT,
        "words": [4] * COUNT,
        "control": [False] * COUNT,
        "text": np.arange(COUNT, dtype=np.uint64),
        "folded": np.arange(COUNT, dtype=np.uint64),
    }
    return pd.DataFrame(columns | changes)


def check_rows(rows: pd.DataFrame, train: bool = True, holdout_keys: int = 1_000) -> list[ExpectationResult]:
    if train:
        flag_duplicates(rows)
    else:
        flag_leakage(rows, measures(folded=np.arange(holdout_keys, holdout_keys + COUNT, dtype=np.uint64)))
    return run_suite("rows", rows, row_expectations(train, LIMITS))


def with_first(name: str, value: Any, count: int = COUNT) -> Callable[[], pd.DataFrame]:
    def change() -> pd.DataFrame:
        rows = measures()
        rows[name] = rows[name].astype(object) if value is None else rows[name]
        rows.loc[: count - 1, name] = value
        return rows

    return change


def failed(findings: list[ExpectationResult]) -> list[str]:
    return [finding["description"] for finding in findings if not finding["passed"]]


@pytest.mark.parametrize("train", [True, False])
def test_good_rows_pass_all_expectations(train: bool) -> None:
    findings = check_rows(measures(), train)
    assert failed(findings) == []
    assert len(findings) == 10
    assert {finding["severity"] for finding in findings} == {"critical"}
    assert {finding["unexpected"] for finding in findings} == {0}


@pytest.mark.parametrize(
    ("rows", "description"),
    [
        (lambda: measures().head(19), "number of rows"),
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
def test_a_fault_fails_its_expectation_alone(rows: Callable[[], pd.DataFrame], asks: str) -> None:
    assert failed(check_rows(rows())) == [asks]


def test_repeats_fail_alone_where_their_labels_agree() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[[2, 4, 6]] = 0
    findings = check_rows(measures(folded=keys))
    assert failed(findings) == ["share of rows that repeat an earlier sentence"]
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert finding["observed"] == 3 / COUNT
    assert finding["unexpected"] == 3
    assert finding["lines"] == ["train.tsv line 3", "train.tsv line 5", "train.tsv line 7"]
    assert allowed_range(finding["allowed"]) == "at most 0.05"


def test_conflicts_fail_alone() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[1] = 0
    findings = check_rows(measures(folded=keys))
    assert failed(findings) == ["share of rows whose sentence has both labels"]
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert finding["lines"] == ["train.tsv line 1", "train.tsv line 2"]


def test_a_leak_into_the_holdout_fails_alone() -> None:
    findings = check_rows(measures(), train=False, holdout_keys=COUNT - 3)
    assert failed(findings) == ["share of rows whose sentence trains too"]


def test_unseen_sources_of_the_holdout_fail_alone() -> None:
    rows = measures(source=["gj04"] * 19 + ["new"] * 21)
    assert failed(check_rows(rows, train=False)) == ["share of rows from sources that do not train"]


def test_a_share_at_its_limit_passes() -> None:
    keys = np.arange(COUNT, dtype=np.uint64)
    keys[[2, 4]] = 0  # 2 of 40 are the 5% that may repeat
    assert failed(check_rows(measures(folded=keys))) == []


def test_not_more_lines_are_named_than_a_reader_reads() -> None:
    findings = check_rows(measures(control=[True] * COUNT))
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert finding["unexpected"] == COUNT
    assert len(finding["lines"]) == 20


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
def test_the_schema_of_a_snapshot_is_checked(rows: Callable[[], pd.DataFrame], asks: str | None) -> None:
    assert failed(run_suite("schema", rows(), schema_expectations())) == ([asks] if asks else [])


def shift(name: str, distance: float) -> Any:
    return {"name": name, "statistic": f"distance of {name}", "distance": distance, "limit": 0.1, "p": 0.0}


@pytest.mark.parametrize("name", ["holdout quarantined", "unknown", "label shift", "vocabulary shift"])
def test_a_figure_over_its_limit_fails_alone(name: str) -> None:
    drift = [shift("label", 0.0), shift("vocabulary", 0.0)]
    values = dict.fromkeys(["holdout quarantined", "unknown", "label shift", "vocabulary shift"], 0.0) | {name: 0.4}
    findings = run_suite("whole data", pd.DataFrame([values]), figure_expectations(values, drift, LIMITS))
    assert [finding["column"] for finding in findings if not finding["passed"]] == [name]
    assert len(findings) == 4


@pytest.mark.parametrize(("choice", "severity"), [("warn", "warning"), ("refuse", "critical")])
def test_drift_warns_or_refuses_as_it_is_set(choice: str, severity: str) -> None:
    values = {"training quarantined": 0.0, "label shift": 0.2}
    expectations = figure_expectations(values, [shift("label", 0.2)], LIMITS | {"drift": choice})
    findings = run_suite("whole data", pd.DataFrame([values]), expectations)
    assert [finding["severity"] for finding in findings] == ["critical", severity]
    assert [finding["passed"] for finding in findings] == [True, False]


def test_what_is_not_measured_is_not_expected() -> None:
    values = {"training quarantined": 0.0}
    findings = run_suite("whole data", pd.DataFrame([values]), figure_expectations(values, [], LIMITS))
    assert [finding["column"] for finding in findings] == ["training quarantined"]


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
def test_limits_are_said_in_words(allowed: dict[str, Any], words: str) -> None:
    assert allowed_range(allowed) == words


def test_values_are_shown_with_four_digits() -> None:
    assert [format_value(value) for value in (0.123456, 7, [0, 1])] == ["0.1235", "7", "[0, 1]"]


@pytest.mark.parametrize(("share", "setting"), [(1, "gate.max_acceptable"), (0, "gate.min_acceptable")])
def test_the_setting_that_is_named_is_the_one_whose_limit_was_passed(share: int, setting: str) -> None:
    findings = check_rows(with_first("label", share, 38)())
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert finding["setting"] == setting


def test_odd_lengths_name_the_range_and_the_limit_of_their_share() -> None:
    findings = check_rows(with_first("words", 500, 1)())
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert finding["description"] == "share of sentences outside 1 to 200 words"
    assert finding["setting"] == "gate.max_odd_lengths"


def test_findings_are_said_in_words() -> None:
    findings = check_rows(with_first("label", 2, 1)())
    (finding,) = (finding for finding in findings if not finding["passed"])
    assert show_observed(finding) == "2 unexpected"
    assert show_allowed(finding) == "0, 1"
    assert show_observed({**finding, "observed": None}) == "not computable"
