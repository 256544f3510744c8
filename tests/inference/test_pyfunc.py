"""A registered version through MLflow, as downstream systems load it: pyfunc, onnx, the scoring server."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from registered import make_champion_store
from toy import SIGN

from tasks.core.errors import UsageError
from tasks.inference.classifier import Classifier
from tasks.inference.pyfunc import REGISTERED_META, _load_pyfunc, read_sentence_input, registered_version
from tasks.inference.sessions import has_gpu

CHAMPION = "models:/acceptability@champion"
GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"
LABELS = ["acceptable", "unacceptable"]


@pytest.fixture(scope="module")
def store(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlflow.db, in which the champion is version 1."""
    return make_champion_store(tmp_path_factory.mktemp("pyfunc"), empty_store, exported)


@pytest.fixture
def chosen(store: Path, monkeypatch: pytest.MonkeyPatch, own_mlflow_address: None) -> str:
    """MLflow looks into that store; returns the champion's address."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # loading a model adds its code's folder
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{store}/mlflow.db")
    return CHAMPION


@pytest.fixture
def model(chosen: str) -> Any:
    return mlflow.pyfunc.load_model(chosen, model_config={"device": "cpu"})


INPUTS = {
    "list": [GOOD, BAD],
    "tuple": (GOOD, BAD),
    "array": np.array([GOOD, BAD]),
    "array of objects": np.array([GOOD, BAD], dtype=object),
    "array [N, 1]": np.array([[GOOD], [BAD]]),
    "series": pd.Series([GOOD, BAD]),
    "series of objects": pd.Series([GOOD, BAD], dtype=object, name="comment"),
    "frame": pd.DataFrame({"sentence": [GOOD, BAD]}),
    "text after others": pd.DataFrame({"id": [1, 2], "author": ["x", "y"], "text": [GOOD, BAD]}),
    "sentence before text": pd.DataFrame({"text": ["x", "y"], "sentence": [GOOD, BAD]}),
    "the only strings": pd.DataFrame({"id": [1, 2], "comment": [GOOD, BAD], "score": [0.5, None]}),
    "the only column": pd.DataFrame({"comment": [GOOD, BAD]}),
    "columns of arrays": {"sentence": np.array([GOOD, BAD])},
    "columns of lists": {"id": [1, 2], "sentence": [GOOD, BAD]},
}


@pytest.mark.parametrize("name", INPUTS)
def test_sentences_come_in_any_form_and_answers_carry_the_version(model: Any, name: str) -> None:
    answers = model.predict(INPUTS[name])
    assert list(answers.columns) == ["label", "probability", "truncated", "version"]
    assert answers["label"].tolist() == LABELS
    assert answers["version"].tolist() == ["1", "1"]
    assert all(0.5 <= probability <= 1 for probability in answers["probability"])


def test_answers_equal_those_of_the_classifier(model: Any, exported: Any) -> None:
    sentences = [GOOD, "", BAD, "🙂 the\u200dcat\n", "a" * 10_000]
    expected = Classifier.from_bundle(exported["bundle"], "cpu").predict(sentences)
    answers = model.predict(sentences)
    assert answers["label"].tolist() == [answer["label"] for answer in expected]
    assert answers["probability"].tolist() == [answer["probability"] for answer in expected]


def test_answers_keep_the_index_of_the_input(model: Any) -> None:
    frame = pd.DataFrame({"sentence": [BAD, GOOD]}, index=["x", "y"])
    assert frame.join(model.predict(frame))["label"].to_dict() == {"x": "unacceptable", "y": "acceptable"}


@pytest.mark.parametrize("nothing", [[], pd.DataFrame({"sentence": []}), np.array([], dtype=str)])
def test_no_sentences_give_no_rows(model: Any, nothing: Any) -> None:
    answers = model.predict(nothing)
    assert list(answers.columns) == ["label", "probability", "truncated", "version"]
    assert len(answers) == 0


def test_a_single_string_is_one_sentence() -> None:
    assert read_sentence_input(GOOD) == ([GOOD], None)
    assert read_sentence_input(np.array(GOOD)) == ([GOOD], None)
    assert read_sentence_input({"sentence": GOOD})[0] == [GOOD]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"of the columns \['a', 'b'\], 2 could hold the sentences"),
        (pd.DataFrame({"a": [1], "b": [2]}), "0 could hold the sentences; expected one, named sentence or text"),
        (pd.DataFrame([["x", "y"]], columns=["sentence", "sentence"]), "1 could hold the sentences"),
        (pd.DataFrame(), "0 could hold the sentences"),
        (np.array([["x", "y"]]), r"input is an array of shape \(1, 2\); expected \[N\] or \[N, 1\]"),
        ({"a": ["x", "y", "z"], "b": ["x", "y"]}, r"columns \['a', 'b'\] have different lengths"),
        (7, "input is of type int; expected a list of sentences or a data frame"),
        (None, "input is of type NoneType"),
    ],
)
def test_input_without_a_clear_text_column_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_sentence_input(given)


@pytest.mark.parametrize("given", [[None], [3], [b"bytes"], pd.DataFrame({"sentence": ["x", None]}), [["x"]]])
def test_items_that_are_no_strings_are_refused(model: Any, given: Any) -> None:
    with pytest.raises(Exception, match="expected strings") as caught:
        model.predict(given)
    assert type(caught.value).__name__ == "VerdictError"  # of the model's own code


def test_the_signature_says_what_comes_out_and_leaves_the_input_to_the_model(model: Any) -> None:
    signature = model.metadata.signature
    assert signature.inputs is None
    written = {column.name: column.type.to_pandas() for column in signature.outputs.inputs}
    answers = model.predict(model.input_example)
    assert list(written) == list(answers.columns)
    assert answers["probability"].dtype == written["probability"]
    assert all(isinstance(value, str) for name in ("label", "version") for value in answers[name])


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_an_error(chosen: str) -> None:
    with pytest.raises(Exception, match="runs on the CPU only"):
        mlflow.pyfunc.load_model(chosen, model_config={"device": "cuda"})


@pytest.mark.skipif(not has_gpu(), reason="this machine has no GPU")
def test_cuda_runs_on_the_gpu(chosen: str) -> None:
    model = mlflow.pyfunc.load_model(chosen, model_config={"device": "cuda"})
    assert model._model_impl.classifier.provider == "CUDAExecutionProvider"
    assert model.predict([GOOD, BAD])["label"].tolist() == LABELS


def test_an_unknown_device_is_refused(chosen: str) -> None:
    with pytest.raises(Exception, match="device 'tpu' is unknown; expected one of auto, cuda, cpu"):
        mlflow.pyfunc.load_model(chosen, model_config={"device": "tpu"})


def test_the_device_is_auto_by_default(chosen: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    classifier = type(model._model_impl.classifier)  # of the model's own code
    real = classifier.from_bundle
    monkeypatch.setattr(
        classifier, "from_bundle", lambda path, device, expected: devices.append(device) or real(path, "cpu")
    )
    mlflow.pyfunc.load_model(chosen)
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"device": "cuda"}')  # set by MLflow's scoring server
    mlflow.pyfunc.load_model(chosen)
    assert devices == ["auto", "cuda"]


def test_a_bundle_that_is_not_registered_answers_with_its_digest(exported: Any) -> None:
    answers = _load_pyfunc(exported["bundle"], {"device": "cpu"}).predict([GOOD])
    assert answers["version"].tolist() == [f"sha256:{exported['digest'][:12]}"]


@pytest.mark.parametrize(
    ("content", "expected"), [("model_version: '7'\n", "7"), ("model_version: 7\n", "7"), ("", None)]
)
def test_the_registered_version_is_read_from_the_file_that_mlflow_writes(
    tmp_path: Path, content: str, expected: str | None
) -> None:
    assert registered_version(tmp_path) is None
    (tmp_path / REGISTERED_META).write_text(content)
    assert registered_version(tmp_path) == expected


def test_a_damaged_model_is_refused(store: Path, chosen: str, tmp_path: Path) -> None:
    fetched = Path(mlflow.artifacts.download_artifacts(chosen, dst_path=str(tmp_path)))
    (fetched / "data" / "bundle" / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match=r"tokenizer\.json does not match its SHA-256 in bundle.json"):
        mlflow.pyfunc.load_model(str(fetched))


def test_the_graph_loads_through_the_onnx_flavor(chosen: str) -> None:
    graph = mlflow.onnx.load_model(chosen)
    assert {entry.key for entry in graph.metadata_props} >= {"labels", "encoder", "dataset"}
    assert [output.name for output in graph.graph.output] == ["logits"]


@pytest.fixture
def server(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """What `mlflow models serve` runs, in this process; tests/services/test_models_serve.py starts the command."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # it sets that itself, for good
    with TestClient(scoring_server.init(model)) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["id", "sentence"], "data": [[1, GOOD], [2, BAD]]}},
        {"dataframe_records": [{"text": GOOD}, {"text": BAD}]},
        {"inputs": [GOOD, BAD]},
        {"inputs": {"sentence": [GOOD, BAD]}},
        {"instances": [{"sentence": GOOD}, {"sentence": BAD}]},
    ],
    ids=lambda body: "-".join(body),
)
def test_mlflows_scoring_server_answers(server: TestClient, body: dict[str, Any]) -> None:
    answer = server.post("/invocations", json=body)
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert [row["label"] for row in predictions] == LABELS
    assert [row["version"] for row in predictions] == ["1", "1"]
    assert all(0.5 <= row["probability"] <= 1 for row in predictions)


@pytest.mark.parametrize(
    "body",
    [
        '{"sentences": ["x"]}',
        "no JSON",
        "[]",
        '{"dataframe_split": {"columns": ["a", "b"], "data": [["x", "y"]]}}',
        '{"dataframe_split": {"columns": ["sentence"], "data": [[null]]}}',
        '{"inputs": [1, 2]}',
        '{"inputs": [["x", "y"]]}',
    ],
)
def test_mlflows_scoring_server_refuses_what_holds_no_sentences(server: TestClient, body: str) -> None:
    answer = server.post("/invocations", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
