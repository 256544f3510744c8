"""What a terminal would act on is shown instead."""

import json
import logging
import subprocess
import sys

import pytest

from tasks.core.printable import PrintableFormatter, escape_controls, json_document

TITLE = "\x1b]0;title\x07"  # sets a terminal's title
RED = "\x9b31m"  # the one-byte form of ESC [


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, été, 漢字, a\xa0b", "plain, été, 漢字, a\xa0b"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        (TITLE, r"\x1b]0;title\x07"),
        (RED, r"\x9b31m"),
        ("a\rb\x00\x7f", r"a\rb\x00\x7f"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),  # direction overrides
        ("a\u2028b\udc80", r"a\u2028b\udc80"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_controls_are_written_as_in_python_and_everything_else_stays(text: str, shown: str) -> None:
    assert escape_controls(text) == shown
    assert escape_controls(shown) == shown


def test_one_line_is_asked_for_with_nothing_to_keep() -> None:
    assert escape_controls("a\nb\tc", keep="") == r"a\nb\tc"


def test_json_keeps_its_value_and_has_no_control_character() -> None:
    value = {"sentence": f"été {TITLE}{RED}\u202e\n", "n": [1, None]}
    text = json_document(value)
    assert json.loads(text) == value
    assert escape_controls(text) == text
    assert "été" in text


def test_a_log_line_has_none() -> None:
    record = logging.makeLogRecord({"msg": "quarantined: %s", "args": (TITLE,)})
    assert PrintableFormatter("%(message)s").format(record) == r"quarantined: \x1b]0;title\x07"


def test_an_error_on_the_terminal_has_none() -> None:
    program = f"from tasks.core.log_format import print_error; print_error({TITLE!r}, 'see: verdict --help')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "error: \\x1b]0;title\\x07\nsee: verdict --help\n"
