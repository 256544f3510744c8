"""The rows of the report's tables."""

import ast
from pathlib import Path
from typing import Any

import pytest
from candidates import tell, weigh
from toy import policy

import tasks.evaluation.judge
from tasks.evaluation.judge import RULES
from tasks.reporting.tables import MAX_SLICES, compare_figures, explain_rules, list_facts, list_phenomena, list_slices
from tasks.reporting.wording import NEXT_STEPS, escape_markdown, show_mcc


def test_every_rule_of_the_judge_is_explained() -> None:
    tree = ast.parse(Path(tasks.evaluation.judge.__file__).read_text(encoding="utf-8"))
    calls = [
        each for each in ast.walk(tree) if isinstance(each, ast.Call) and getattr(each.func, "id", "") == "RuleHit"
    ]
    rules = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert len(rules) > 10
    assert rules == set(RULES)
    assert all(rule.explanation for rule in RULES.values())
    assert set(NEXT_STEPS) == {"PROMOTE", "HOLD", "REJECT"}


def test_reasons_come_with_their_rules_and_notes_without() -> None:
    verdict: Any = {"rules": ["drift"], "reasons": ["it drifted", "without that it would be promoted"]}
    first, note = explain_rules(verdict)
    assert (first.rule, first.reason, first.explanation) == ("drift", "it drifted", RULES["drift"].explanation)
    assert (note.rule, note.explanation) == ("", "")


def test_a_smaller_error_is_better_and_a_smaller_mcc_worse() -> None:
    evidence = weigh(1.0, 3.0)
    figures = {figure.name: figure for figure in compare_figures(evidence)}
    assert figures["MCC"].better == figures["accuracy"].better == figures["Brier score (0 is perfect)"].better == -1
    assert figures["MCC"].candidate == f"{evidence['candidate']['interval']['mcc']:.3f}"
    assert figures["95% CI of the MCC"].better is None
    assert {figure.champion for figure in compare_figures(weigh())} == {None}
    same = weigh(2.0, 2.0)
    same["champion"]["measurement"] = same["candidate"]
    assert {figure.better for figure in compare_figures(same)} == {0, None, -1}  # -1: the minimal pairs'


@pytest.mark.parametrize(
    ("fall", "rows", "mark"),
    [(-0.1, 50, ""), (0.0, 50, ""), (0.2, 50, "lower"), (0.21, 50, "dropped"), (0.21, 49, "few sentences")],
)
def test_a_slice_is_marked_as_the_rule_applies(fall: float, rows: int, mark: str) -> None:
    evidence = weigh(2.0, 1.9)
    evidence["candidate"]["per_source"] = {"s": {"rows": rows, "accuracy": 0.8, "mcc": 0.5}}
    evidence["champion"]["measurement"]["per_source"] = {"s": {"rows": rows, "accuracy": 0.8, "mcc": 0.5 + fall}}
    (found,) = list_slices(evidence, policy())[0]["rows"]
    assert found["mark"] == mark
    held = "slice_dropped" in tell(evidence, min_slice_rows=50).verdict["rules"]
    assert held <= (mark == "dropped")


def test_the_largest_drop_comes_first_and_each_slice_has_its_interval() -> None:
    by_source, by_length = list_slices(weigh(2.0, 1.9), policy())
    assert len(by_source["rows"]) == 3
    for table in (by_source, by_length):
        drops = [(row["candidate"] or 0) - (row["champion"] or 0) for row in table["rows"]]
        assert drops == sorted(drops)
        for row in table["rows"]:
            assert row["interval"] is not None
            assert row["interval"]["low"] < row["candidate"] == row["interval"]["mcc"] < row["interval"]["high"]  # type: ignore[operator]


def test_a_slice_of_one_label_has_no_mcc_and_no_mark() -> None:
    evidence = weigh(2.0, 1.9)
    evidence["candidate"]["per_source"] = {"s": {"rows": 500, "accuracy": 0.2, "mcc": None}}
    evidence["champion"]["measurement"]["per_source"] = {"s": {"rows": 500, "accuracy": 0.9, "mcc": None}}
    (found,) = list_slices(evidence, policy())[0]["rows"]
    assert (found["candidate"], found["champion"], found["width"], found["tick"], found["mark"]) == (
        None,
        None,
        0,
        None,
        "",
    )
    assert show_mcc(found["candidate"]) == "no MCC"


def test_bars_of_negative_values_are_empty() -> None:
    evidence = weigh(2.0, 1.9)
    evidence["candidate"]["per_source"] = {"s": {"rows": 5, "mcc": -0.5}}
    evidence["champion"]["measurement"]["per_source"] = {"s": {"rows": 5, "mcc": 1.0}}
    (found,) = list_slices(evidence, policy())[0]["rows"]
    assert (found["width"], found["tick"], found["candidate"], found["champion"]) == (0, 100, -0.5, 1.0)


def test_of_many_sources_those_that_dropped_and_the_largest_are_shown() -> None:
    evidence = weigh(2.0, 1.9)
    names = [f"s{i:03}" for i in range(100)]
    ours = {name: {"rows": 100 + i, "mcc": 0.5} for i, name in enumerate(names)}
    evidence["candidate"]["per_source"] = ours | {"s000": {"rows": 100, "mcc": 0.1}}
    evidence["champion"]["measurement"]["per_source"] = ours
    found = list_slices(evidence, policy())[0]
    assert [row["name"] for row in found["rows"]] == ["s000", *names[-MAX_SLICES + 1 :]]
    assert found["more"] == 100 - MAX_SLICES


def test_phenomena_that_the_champion_was_not_measured_on_have_no_champion_share() -> None:
    evidence = weigh(2.0, 1.9)
    del evidence["champion"]["minimal_pairs"]["phenomena"]["islands"]
    order, islands = list_phenomena(evidence)
    assert (order["mark"], order["champion"]) == ("lower", 1.0)
    assert (islands["mark"], islands["champion"], islands["tick"]) == ("", None, None)


@pytest.mark.parametrize(("value", "shown"), [(1.0, "1"), (0.04507, "0.045"), (0.0004, "0.0004"), (1e-9, "1e-09")])
def test_p_values_are_shown_with_two_digits(value: float, shown: str) -> None:
    evidence = weigh(2.0, 1.9)
    facts = list_facts(evidence["comparison"] | {"p_better": value}, tell(evidence).verdict)
    assert next(fact.value for fact in facts if fact.name == "permutation test: better") == f"p-value {shown}"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, 0.5 (x): 'y'", "plain, 0.5 (x): 'y'"),
        ("a|b\n<c> & *d*_e_", r"a\|b\\n&lt;c> &amp; \*d\*\_e\_"),
        ("@team [x](y) `z`", r"&#64;team \[x\](y) \`z\`"),
    ],
)
def test_untrusted_text_is_escaped_in_markdown(raw: str, shown: str) -> None:
    assert escape_markdown(raw) == shown
