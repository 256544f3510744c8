"""The gate passes good data and refuses each fault by the one expectation that is meant for it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks.errors import DataRefused
from tasks.reading import Snapshot, load_rows, take_snapshot
from tasks.settings import GateSettings
from tasks.validation import (
    Finding,
    Gate,
    check_table,
    figure_expectations,
    measure_figures,
    refuse_unfit,
    row_expectations,
    validate_snapshots,
)

LIMITS = GateSettings(min_rows=20, min_holdout_rows=10).model_dump()
COLUMNS = ["line", "source", "label", "mark", "sentence"]
COLUMN_LIST, ROW_COUNT = "expect_table_columns_to_match_ordered_list", "expect_table_row_count_to_be_between"
NOT_NULL, LENGTHS = "expect_column_values_to_not_be_null", "expect_column_value_lengths_to_be_between"
LABELS, MEAN = "expect_column_distinct_values_to_equal_set", "expect_column_mean_to_be_between"
FIGURE = "expect_column_max_to_be_between"

Lines = list[str]


def lines(name: str, labels: Sequence[int]) -> Lines:
    """Return one line a label, each with a sentence of its own."""
    return [f"s\t{label}\t\t{name} sentence {i}.\n" for i, label in enumerate(labels)]


def good_train() -> Lines:
    return lines("Training", [0, 1] * 20)


def good_holdout() -> Lines:
    return lines("Judging", [0, 1] * 10)


def snap(folder: Path, name: str, content: Lines) -> Snapshot:
    (folder / name).write_text("".join(content), encoding="utf-8")
    return take_snapshot(str(folder / name), str(folder / "snapshots"))


def run_gate(folder: Path, train: Lines, holdout: Lines, **limits: float) -> tuple[Gate, list[str]]:
    """Return the gate's answer and the examples that belong to it."""
    snapshots = snap(folder, "train.tsv", train), snap(folder, "holdout.tsv", holdout)
    gate = validate_snapshots(*snapshots, str(folder / "gate.json"), LIMITS | limits)
    return gate, snapshots[0]["examples"] + snapshots[1]["examples"]


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if not finding["passed"]]


def rows(
    sentences: Sequence[str | None] = ("One.", "Two.", "Three."), labels: Sequence[int] = (0, 1, 1)
) -> pd.DataFrame:
    count = len(sentences)
    values = [range(1, count + 1), ["s"] * count, labels, [""] * count, sentences]
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return run_gate(tmp_path_factory.mktemp("good"), good_train(), good_holdout())[0]


def test_good_snapshots_pass_every_expectation(good: Gate) -> None:
    assert good["passed"]
    suite = [COLUMN_LIST, ROW_COUNT, NOT_NULL, LENGTHS, LABELS, MEAN]
    assert [(finding["table"], finding["expectation"]) for finding in good["findings"]] == [
        *[("figures", FIGURE)] * 4,
        *[("training rows", name) for name in suite],
        *[("holdout rows", name) for name in suite],
    ]
    figures = [finding["column"] for finding in good["findings"] if finding["table"] == "figures"]
    assert figures == ["quarantined", "duplicates", "conflicts", "leak"]


def test_passing_findings_hold_what_was_seen_and_allowed(good: Gate) -> None:
    seen = {(finding["table"], finding["expectation"]): finding for finding in good["findings"]}
    assert seen["training rows", ROW_COUNT]["observed"] == 40
    assert seen["training rows", ROW_COUNT]["allowed"] == {"min_value": 20}
    assert seen["holdout rows", MEAN]["observed"] == 0.5
    assert seen["holdout rows", MEAN]["allowed"] == {"min_value": 0.2, "max_value": 0.9}
    assert seen["figures", FIGURE]["observed"] == 0.0


def test_report_is_json_with_every_finding_and_figure(good: Gate) -> None:
    report = json.loads(Path(good["report"]).read_text(encoding="utf-8"))
    assert report == {
        **good,
        "figures": {"quarantined": 0.0, "duplicates": 0.0, "conflicts": 0.0, "leak": 0.0},
        "examples": [],
    }


def test_good_data_is_not_refused(good: Gate) -> None:
    refuse_unfit(good, ["line 1: not UTF-8"])


def failure(table: str, expectation: str, column: str | None, observed: Any, **allowed: Any) -> Finding:
    return Finding(
        table=table, expectation=expectation, column=column, observed=observed, allowed=allowed, passed=False
    )


