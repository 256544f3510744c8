"""Sentences longer than the model reads: reported by every interface, and refused where that is wanted."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from http_server import GOOD, free_port, running_server
from prometheus_client.parser import text_string_to_metric_families

from tasks.core.errors import VerdictError
from tasks.data.sentences import open_source
from tasks.data.snapshots import QUARANTINE_SCHEMA
from tasks.inference.classifier import Classifier
from tasks.serving import demo_page
from tasks.serving.batch_scoring import score_to_file, score_to_stream
from tasks.serving.batcher import Batcher
from tasks.serving.champion import Champion
from tasks.serving.part_merge import PartMerger
from tasks.serving.request_validation import RequestLimits
from tasks.serving.score_parts import SCORE_SCHEMA, Scorer

ROOT = Path(__file__).parents[2]
INFER = "/v2/models/acceptability/infer"
LONG = " ".join(["cat"] * 15)  # 17 tokens; the bundle reads 16
TEXTS = [GOOD, LONG, "the dog", LONG]
TRUNCATED = [False, True, False, True]
FAULT = "has more tokens than the 16 that the model reads; shorten or split it, or start the server without --refuse"


@pytest.fixture(scope="module")
def client(champion: Champion) -> Iterator[httpx.Client]:
    with running_server(champion) as client:
        yield client


@pytest.fixture(scope="module")
def refusing(champion: Champion) -> Iterator[httpx.Client]:
    with running_server(champion, RequestLimits(refuse_truncated=True)) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(exported: Any) -> Scorer:
    return Scorer(Classifier.from_bundle(exported["bundle"], "cpu"), "7")


def tensor(texts: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}


def counted(client: httpx.Client, name: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def write(folder: Path, texts: list[str]) -> Path:
    path = folder / "in.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_the_champion_says_it(champion: Champion) -> None:
    assert [answer["truncated"] for answer in champion.predict(TEXTS)] == TRUNCATED


def test_both_interfaces_and_the_metrics_say_it(client: httpx.Client) -> None:
    before = counted(client, "verdict_truncated_sentences_total")
    judged = client.post("/v1/judge", json={"sentences": TEXTS}).json()
    assert [entry["truncated"] for entry in judged["predictions"]] == TRUNCATED
    outputs = client.post(INFER, json=tensor(TEXTS)).json()["outputs"]
    assert outputs[2] == {"name": "truncated", "datatype": "BOOL", "shape": [4], "data": TRUNCATED}
    (only,) = client.post(INFER, json=tensor(TEXTS) | {"outputs": [{"name": "truncated"}]}).json()["outputs"]
    assert only == outputs[2]
    assert counted(client, "verdict_truncated_sentences_total") == before + 6


def test_the_counter_is_there_before_anything_was_truncated(champion: Champion) -> None:
    with running_server(champion) as client:
        client.post("/v1/judge", json={"sentences": [GOOD]})
        assert 'verdict_truncated_sentences_total{version="' in client.get("/metrics").text
        assert counted(client, "verdict_truncated_sentences_total") == 0


def test_openapi_describes_the_field_and_the_option(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    entry = document["components"]["schemas"]["JudgedSentence"]
    assert entry["properties"]["truncated"]["type"] == "boolean"
    assert "truncated" in entry["required"]


def test_a_server_that_refuses_names_the_sentence_and_what_to_do(refusing: httpx.Client) -> None:
    before = counted(refusing, "verdict_truncated_sentences_total")
    for answer, field in (
        (refusing.post("/v1/judge", json={"sentences": TEXTS}), "sentences"),
        (refusing.post(INFER, json=tensor(TEXTS)), "data"),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(f"{field}[1] {FAULT}")
    assert counted(refusing, "verdict_truncated_sentences_total") == before + 4


def test_the_command_serves_with_that_option(exported: Any, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["--model", exported["bundle"], "--device", "cpu", "--no-page", "--refuse-truncated"]
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.app", "serve", "--port", str(port), *arguments],
        cwd=ROOT,
        env=os.environ | {"VERDICT_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert "serving" in server.stdout.readline()
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/judge", json={"sentences": [LONG]}, timeout=30)
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert answer.status_code == 422


def test_a_server_that_refuses_answers_what_fits(refusing: httpx.Client) -> None:
    answer = refusing.post("/v1/judge", json={"sentences": [GOOD, "cat " * 14]})
    assert [entry["truncated"] for entry in answer.json()["predictions"]] == [False, False]


def test_the_page_has_a_note_at_that_sentence_only(champion: Champion) -> None:
    batcher = Batcher(champion.current)
    try:
        reply = batcher.submit(TEXTS).result(10)
    finally:
        batcher.close()
    note = "Only the beginning was judged: the model reads 16 tokens of a sentence."
    items = demo_page.show(reply).split("<li")[1:]
    assert [note in item for item in items] == TRUNCATED


def test_scores_have_a_column_and_a_count(tmp_path: Path, scorer: Scorer) -> None:
    outcome = score_to_file(open_source(str(write(tmp_path, TEXTS))), tmp_path / "out.parquet", scorer, 3)
    assert (outcome["rows_in"], outcome["scored"], outcome["truncated"], outcome["quarantined"]) == (4, 4, 2, 0)
    scores = pq.read_table(tmp_path / "out.parquet")
    assert scores.schema == SCORE_SCHEMA
    assert scores.schema.field("truncated").type == pa.bool_()
    assert scores["truncated"].to_pylist() == TRUNCATED


def test_json_lines_say_it_for_every_answer(tmp_path: Path, scorer: Scorer) -> None:
    sink = io.StringIO()
    outcome = score_to_stream(open_source(str(write(tmp_path, [*TEXTS, ""]))), sink, scorer)
    lines = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["truncated"] for line in lines] == [*TRUNCATED, None]
    assert (outcome["truncated"], outcome["quarantined"]) == (2, 1)


def test_refused_rows_are_quarantined_with_reason_and_text(tmp_path: Path, scorer: Scorer) -> None:
    refusing, out = scorer._replace(refuse_truncated=True), tmp_path / "out.parquet"
    outcome = score_to_file(open_source(str(write(tmp_path, [*TEXTS, ""]))), out, refusing, 3)
    assert (outcome["rows_in"], outcome["scored"], outcome["truncated"], outcome["quarantined"]) == (5, 2, 0, 3)
    assert outcome["reasons"] == {"truncated": 2, "empty sentence": 1}
    assert outcome["examples"][0] == "in.txt line 2: sentence of more than the 16 tokens that the model reads"
    assert pd.read_parquet(out)["line"].tolist() == [1, 3]
    quarantine = pq.read_table(str(outcome["quarantine"]))
    assert quarantine.schema == QUARANTINE_SCHEMA
    assert quarantine.select(["line", "kind", "raw"]).to_pylist() == [
        {"line": 2, "kind": "truncated", "raw": LONG.encode()},
        {"line": 4, "kind": "truncated", "raw": LONG.encode()},
        {"line": 5, "kind": "empty sentence", "raw": b""},
    ]


def test_where_every_row_is_refused_the_error_names_the_option_and_the_file_of_an_earlier_run(
    tmp_path: Path, scorer: Scorer
) -> None:
    source, out = open_source(str(write(tmp_path, [LONG, LONG]))), tmp_path / "out.parquet"
    refusing = scorer._replace(refuse_truncated=True)
    advice = r"quarantine\.parquet, or score them without --refuse-truncated"
    with pytest.raises(VerdictError, match=rf"none of 2 rows could be scored: 2 truncated; .*{advice}$"):
        score_to_file(source, out, refusing)
    assert score_to_file(source, out, scorer)["scored"] == 2
    with pytest.raises(VerdictError, match=rf"{advice}; .*out\.parquet is of an earlier run$"):
        score_to_file(source, out, refusing)
    assert len(pd.read_parquet(out)) == 2


def test_the_option_is_part_of_what_a_part_belongs_to_and_reused_parts_are_counted_alike(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = open_source(str(write(tmp_path, TEXTS * 3))), tmp_path / "out.parquet"

    def fail(*_: Any) -> None:
        raise OSError(28, "no space")

    def interrupted(by: Scorer) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PartMerger, "publish", fail)
            with pytest.raises(VerdictError, match="no space left"):
                score_to_file(source, out, by, 4)

    for by in (scorer, scorer._replace(refuse_truncated=True)):
        interrupted(by)  # leaves its parts
        resumed = score_to_file(source, out, by, 4)
        assert resumed["reused"] == 12
        assert resumed["truncated"] == (0 if by.refuse_truncated else 6)
        assert resumed["reasons"] == ({"truncated": 6} if by.refuse_truncated else {})
        assert len(pd.read_parquet(out)) == resumed["scored"] == 12 - resumed["quarantined"]
    interrupted(scorer)
    assert score_to_file(source, out, scorer._replace(refuse_truncated=True), 4)["reused"] == 0
