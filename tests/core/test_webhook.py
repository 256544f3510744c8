"""Alerts reach a real receiver on loopback, show no secret, and never fail what they tell of."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from outcomes import make_outcome
from registry_store import add_version, new_store
from webhook_receiver import SECRET, Receiver, receiving

from flows import notifications
from flows.commands import review
from tasks.core import webhook
from tasks.core.errors import UsageError
from tasks.core.settings_loader import load_settings
from tasks.registry import promotion


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("VERDICT_ALERT_URL", receiver.url)
        monkeypatch.delenv("VERDICT_ALERT_BLOCK", raising=False)
        yield receiver


def test_a_verdict_alert_has_text_for_people_and_facts_for_programs(receiver: Receiver) -> None:
    notifications.notify_verdict(make_outcome())
    (sent,) = receiver.received
    assert (sent["path"], sent["type"]) == (f"/{SECRET}", "application/json")
    assert sent["text"] == "HOLD: version 4, MCC 0.512: not better; drifted"
    assert sent["verdict"]["event"] == "verdict"
    assert (sent["verdict"]["decision"], sent["verdict"]["version"]) == ("HOLD", "4")
    assert "report" not in sent["verdict"]  # paths stay at home


def test_name_and_password_of_the_address_become_a_header(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_ALERT_URL", receiver.url.replace("://", "://ada:se%40cret:x@"))
    assert webhook.post("text", {})
    (sent,) = receiver.received
    assert (sent["path"], sent["user"]) == (f"/{SECRET}", "Basic " + base64.b64encode(b"ada:se@cret:x").decode())


@pytest.mark.parametrize(("status", "location"), [(500, None), (404, None), (302, "http://127.0.0.1:9/elsewhere")])
def test_a_receiver_that_refuses_is_one_warning_without_the_address(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, location: str | None
) -> None:
    receiver.answer.update(status=status, location=location)
    assert not webhook.post("text", {})
    assert caplog.messages == [f"alert to 127.0.0.1 was not delivered: HTTP {status}"]
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"http://127.0.0.1:9/{SECRET}", "alert to 127.0.0.1 was not delivered: ConnectionRefusedError"),
        ("http://user:secret@127.0.0.1:9/", "alert to 127.0.0.1 was not delivered: "),
        (f"ftp://host/{SECRET}", "alert to the address in VERDICT_ALERT_URL was not delivered: its address does not"),
        (SECRET, "alert to the address in VERDICT_ALERT_URL was not delivered: its address does not start"),
        (f"http://[{SECRET}", "alert to the address in VERDICT_ALERT_URL was not delivered: "),
    ],
)
def test_an_address_that_leads_nowhere_is_one_warning_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str, message: str
) -> None:
    monkeypatch.setenv("VERDICT_ALERT_URL", url)
    assert not webhook.post("text", {})
    (logged,) = caplog.messages
    assert logged.startswith(message)
    assert "secret" not in logged


def test_a_receiver_that_answers_byte_by_byte_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    ended = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            while not ended.wait(0.1):
                connection.send(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,), daemon=True)
        thread.start()
        monkeypatch.setenv("VERDICT_ALERT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}")
        started = time.monotonic()
        assert not webhook.post("text", {})
        assert time.monotonic() - started < 2
        ended.set()
        thread.join(5)
    assert caplog.messages == ["alert to 127.0.0.1 was not delivered: no answer in time"]


def test_without_an_address_nothing_is_sent_and_nothing_said(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VERDICT_ALERT_URL", " ")
    notifications.notify_verdict(make_outcome())
    assert (receiver.received, caplog.messages) == ([], [])


def test_the_address_is_no_setting_that_a_run_would_record(receiver: Receiver) -> None:
    resolved = load_settings("sample", {})
    assert SECRET not in str(resolved.rows())


def test_decisions_of_persons_are_reported(receiver: Receiver, empty_store: Path, tmp_path: Path) -> None:
    store = new_store(empty_store, tmp_path)
    versions = [add_version(store, tmp_path, "a"), add_version(store, tmp_path, "b", verdict="HOLD", compared_with="1")]
    versions.append(add_version(store, tmp_path, "c", verdict="HOLD", compared_with="2"))
    promotion.promote(store, versions[0], kind="promote", expected=None, reason="first")
    review.approve("2", "good", str(tmp_path), "ada")
    review.reject("3", "bad", str(tmp_path), "grace")
    review.rollback(None, "worse", True, str(tmp_path))  # a dry run tells nobody
    review.rollback(None, "worse", False, str(tmp_path))
    texts = [sent["text"] for sent in receiver.received]
    assert texts[:2] == [
        "approve of version 2 by ada: good (champion 1 to 2)",
        "reject of version 3 by grace: bad (champion 2 to 2)",
    ]
    assert texts[2].startswith("rollback of version 1 by ")
    assert [sent["verdict"]["kind"] for sent in receiver.received] == ["approve", "reject", "rollback"]


def test_a_move_stands_where_its_alert_cannot_be_delivered(
    receiver: Receiver, empty_store: Path, tmp_path: Path
) -> None:
    receiver.answer["status"] = 500
    store = new_store(empty_store, tmp_path)
    add_version(store, tmp_path, "a", verdict="HOLD", compared_with="")
    assert review.approve("1", "good", str(tmp_path))["to"] == "1"


def test_a_flow_that_failed_is_reported(receiver: Receiver, prefect_server: str, tmp_path: Path) -> None:
    from flows.jobs.retrain import retrain

    resolved = load_settings("sample", {"data.path": "no/such/folder"}, {})
    with pytest.raises(UsageError):
        retrain(resolved.settings.model_dump(), resolved.origins, str(tmp_path))
    (sent,) = receiver.received
    assert sent["text"].startswith("retrain failed: data 'no/such/folder' does not exist")
    assert sent["verdict"]["event"] == "failure"


def test_a_notification_block_of_prefect_is_notified_too(
    receiver: Receiver, prefect_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name="ops", url=f"{receiver.url}/block", json_data={"text": "{{subject}}: {{body}}"}
    )
    block.save("ops", overwrite=True)
    monkeypatch.delenv("VERDICT_ALERT_URL")
    monkeypatch.setenv("VERDICT_ALERT_BLOCK", "custom-webhook/ops")
    notifications.notify_verdict(make_outcome())
    (sent,) = receiver.received
    assert sent["text"] == "Verdict: HOLD: version 4, MCC 0.512: not better; drifted"
    monkeypatch.setenv("VERDICT_ALERT_BLOCK", "custom-webhook/nobody")
    notifications.notify_verdict(make_outcome())
    assert caplog.messages == ["alert to block custom-webhook/nobody was not delivered: ValueError"]
