"""What is said on standard error: lines for people, or one JSON object a line that carries what is known."""

import json
import logging
import threading
from collections.abc import Iterator

import pytest

from flows.cli import app
from tasks.core import hidden_addresses, log_format
from tasks.core.errors import UsageError
from tasks.core.hidden_addresses import hide
from tasks.core.printable import wrap_words


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A logger alone: tests before may have bound facts, and set up handlers that write to standard error too."""
    monkeypatch.setattr(log_format, "_context", {})
    logger = logging.getLogger("tasks.test_logs")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


def say(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> str:
    handler = logging.StreamHandler()
    log_format.set_formatter(handler)
    logger.handlers = [handler]
    logger.warning("a “quoted” line\nand another, %d", 7)
    return capsys.readouterr().err


def test_a_line_is_its_message_where_nothing_else_is_asked_for(
    speaker: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "text")
    assert say(speaker, capsys) == "a “quoted” line\nand another, 7\n"


def test_json_is_one_object_a_line_with_the_facts_that_were_bound(
    speaker: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "json")
    log_format.bind_context(run="r1", version="3")
    log_format.bind_context(digest="d" * 64, version="4")
    line = say(speaker, capsys)
    assert line.count("\n") == 1
    said = json.loads(line)
    assert said.pop("time")
    assert said == {
        "level": "WARNING",
        "logger": "tasks.test_logs",
        "message": "a “quoted” line\nand another, 7",
        "run": "r1",
        "version": "4",
        "digest": "d" * 64,
    }
    log_format.bind_context(version="")
    assert "version" not in json.loads(say(speaker, capsys))


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_other_libraries_quote_no_part_of_a_hidden_address_that_is_secret(
    form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, form)
    monkeypatch.setattr(hidden_addresses, "_given", {})
    hide('postgresql://mlflow:pass"wörd@host/x?sslmode=require')
    handler = logging.StreamHandler()
    log_format.set_formatter(handler)
    message = 'GET /x?token=1 by mlflow:pass"wörd, that is pass"wörd or pass%22w%C3%B6rd, at https://a:b@host'
    said = []
    for name in ("urllib3.connectionpool", "tasks.registry"):
        handler.handle(logging.makeLogRecord({"name": name, "msg": message}))
        line = capsys.readouterr().err.rstrip("\n")
        said.append(json.loads(line)["message"] if form == "json" else line)
    assert said == [
        "GET /x?token=1 by ***, that is *** or ***, at https://***@host",
        message.replace("a:b", "***"),
    ]


def test_what_one_thread_binds_every_thread_says(
    speaker: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "json")
    log_format.bind_context(version="3")
    following = threading.Thread(target=log_format.bind_context, kwargs={"version": "4"})  # like the champion's
    following.start()
    following.join()
    assert json.loads(say(speaker, capsys))["version"] == "4"


def test_another_form_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "xml")
    with pytest.raises(UsageError, match="expected text or json"):
        log_format.wants_json()
    with pytest.raises(SystemExit) as ended:
        app.main(["status"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: VERDICT_LOG is 'xml'; expected text or json\n"


def test_a_command_that_fails_says_so_in_the_form_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "json")
    with pytest.raises(SystemExit):
        app.main(["retrain", "--set", "finetune.epochs"])
    said = json.loads(capsys.readouterr().err)
    assert (said["level"], said["logger"]) == ("ERROR", "verdict")
    assert said["message"].startswith("--set 'finetune.epochs' has no value")


def test_usage_errors_are_one_object_with_the_hint_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_format.FORMAT_VARIABLE, "json")
    with pytest.raises(SystemExit) as ended:
        app.main(["retrain", "--no-such-option"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"].endswith("\nsee: verdict retrain --help")


def test_lines_for_a_terminal_are_wrapped_between_words_and_stay_beside_their_label() -> None:
    text = "reason    the candidate is not better than the champion on these sentences\n/a/path/that/is/longer x\nshort"
    assert wrap_words(text, 30).split("\n") == [
        "reason    the candidate is not",
        "          better than the",
        "          champion on these",
        "          sentences",
        "/a/path/that/is/longer x",
        "short",
    ]
    assert wrap_words("    a description of a setting that is long", 30).split("\n") == [
        "    a description of a setting",
        "    that is long",
    ]
    assert wrap_words("error: /a/path/that/is/longer/than/the/screen is gone", 30).split("\n") == [
        "error:",
        "  /a/path/that/is/longer/than/the/screen",
        "  is gone",
    ]
