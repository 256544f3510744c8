"""What is told of an error that somebody else raised: one line, whatever it says."""

import pytest

from tasks.core.errors import VerdictError, first_line, summarise_error


@pytest.mark.parametrize(
    ("error", "line", "with_kind"),
    [
        (ValueError("no such thing"), "no such thing", "ValueError: no such thing"),
        (ValueError("\n  first\nsecond"), "first", "ValueError: first"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (KeyError("a"), "'a'", "KeyError: 'a'"),
        (OSError(2, "No such file"), "[Errno 2] No such file", "FileNotFoundError: [Errno 2] No such file"),
        (ValueError("é\ud800"), "é\\ud800", "ValueError: é\\ud800"),
        (VerdictError("bell\x07 and é"), "bell\\x07 and é", "VerdictError: bell\\x07 and é"),
    ],
)
def test_one_line_is_told_and_the_kind_where_nothing_is_said(error: Exception, line: str, with_kind: str) -> None:
    assert first_line(error) == line
    assert summarise_error(error) == with_kind


def test_a_long_line_is_cut_off_before_its_damaged_bytes_are_escaped() -> None:
    assert first_line(ValueError("bad \x1b[31m\x0f\nmore")) == r"bad \x1b[31m\x0f"
    assert first_line(ValueError("é\ud800" + "x" * 999), 200) == "é\\ud800" + "x" * 198
    assert first_line(ValueError("x" * 1000)) == "x" * 500
    assert first_line(ValueError("GET https://user:SECRET@host/f"), 20) == "GET https://***@host"
    assert first_line(ValueError("tab\there")) == r"tab\there"
    assert summarise_error(ValueError("x" * 1000), max_chars=3) == "ValueError: xxx"
