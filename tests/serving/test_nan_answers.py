"""A model that gives NaN for some sentences: these have no answer anywhere, and all others have theirs."""

import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from http_server import running_server
from tokenizers import Tokenizer
from toy import facts

from tasks.core.errors import DataRejected, NoAnswer
from tasks.data.sentences import open_source
from tasks.inference.bundle import TOKENIZER, write_manifest
from tasks.inference.classifier import Classifier, _softmax
from tasks.serving.batch_scoring import score_to_file
from tasks.serving.champion import Champion
from tasks.serving.score_parts import Scorer

FINE = ["the cat sees the dog", "the old cat", "here today", "a child"]
BROKEN = "the bird sees"
MESSAGE = "sentence 3 has no answer: the model's variant fp32 gives NaN; expected a probability: leave the sentence out"


@pytest.fixture(scope="module")
def bundle(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The exported bundle, whose embedding of "bird" is NaN."""
    folder = Path(shutil.copytree(exported["bundle"], tmp_path_factory.mktemp("nan") / "bundle"))
    token = Tokenizer.from_file(str(folder / TOKENIZER)).token_to_id("bird")
    graph = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tuple(tensor.dims) == (20, 32))  # of all words
    values = onnx.numpy_helper.to_array(weight).copy()
    values[token] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, folder / "model.onnx")
    write_manifest(folder, facts(max_length=16), {})
    return str(folder)


@pytest.fixture(scope="module")
def client(bundle: str) -> Iterator[httpx.Client]:
    with Champion.open(bundle, 3_600.0, "cpu") as champion, running_server(champion) as client:
        yield client


def test_python_names_the_sentence(bundle: str) -> None:
    classifier = Classifier.from_bundle(bundle, "cpu")
    with pytest.raises(NoAnswer, match=MESSAGE) as raised:
        classifier.predict([*FINE[:2], BROKEN, FINE[2]])
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as processes exchange it
    assert np.isnan(classifier.answer([FINE[0], BROKEN]).probabilities).tolist() == [False, True]


def test_a_sentence_that_shared_its_row_is_answered_alone(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.from_bundle(bundle, "cpu")
    expected = classifier.answer(FINE).probabilities.tolist()
    run = classifier._runner.logits

    def in_one_row(ids: Any, mask: Any) -> Any:
        """Return what a GPU does, where sentences side by side attend to each other with weight 0: 0 * NaN is NaN."""
        logits = run(ids, mask)
        return np.full_like(logits, np.nan) if np.isnan(logits).any() else logits

    monkeypatch.setattr(classifier._runner, "logits", in_one_row)
    found = classifier.answer([*FINE, BROKEN]).probabilities.tolist()
    assert found[:4] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(found[4])
    measured = classifier.probabilities([*FINE, BROKEN])  # what is judged is what is served
    assert np.isfinite(measured).all(axis=1).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [np.inf, np.inf]])
def test_inf_is_no_answer_either(logits: list[float]) -> None:
    found = _softmax(np.array([logits, [1.0, 1.0]], np.float32))
    assert np.isnan(found).tolist() == [[True, True], [False, False]]


def test_scores_have_no_such_row(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in [*FINE[:2], BROKEN, *FINE[2:]]))
    scorer = Scorer(Classifier.from_bundle(bundle, "cpu"), "7")
    result = score_to_file(open_source(str(tmp_path / "in.txt")), tmp_path / "out.parquet", scorer)
    assert (result["scored"], result["reasons"]) == (4, {"no answer": 1})
    assert pq.read_table(tmp_path / "out.parquet")["line"].to_pylist() == [1, 2, 4, 5]
    [row] = pq.read_table(tmp_path / "out.parquet.quarantine.parquet").to_pylist()
    assert (row["line"], row["reason"]) == (3, "the model's variant fp32 gives NaN")
    (tmp_path / "all.txt").write_text(f"{BROKEN}\n{BROKEN} today\n")
    with pytest.raises(DataRejected, match=r"none of 2 rows could be scored: 2 no answer; .*take another version"):
        score_to_file(open_source(str(tmp_path / "all.txt")), tmp_path / "none.parquet", scorer)


def test_requests_beside_it_are_answered_and_its_own_is_an_error_of_one_line(client: httpx.Client) -> None:
    def ask(texts: list[str]) -> httpx.Response:
        return client.post("/v1/judge", json={"sentences": texts})

    texts = [[*FINE[:2], BROKEN], *[[text] for text in FINE]] * 4
    with ThreadPoolExecutor(len(texts)) as clients:
        replies = list(clients.map(ask, texts))
    assert [reply.status_code for reply in replies] == [500, 200, 200, 200, 200] * 4
    assert replies[0].json()["error"].startswith(MESSAGE)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [FINE[0], BROKEN]}
    reply = client.post("/v2/models/acceptability/infer", json={"inputs": [tensor]})
    assert (reply.status_code, reply.json()["error"][:28]) == (500, "sentence 2 has no answer: th")


def test_in_a_long_request_it_is_counted_from_the_beginning(client: httpx.Client) -> None:
    texts = [FINE[0]] * 900 + [BROKEN] + [FINE[1]] * 99
    reply = client.post("/v1/judge", json={"sentences": texts})
    assert (reply.status_code, reply.json()["error"][:30]) == (500, "sentence 901 has no answer: th")
