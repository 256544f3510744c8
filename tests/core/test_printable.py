"""What a terminal would act on is shown instead."""

import json
import logging
import os
import subprocess
import sys

import pytest

from tasks.core.hidden_addresses import conceal, hide, reveal
from tasks.core.log_format import PrintableFormatter
from tasks.core.printable import escape_controls, json_document, quote, redact, redact_address

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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://example.org/rows.tsv#sha256=00", "https://example.org/rows.tsv#sha256=00"),
        ("https://user:S@example.org/rows.tsv", "https://***@example.org/rows.tsv"),
        ("HTTPS://S@example.org:80/a@b", "HTTPS://***@example.org:80/a@b"),
        ("https://user:S/S?S#S@S@example.org/rows.tsv", "https://***@example.org/rows.tsv"),
        ("https:/user:S@example.org/rows.tsv", "https:/***@example.org/rows.tsv"),
        ("https://h/f.zip?sv=1&sig=S%3D&download=true#sha256=0&member=a@b/c.tsv",
         "https://h/f.zip?sv=1&sig=***&download=true#sha256=0&member=a@b/c.tsv"),
        ("https://h/f?S#token=S", "https://h/f?***#token=***"),
        ("https://h:8080/page?x=#part", "https://h:8080/page?x=#part"),
        ("postgresql+psycopg2://user:S@db:5432/mlflow?password=S", "postgresql+psycopg2://***@db:5432/mlflow?password=***"),
        ("sqlite:////home/x@y/mlflow.db", "sqlite:////home/x@y/mlflow.db"),
        ("models:/acceptability@champion", "models:/acceptability@champion"),
        ("hf:nyu-mll/glue/cola@main", "hf:nyu-mll/glue/cola@main"),
        ("data/a@b.tsv", "data/a@b.tsv"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_password_and_signature(address: str, shown: str) -> None:
    assert redact_address(address) == redact_address(shown) == shown
    assert reveal(hide(address.partition("#")[0])) == address.partition("#")[0]


def test_addresses_within_a_text_are_shown_without_their_secrets() -> None:
    text = "error: 'https://user:S@h/f?sig=S' (see http://p:1/x) failed; postgresql://u:S'S@db/m, models:/a@b"
    shown = "error: 'https://***@h/f?sig=***' (see http://p:1/x) failed; postgresql://***@db/m, models:/a@b"
    assert redact(text) == shown
    assert redact(json.dumps({"a": "https://h/f?sig=S", "b": 1})) == json.dumps({"a": "https://h/f?sig=***", "b": 1})
    assert quote(["https://user:S@h/f"]) == "['https://***@h/f']"
    assert quote("https://user:S S'S@h/f") == "'https://***@h/f'"


def test_json_keeps_its_value_and_has_no_control_character() -> None:
    value = {"sentence": f"été {TITLE}{RED}\u202e\n", "n": [1, None]}
    text = json_document(value)
    assert json.loads(text) == value
    assert escape_controls(text) == text
    assert "été" in text


def test_a_log_line_has_none() -> None:
    record = logging.makeLogRecord({"msg": "quarantined: %s", "args": (TITLE,)})
    assert PrintableFormatter("%(message)s").format(record) == r"quarantined: \x1b]0;title\x07"
    record = logging.makeLogRecord({"msg": "GET %s", "args": ("https://user:S@h/f?sig=S",)})
    assert PrintableFormatter("%(message)s").format(record) == "GET https://***@h/f?sig=***"


def test_an_error_on_the_terminal_has_none() -> None:
    program = f"from tasks.core.log_format import print_error; print_error({TITLE!r}, 'see: verdict --help')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "error: \\x1b]0;title\\x07\nsee: verdict --help\n"
    record = ["-c", f"from tasks.core.log_format import print_error; print_error({RED + TITLE!r}, 'http://u:S@h')"]
    for name, line in (
        ("json", json.dumps(RED + TITLE + "\nhttp://***@h")),
        ("xml", "error: \\x9b31m\\x1b]0;title\\x07\nhttp://***@h\n"),
    ):
        done = subprocess.run(
            [sys.executable, *record],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"VERDICT_LOG": name},
        )
        assert line in done.stderr


def test_secrets_of_hidden_addresses_are_found_where_a_message_quotes_only_their_path() -> None:
    hide("https://ada:p%40ss-1@host/x?sig=S1%2Fg&download=1&mode=true")
    message = "url: /x?sig=S1%2Fg&download=1&mode=true/api, S1/g, ada:p%40ss-1, p@ss-1 of host"
    assert conceal(message) == "url: /x?sig=***&download=1&mode=true/api, ***, ***, *** of host"
