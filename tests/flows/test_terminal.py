"""What commands print of text that comes from elsewhere."""

from typing import Any

import pytest

from flows.cli import show_review, show_run
from flows.cli.terminal import ResultConsole, escape

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


def test_markup_of_the_program_still_colours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    ResultConsole().print(f"[bold red]REJECT[/]: {escape(HOSTILE)}")
    assert capsys.readouterr().out == f"\x1b[1;31mREJECT\x1b[0m: {SHOWN}\n"