PASSED = failure("rows", "passed", None, 0) | {"passed": True}

# How the good training and holdout lines are spoilt, limits that keep other expectations quiet, the one failure.
SPOILT: dict[str, tuple[Callable[[Lines, Lines], tuple[Lines, Lines]], dict[str, float], Finding]] = {
    "quarantined rows": (
        lambda train, holdout: ([*train, "a\n", "b\n"], [*holdout, "c\n"]),
        {},
        failure("figures", FIGURE, "quarantined", 3 / 63, max_value=0.01),
    ),
    "repeated sentences": (
        lambda train, holdout: (train + [line.upper() for line in train[:10]], holdout),
        {},
        failure("figures", FIGURE, "duplicates", 0.2, max_value=0.05),
    ),
    "both labels": (
        lambda train, holdout: ([*train, "s\t1\t\ttraining SENTENCE 0\n"], holdout),
        {},
        failure("figures", FIGURE, "conflicts", 2 / 41, max_value=0.02),
    ),
    "holdout sentences in training": (
        lambda train, holdout: (train, [*holdout, *train[:4], train[5].upper()]),
        {},
        failure("figures", FIGURE, "leak", 0.2, max_value=0.05),
    ),
    "too few training rows": (
        lambda train, holdout: (train[:19], holdout),
        {},
        failure("training rows", ROW_COUNT, None, 19, min_value=20),
    ),
    "too few holdout rows": (
        lambda train, holdout: (train, holdout[:9]),
        {},
        failure("holdout rows", ROW_COUNT, None, 9, min_value=10),
    ),
    "one label in training": (
        lambda train, holdout: (lines("Training", [1] * 40), holdout),
        {"max_acceptable": 1.0},
        failure("training rows", LABELS, "label", {"missing": [0], "unexpected": []}, value_set=[0, 1]),
    ),
    "one label in the holdout": (
        lambda train, holdout: (train, lines("Judging", [0] * 20)),
        {"min_acceptable": 0.0},
        failure("holdout rows", LABELS, "label", {"missing": [1], "unexpected": []}, value_set=[0, 1]),
    ),
    "few acceptable in training": (
        lambda train, holdout: (lines("Training", [0] * 35 + [1] * 5), holdout),
        {},
        failure("training rows", MEAN, "label", 0.125, min_value=0.2, max_value=0.9),
    ),
    "nearly all acceptable in the holdout": (
        lambda train, holdout: (train, lines("Judging", [0] + [1] * 19)),
        {},
        failure("holdout rows", MEAN, "label", 0.95, min_value=0.2, max_value=0.9),
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_each_fault_of_a_file_fails_its_own_expectation_alone(tmp_path: Path, fault: str) -> None:
    spoil, limits, finding = SPOILT[fault]
    gate, _ = run_gate(tmp_path, *spoil(good_train(), good_holdout()), **limits)
    assert not gate["passed"]
    assert failed(gate["findings"]) == [finding]
    assert json.loads(Path(gate["report"]).read_text())["passed"] is False


# The reader lets none of these through; the expectations stand behind it.
CRAFTED: dict[str, tuple[pd.DataFrame, Finding]] = {
    "extra column": (
        rows().assign(extra=1),
        failure("rows", COLUMN_LIST, None, [*COLUMNS, "extra"], column_list=COLUMNS),
    ),
    "other order": (
        rows()[COLUMNS[::-1]],
        failure("rows", COLUMN_LIST, None, COLUMNS[::-1], column_list=COLUMNS),
    ),
    "missing sentence": (rows(["One.", None, None]), failure("rows", NOT_NULL, "sentence", 2)),
    "empty sentence": (rows(["One.", "", "Three."]), failure("rows", LENGTHS, "sentence", 1, min_value=1)),
    "third label": (
        rows(labels=[0, 2, 0]),
        failure("rows", LABELS, "label", {"missing": [1], "unexpected": [2]}, value_set=[0, 1]),
    ),
}


@pytest.mark.parametrize("fault", CRAFTED)
def test_each_fault_of_a_table_fails_its_own_expectation_alone(fault: str) -> None:
    table, finding = CRAFTED[fault]
    assert failed(check_table("rows", table, row_expectations(3, LIMITS))) == [finding]


def test_every_expectation_of_the_suite_has_a_case_of_its_own() -> None:
    suite = row_expectations(1, LIMITS) + figure_expectations(LIMITS)
    findings = [case[-1] for case in [*SPOILT.values(), *CRAFTED.values()]]
    covered = {(finding["expectation"], finding["column"]) for finding in findings}
    assert covered == {(expectation.expectation_type, getattr(expectation, "column", None)) for expectation in suite}


def test_missing_column_is_reported_where_it_cannot_be_computed() -> None:
    findings = failed(check_table("rows", rows().drop(columns="sentence"), row_expectations(3, LIMITS)))
    assert [(finding["expectation"], finding["column"]) for finding in findings] == [
        (COLUMN_LIST, None),
        (NOT_NULL, "sentence"),
        (LENGTHS, "sentence"),
    ]
    assert findings[1]["observed"] == "not computable"


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (0.05, True), (0.0501, False), (1.0, False)])
def test_a_limit_belongs_to_what_is_allowed(value: float, passed: bool) -> None:
    figures = {"quarantined": 0.0, "duplicates": value, "conflicts": 0.0, "leak": 0.0}
    findings = check_table("figures", pd.DataFrame([figures]), figure_expectations(LIMITS))
    assert [finding["passed"] for finding in findings] == [True, passed, True, True]
    assert findings[1]["observed"] == value


