"""What commands print of text that comes from elsewhere."""

import re
from typing import Any

import pytest
from candidates import weigh
from outcomes import make_outcome

from flows.cli import show_plan, show_review, show_run
from flows.cli.terminal import ResultConsole, escape
from tasks.evaluation.compare_versions import compare_recorded, figures_of

HOSTILE = "a [red]b[/] \x1b]0;title\x07\x9b31m\r\u202e"
SHOWN = r"a [red]b[/] \x1b]0;title\x07\x9b31m\r\u202e"


def test_sentences_reasons_and_names_are_printed_without_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    change = {"kind": "reject", "version": "2", "actor": HOSTILE, "from": "1", "to": "1", "reason": HOSTILE}
    entry = change | {"time": "2026-01-01T00:00:00+00:00", "kind": HOSTILE, "to": HOSTILE, "signed_by": HOSTILE}
    answer: Any = {"sentence": HOSTILE, "label": "acceptable", "probability": 0.75, "version": "1", "truncated": False}
    show_run.show_predictions([answer])
    show_review.show_change(change)
    show_review.show_history([entry])
    printed = capsys.readouterr().out
    assert "".join(printed.split("\n")).isprintable()
    assert printed.count(SHOWN) == 8  # the sentence, who and why twice, and what, to and the signature


def test_what_was_not_escaped_is_escaped_by_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    ResultConsole().print("one\x1b[2Jtwo\nthree")
    assert capsys.readouterr().out == "one\\x1b[2Jtwo\nthree\n"


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("5", 20), ("50", 50)])
def test_something_is_printed_at_every_width(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    console = ResultConsole()
    console.print("[bold]PROMOTE[/]")
    assert (console.width, capsys.readouterr().out) == (width, "PROMOTE\n")


def test_markup_of_the_program_still_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    ResultConsole().print(f"[bold red]REJECT[/]: {escape(HOSTILE)}")
    assert capsys.readouterr().out == f"\x1b[1;31mREJECT\x1b[0m: {SHOWN}\n"


@pytest.mark.parametrize(
    ("changes", "sample", "expected"),
    [
        ({}, False, ["next: read the report, then:", "  verdict compare 4", "  verdict approve 4 --reason TEXT",
                    "  verdict reject 4 --reason TEXT"]),
        ({"decision": "REJECT"}, False, ["next: read the report, then:", "  verdict compare 4"]),
        ({"decision": "REJECT", "champion_before": None}, True, ["next: read the report"]),
        ({"decision": "PROMOTE"}, True,
         ["next:", '  verdict predict "Who did you say that left?"', "  verdict report 4 --open",
          "  verdict retrain --profile cola-small    # real CoLA, downloaded once"]),
        ({"decision": "PROMOTE"}, False,
         ["next:", '  verdict predict "Who did you say that left?"', "  verdict report 4 --open", "  verdict serve"]),
        ({"decision": "PROMOTE", "unchanged": True}, True, ["nothing to do; to run it all the same: --force"]),
    ],
)  # fmt: skip
def test_the_next_steps_follow_from_the_outcome(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    sample: bool,
    expected: list[str],
) -> None:
    monkeypatch.setattr(show_run.shutil, "which", lambda _: "/usr/bin/verdict")
    show_run.show_next_commands(make_outcome(**changes), sample)
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("champion", "standing"),
    [(("3", ""), "version 3 is champion"), (None, "the verdict on version 4 stands")],
)
def test_an_unchanged_run_is_announced_before_the_earlier_verdict(
    capsys: pytest.CaptureFixture[str], champion: tuple[str, str] | None, standing: str
) -> None:
    show_run.show_outcome(make_outcome(unchanged=True), champion)
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"nothing changed: {standing}",
        "verdict  HOLD: not better; drifted",
    ]


def test_the_sentences_after_a_promotion_are_not_taken_for_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"label": "acceptable", "probability": 0.818, "version": "1", "truncated": False, "sentence": "A cat."}
    show_run.show_examples([answer])
    first, _, row = capsys.readouterr().out.splitlines()
    assert first == "two examples, which are not from your data and say nothing about it:"
    assert row.split() == ["acceptable", "0.818", "1", "A", "cat."]


def test_on_a_terminal_the_report_is_a_link_and_lines_are_wrapped_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "50"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    show_run.show_outcome(make_outcome(report="/some where/report.html"))
    printed = capsys.readouterr().out
    assert re.search(
        r"report   \x1b\]8;id=\d+;file:///some%20where/report\.html\x1b\\/some where/report\.html", printed
    )
    lines = re.sub(r"\x1b(\]8;.*?\x1b\\|\[[0-9;]*m)", "", printed).splitlines()
    assert lines[:4] == [
        "HOLD: not better; drifted",
        "MCC      0.512 (95% 0.400 to 0.600) on 80 holdout",
        "         sentences, int8 on CPUExecutionProvider",
        "version  acceptability 4",
    ]


def test_one_thing_is_counted_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    gate = {"warnings": [], "failures": [], "results": 1, "passed": True, "kept": 1, "rows_in": 1, "remedy": ""}
    rows = {"train": {"added": 1, "removed": 0, "relabelled": 0, "examples": {}}}
    plan: Any = {"action": "train", "why": "no champion", "finished": [], "champion": None, "job": "j", "encoder": "e"}
    show_plan.show_plan(plan | {"device": "cpu", "changes": [], "rows": rows, "gate": gate})
    assert "train: 1 sentence added, 0 removed, 0 relabelled\n" in capsys.readouterr().out
    show_review.show_pruned({"items": [], "megabytes": 0.0, "dry_run": False, "closed": ["run"]})
    assert capsys.readouterr().out.splitlines()[-1] == "closed: 1 MLflow run whose process is gone"


@pytest.mark.parametrize("width", [80, 120])
def test_a_comparison_is_no_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    first, second = weigh(2.0), weigh(1.6)
    result = compare_recorded(first, second)
    assert result is not None
    rows = [
        {"label": 1, "sentence": "a long sentence " * 10, "first": 0.31, "second": 0.72},
        {"label": 0, "sentence": "a short one", "first": 0.91, "second": None},
    ]
    path = "/a/long/path/to/the/data" * 4
    show_review.show_comparison(
        {
            "holdout": "h" * 64,
            "rows": 300,
            "basis": "measured",
            "labels": ["unacceptable", "acceptable"],
            "versions": [
                {"version": version, "verdict": "HOLD", **figures_of(side)}
                for version, side in (("2", result["first"]), ("1", result["second"]))
            ],
            "comparison": result["comparison"] | {"sentences": rows, "differing": 23},
            "changes": [{"what": "data.path", "first": f"{path}1", "second": f"{path}2"}],
            "shadow": None,
        }
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert re.search(r"^acceptable +0\.31 +0\.72 +a long sentence", text, re.MULTILINE)
    assert re.search(r"^unacceptable +0\.91 +none +a short one *$", text, re.MULTILINE)
    assert re.search(r"^AUROC +0\.9", text, re.MULTILINE)
    heading = "sentences that they label differently, the first 2 of 23, with the probability of"
    assert heading in " ".join(text.split())
