"""The request log holds each sampled answer once, in files that are complete whenever one looks, and blocks nothing."""

import datetime
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from http_server import BAD, GOOD, wait_until
from starlette.testclient import TestClient

from tasks.core.errors import UsageError
from tasks.serving import request_log as module
from tasks.serving.batcher import Batcher
from tasks.serving.champion import Champion, ChampionAnswer
from tasks.serving.logged_requests import read_requests
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_log import REQUEST_LOG_SCHEMA, RequestLog, RequestLogConfig, SentenceMode, hash_sentence
from tasks.serving.routes import build_app


def answer(sentence: str, probability: float = 0.9, label: str = "acceptable", version: str = "1") -> ChampionAnswer:
    return ChampionAnswer(sentence=sentence, label=label, probability=probability, truncated=False, version=version)


def write(folder: Path, *answers: ChampionAnswer, **options: Any) -> tuple[int, int]:
    """Log answers; return how many were logged and dropped."""
    counts = [0, 0]
    chosen: dict[str, Any] = {"sample": 1.0, "sentences": "text"} | options
    written = RequestLog(RequestLogConfig(str(folder), **chosen))

    def count(logged: int, dropped: int) -> None:
        counts[0] += logged
        counts[1] += dropped

    written.on_write = count
    for each in answers:
        written.add([each], 0.25)
    written.close()
    return counts[0], counts[1]