def test_figures_are_shares_of_folded_sentences(tmp_path: Path) -> None:
    train = snap(tmp_path, "a.tsv", ["s\t1\t\tA.\n", "s\t0\t\ta!\n", "s\t1\t\tB.\n", "s\t1\t\tC.\n", "bad\n"])
    holdout = snap(tmp_path, "b.tsv", ["s\t1\t\tc\n", "s\t1\t\tD\n", "s\t1\t\td\n"])
    figures = measure_figures(train, holdout, load_rows(train["path"]), load_rows(holdout["path"]))
    assert figures == {"quarantined": 1 / 8, "duplicates": 1 / 4, "conflicts": 2 / 4, "leak": 1 / 3}


def test_file_without_one_readable_row_is_refused_for_its_quarantine(tmp_path: Path) -> None:
    gate, examples = run_gate(tmp_path, ["no tabs\n"] * 30, good_holdout())
    with pytest.raises(DataRefused, match=r"on figures, quarantined: observed 0\.6, allowed at most 0\.01"):
        refuse_unfit(gate, examples)


def test_refusal_names_expectation_observed_allowed_example_and_report(tmp_path: Path) -> None:
    gate, examples = run_gate(tmp_path, ["bad\n", "worse\n", *good_train()], good_holdout())
    with pytest.raises(DataRefused) as caught:
        refuse_unfit(gate, examples)
    assert str(caught.value) == (
        "data refused: expect_column_max_to_be_between on figures, quarantined: observed 0.03226, "
        "allowed at most 0.01; line 1: 1 fields instead of 4\n"
        f"report: {tmp_path / 'gate.json'}"
    )
    assert caught.value.exit_code == 3
    assert json.loads((tmp_path / "gate.json").read_text())["examples"] == examples


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (failure("rows", "expect_x", None, 19, min_value=20), "expect_x on rows: observed 19, allowed at least 20"),
        (failure("rows", "x", None, 1 / 3, min_value=0.2, max_value=0.9), "observed 0.3333, allowed 0.2 to 0.9"),
        (failure("rows", "x", "leak", 1, max_value=0.0), "x on rows, leak: observed 1, allowed at most 0.0"),
        (failure("rows", "x", "label", 1, value_set=[0, 1]), "observed 1, allowed [0, 1]"),
        (failure("rows", "x", None, 1), "observed 1, allowed none"),
    ],
)
def test_refusal_says_the_allowed_range_in_words(first: Finding, said: str) -> None:
    with pytest.raises(DataRefused) as caught:
        refuse_unfit(Gate(passed=False, findings=[PASSED, first], report="gate.json"), [])
    line, report = str(caught.value).splitlines()
    assert line.endswith(said)
    assert report == "report: gate.json"


def test_refusal_shows_the_first_failure_and_counts_the_others() -> None:
    findings = [PASSED, *(failure("rows", name, None, 1) for name in ("first", "second", "third"))]
    with pytest.raises(DataRefused, match=r"^data refused: first on rows: .* \(and 2 more\); line 3: bad\nreport: "):
        refuse_unfit(Gate(passed=False, findings=findings, report="gate.json"), ["line 3: bad", "line 4: bad"])