def read(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_requests(folder, time.time() - 3_600).to_pylist()
    return rows


def test_a_row_has_the_answer_its_time_and_its_length(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC)
    assert write(tmp_path, answer("The cat sat.", 0.625, "unacceptable", "7")) == (1, 0)
    (row,) = read(tmp_path)
    assert before - datetime.timedelta(seconds=1) <= row.pop("time") <= datetime.datetime.now(datetime.UTC)
    assert row == {
        "version": "7",
        "sentence": "The cat sat.",
        "characters": 12,
        "tokens": None,
        "label": "unacceptable",
        "probability": 0.625,
        "truncated": False,
        "seconds": 0.25,
    }


@pytest.mark.parametrize(
    ("mode", "patterns", "logged"),
    [
        ("text", (), "Ann, a.b@c.org, paid 1,200.50."),
        ("redacted", (), "Ann, <email> paid <number>."),
        ("redacted", ("Ann|Bob",), "<redacted>, <email> paid <number>."),
        ("hashed", (), hash_sentence("Ann, a.b@c.org, paid 1,200.50.")),
        ("off", (), None),
    ],
)
def test_a_sentence_is_logged_redacted_hashed_or_not(
    tmp_path: Path, mode: SentenceMode, patterns: tuple[str, ...], logged: str | None
) -> None:
    write(tmp_path, answer("Ann, a.b@c.org, paid 1,200.50."), sentences=mode, patterns=patterns)
    (row,) = read(tmp_path)
    assert (row["sentence"], row["characters"]) == (logged, 30)


def test_a_long_text_without_the_end_of_an_address_is_redacted_in_no_time(tmp_path: Path) -> None:
    started = time.process_time()
    write(tmp_path, answer("a" * 10_000), answer("1" * 10_000), sentences="redacted")
    assert time.process_time() - started < 2
    assert [len(row["sentence"]) for row in read(tmp_path)] == [module.MAX_LOGGED_CHARACTERS, len("<number>")]


def test_a_sentence_is_in_the_sample_or_not_whenever_and_wherever_it_is_judged(tmp_path: Path) -> None:
    logs = [RequestLog(RequestLogConfig(str(tmp_path / name), sample=0.1)) for name in ("a", "b")]
    chosen = [[log.is_sampled(f"sentence {number}") for number in range(10_000)] for log in logs]
    assert chosen[0] == chosen[1]
    assert 900 < sum(chosen[0]) < 1_100
    for log in logs:
        log.close()
    assert write(tmp_path / "none", answer("Any."), sample=0.0) == (0, 0)


def test_rows_beyond_the_bound_are_dropped_and_counted_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_ROWS", 10)
    counts: list[tuple[int, int]] = []
    log = RequestLog(RequestLogConfig(str(tmp_path), sample=1.0))
    log.on_write = lambda logged, dropped: counts.append((logged, dropped))
    started = time.perf_counter()
    log.add([answer(f"sentence {number}") for number in range(1_000)], 0.1)
    assert time.perf_counter() - started < 0.5
    log.close()
    assert [sum(column) for column in zip(*counts, strict=True)] == [10, 990]
    assert len(read(tmp_path)) == 10


def test_files_are_by_hour_and_parts_are_merged_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [datetime.datetime(2026, 3, 1, 9, 59, tzinfo=datetime.UTC).timestamp()]
    monkeypatch.setattr(module.time, "time", lambda: moment[0])
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    log = RequestLog(RequestLogConfig(str(tmp_path), sample=1.0))

    def kinds() -> list[str]:
        """Hours and endings of the files."""
        paths = sorted(tmp_path.rglob("*.parquet"))
        return [f"{path.parent.name}{''.join(path.suffixes[-2:])}" for path in paths]

    for number in (1, 2):
        log.add([answer(f"sentence {number}")], 0.1)
        wait_until(lambda number=number: len(kinds()) == number)
    assert kinds() == ["2026-03-01T09.00001.parquet", "2026-03-01T09.00002.parquet"]
    moment[0] += 120
    log.add([answer("sentence 3")], 0.1)
    wait_until(lambda: kinds() == ["2026-03-01T09.parquet", "2026-03-01T10.00003.parquet"])
    log.close()
    assert kinds() == ["2026-03-01T09.parquet", "2026-03-01T10.parquet"]
    (merged,) = (tmp_path / "2026-03-01T09").iterdir()
    whole = pq.read_table(merged, partitioning=None)
    assert whole["sentence"].to_pylist() == ["sentence <number>"] * 2
    assert whole.schema.equals(REQUEST_LOG_SCHEMA)


def test_rows_that_come_after_their_hour_was_merged_are_kept_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [datetime.datetime(2026, 3, 1, 9, 59, tzinfo=datetime.UTC).timestamp()]
    monkeypatch.setattr(module.time, "time", lambda: moment[0])
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    log = RequestLog(RequestLogConfig(str(tmp_path), sample=1.0, sentences="text"))
    for sentence, shift, files in (
        ("First.", 0, ["{}.00001.parquet"]),
        ("Of the next hour.", 120, ["{}.parquet"]),  # the first hour is merged by then
        ("Late.", -120, ["{}-1.00003.parquet", "{}.parquet"]),
        ("Later.", 0, ["{}-1.00003.parquet", "{}-1.00004.parquet", "{}.parquet"]),
    ):
        moment[0] += shift
        log.add([answer(sentence)], 0.1)
        expected = [name.format(log._server) for name in files]
        wait_until(lambda expected=expected: sorted(path.name for path in tmp_path.glob("*T09/*")) == expected)
    log.close()
    rows = read_requests(tmp_path, moment[0] - 3_600).to_pylist()
    assert sorted(row["sentence"] for row in rows) == ["First.", "Late.", "Later.", "Of the next hour."]


def test_parts_that_a_killed_server_left_are_read_but_not_those_that_it_had_merged(tmp_path: Path) -> None:
    write(tmp_path, answer("Merged."))
    (hour,) = tmp_path.iterdir()
    (merged,) = hour.iterdir()
    part = merged.with_suffix(".00001.parquet")
    part.write_bytes(merged.read_bytes())
    assert len(read(tmp_path)) == 1
    part.rename(hour / "other-1-abc.00001.parquet")
    (hour / ".other-1-abc.00002.parquet.tmp").write_text("half of a fi")
    assert len(read(tmp_path)) == 2


def test_old_hours_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for days in (1, 3):
        hour = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        (tmp_path / hour.strftime(module.HOUR_FORMAT)).mkdir()
    write(tmp_path, days=2)
    assert len([path for path in tmp_path.iterdir() if module.HOUR_NAME.fullmatch(path.name)]) == 1
    assert (tmp_path / "mine").is_dir()


def test_what_cannot_be_written_is_counted_as_dropped_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: list[tuple[int, int]] = []
    log = RequestLog(RequestLogConfig(str(tmp_path / "log"), sample=1.0))
    (tmp_path / "log").rmdir()
    (tmp_path / "log").write_text("not a folder any more")
    log.on_write = lambda logged, dropped: counts.append((logged, dropped))
    log.add([answer("Any."), answer("Other.")], 0.1)
    log.close()
    assert sum(dropped for _, dropped in counts) == 2
    assert [record.message.count("requests are answered, but not logged") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": ("(",)}, r"pattern '\(' is not valid"),
        ({"patterns": ("a",), "sentences": "text"}, "--request-log-redact is of the mode redacted"),
        ({"folder": "/dev/null/log"}, "requests cannot be logged to /dev/null/log"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RequestLog(RequestLogConfig(**{"folder": str(tmp_path)} | options))


def test_the_server_logs_what_it_answered_and_counts_it(champion: Champion, tmp_path: Path) -> None:
    log = RequestLog(RequestLogConfig(str(tmp_path), sample=1.0))
    batcher = Batcher(champion.current)
    telemetry = ServerMetrics(champion.status, lambda: 0)
    log.on_write, log.count_tokens = telemetry.count_logged, champion.current().classifier.count_tokens
    with TestClient(build_app(champion, batcher, telemetry, request_log=log), base_url="http://localhost") as client:
        answered = client.post("/v1/judge", json={"sentences": [GOOD, BAD]}).json()
        assert client.post("/v1/judge", json={"sentences": []}).status_code == 422
        log.close()
        shown = client.get("/metrics").text
    batcher.close()
    rows = read(tmp_path)
    assert [{name: row[name] for name in answered["predictions"][0]} for row in rows] == answered["predictions"]
    assert all(0 < row["seconds"] < 5 for row in rows)
    assert [row["tokens"] for row in rows] == [len(GOOD.split()) + 2, len(BAD.split()) + 2]
    assert "verdict_request_log_sentences_total 2.0" in shown
    assert "verdict_request_log_dropped_total 0.0" in shown
