"""The server as clients see it: a real one on loopback, real models, a real registry."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_server import (
    BAD,
    DAMAGED,
    GOOD,
    RegistryHome,
    copy_registry_home,
    free_port,
    running_server,
    wait_until,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flows.cli import app as cli
from tasks.core.errors import UsageError, VerdictError
from tasks.inference.bundle import CHAMPION_URI
from tasks.serving.batcher import Batcher, BatcherClosed
from tasks.serving.champion import Champion
from tasks.serving.host_names import AllowedHosts
from tasks.serving.judge_api import JudgeResponse, parse_judge_request
from tasks.serving.open_inference import InferResponse, parse_infer_request
from tasks.serving.request_validation import MAX_DRAIN_BYTES, RequestError, RequestLimits
from tasks.serving.server import bind_socket

ROOT = Path(__file__).parents[2]
INFER = "/v2/models/acceptability/infer"
SMALL = RequestLimits(body=100_000, sentences=1_000, characters=2_000, seconds=0.5)
# The command with a model that takes 0.3 s for each batch.
SLOW = """
import time
from tasks.inference.classifier import Classifier
real = Classifier.predict
Classifier.predict = lambda self, *given: (time.sleep(0.3), real(self, *given))[1]
from flows.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def client(champion: Champion) -> Iterator[httpx.Client]:
    with running_server(champion, SMALL) as client:
        yield client


@pytest.fixture
def home(original_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegistryHome:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy_registry_home(original_home, tmp_path / "home")


def tensor(data: Any, **changes: Any) -> dict[str, Any]:
    """Return an inference request, its tensor changed by name."""
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(data)], "data": data} | changes]}


def figures(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Return every sample of /metrics, by name and label values, which come in the order of their names."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_sentences_are_judged_and_every_answer_carries_the_version(client: httpx.Client, exported: Any) -> None:
    answer = client.post("/v1/judge", json={"sentences": [GOOD, BAD, GOOD]}).json()
    assert answer["version"] == f"sha256:{exported['digest'][:12]}"
    assert [entry["label"] for entry in answer["predictions"]] == ["acceptable", "unacceptable", "acceptable"]
    assert [entry["sentence"] for entry in answer["predictions"]] == [GOOD, BAD, GOOD]
    assert {entry["version"] for entry in answer["predictions"]} == {answer["version"]}
    assert all(0.5 <= entry["probability"] <= 1 for entry in answer["predictions"])


@pytest.mark.parametrize("sentence", ["", " ", "\u0000", "\u202eabc\U0001f600", "日本語", "a\tb\nc", "x" * 2_000])
def test_any_text_is_answered_as_it_was_sent(client: httpx.Client, sentence: str) -> None:
    (entry,) = client.post("/v1/judge", json={"sentences": [sentence]}).json()["predictions"]
    assert entry["sentence"] == sentence


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("", 400, "the body is not valid JSON (EOF while parsing"),
        ("{", 400, "the body is not valid JSON"),
        (b"\xff\xfe\xff", 400, "the body is not valid JSON"),
        ("[" * 90_000, 400, "the body is not valid JSON"),
        ("9" * 90_000, 400, "the body is not valid JSON"),
        ('{"sentences": ["\\u12zz"]}', 400, "the body is not valid JSON (invalid escape"),
        ("[]", 422, "the body is an array; expected an object"),
        ("{}", 422, 'sentences is missing; expected for example {"sentences": ["..."]}'),
        ("null", 422, "the body is null; expected an object"),
        ({"sentences": []}, 422, "sentences: List should have at least 1 item, not 0"),
        ({"sentences": "one"}, 422, "sentences is 'one'; expected a valid array"),
        ({"sentences": "x" * 9_000}, 422, "sentences is a string of 9002 characters; expected a valid array"),
        ({"sentences": {"a": 1}}, 422, "sentences is an object; expected a valid array"),
        ({"sentences": [GOOD, 3]}, 422, "sentences[1] is 3; expected a valid string"),
        ({"sentences": [None]}, 422, "sentences[0] is null; expected a valid string"),
        ({"sentences": [["x" * 50_000]]}, 422, "sentences[0] is an array; expected a valid string"),
        ('{"sentences": ["\\ud800"]}', 422, "the body holds half of a surrogate pair"),
        ('{"sentences": ["\\udc00 a"]}', 422, "the body holds half of a surrogate pair"),
        ('{"sentences": ["\\ud800\\u0041"]}', 422, "the body holds half of a surrogate pair"),
        ({"sentences": ["a"] * 1_001}, 413, "sentences holds 1001 sentences; expected at most 1000"),
        ({"sentences": ["a"] * 10_000}, 413, "sentences holds 10000 sentences; expected at most 1000"),
        ({"sentences": ["x" * 2_001]}, 413, "sentences[0] has 2001 characters; expected at most 2000"),
        ({"sentences": ["x" * 10_000_000]}, 413, "the body is longer than 100000 bytes"),
    ],
)
def test_an_invalid_request_is_rejected_in_one_line(client: httpx.Client, body: Any, code: int, message: str) -> None:
    answer = client.post("/v1/judge", content=json.dumps(body) if isinstance(body, dict) else body)
    assert answer.status_code == code
    (text,) = answer.json().values()
    assert message in text
    assert "\n" not in text
    assert len(text) < 300  # what was sent is not sent back
    assert client.post("/v1/judge", json={"sentences": [GOOD]}).status_code == 200


def test_a_body_without_a_length_is_counted_while_it_is_read(client: httpx.Client) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_DRAIN_BYTES // 1_000_000 * 4):
            sent.append(1)
            yield b"x" * 1_000_000

    with contextlib.suppress(httpx.TransportError):  # the server hangs up on who does not stop
        assert client.post("/v1/judge", content=endless()).status_code == 413
    assert len(sent) < MAX_DRAIN_BYTES // 1_000_000 * 3


def test_a_huge_content_length_is_rejected_before_the_body_is_read(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive_is_a_timeout(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /v1/judge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 408 ")


def test_a_compressed_body_is_rejected(client: httpx.Client) -> None:
    answer = client.post("/v1/judge", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "send it uncompressed" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nowhere", 404), ("GET", "/v1/judge", 405), ("POST", "/v1/judge/", 404)]
)
def test_wrong_addresses_answer_json_too(client: httpx.Client, method: str, path: str, code: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == code
    assert answer.json()["error"].endswith("see: GET /")


def test_the_root_names_the_documentation(client: httpx.Client) -> None:
    assert client.get("/").json()["documentation"] == "/openapi.json"
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [("localhost", 200), ("LOCALHOST.:1", 200), ("127.0.0.1:99", 200), ("[::1]:8080", 200), ("own.example", 421)]
    + [(host, 421) for host in ("", "10.0.0.7", "localhost.evil.example", "evil@localhost", "localhost/", "[::2]")],
)
def test_only_requests_for_its_own_names_are_answered(client: httpx.Client, host: str, code: int) -> None:
    answer = client.post("/v1/judge", json={"sentences": [GOOD]}, headers={"host": host})
    assert answer.status_code == code
    if code == 421:
        assert "start it with --allowed-host NAME" in answer.json()["error"]
    for probe in ("/healthz", "/readyz", "/v2/health/ready", "/metrics"):
        assert client.get(probe, headers={"host": host}).status_code == 200


def test_host_names_of_a_wildcard_address_and_of_allowed_domains() -> None:
    hosts = AllowedHosts("0.0.0.0", ("verdict.example", "*.svc"))
    for host in ("10.0.0.7:8080", "[fd00::7]:8080", "verdict.example", "a.b.svc:80", "Localhost"):
        assert host in hosts
    for host in ("svc", "evil.example", "xsvc", "a.verdict.example", "10.0.0.7.evil.example"):
        assert host not in hosts
    assert "evil.example" in AllowedHosts("127.0.0.1", ("*",))
    for name in ("http://a.example", "a.example:80", "a.*", "", "*.*.example", "a b"):
        with pytest.raises(UsageError, match="expected a host name without scheme and port"):
            AllowedHosts("127.0.0.1", (name,))


def test_no_page_of_the_api_loads_anything_from_a_foreign_host(client: httpx.Client) -> None:
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404


def test_openapi_describes_the_bodies_that_are_parsed_and_answered(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert used <= schemas.keys()
    assert schemas["JudgeRequest"]["required"] == ["sentences"]
    sentences = schemas["JudgeRequest"]["properties"]["sentences"]
    assert (sentences["items"], sentences["minItems"], sentences["maxItems"]) == ({"type": "string"}, 1, 1_000)
    assert schemas["InputTensor"]["required"] == ["name", "datatype", "shape"]
    for path, request, answer, response in (
        ("/v1/judge", "JudgeRequest", "JudgeResponse", JudgeResponse),
        ("/v2/models/{name}/infer", "InferRequest", "InferResponse", InferResponse),
    ):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{request}"}
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{answer}")
        assert {"400", "413", "422", "429", "503"} <= operation["responses"].keys()
        found = client.post(path.format(name="acceptability"), json=schemas[request]["example"])
        assert response.model_validate(found.json(), strict=True).model_dump(exclude_none=True) == found.json()
    assert client.get("/openapi.json").json() == document


def test_readiness_names_the_version(client: httpx.Client, champion: Champion) -> None:
    assert client.get("/healthz").json() == {"live": True}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["version"]) == (200, champion.current().version)


def test_the_protocol_describes_server_and_model(client: httpx.Client, champion: Champion) -> None:
    version = champion.current().version
    assert set(client.get("/v2").json()) == {"name", "version", "extensions"}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json()["ready"] is True
    described = {
        "name": "acceptability",
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1]},
            {"name": "truncated", "datatype": "BOOL", "shape": [-1]},
        ],
    }
    for path in ("/v2/models/acceptability", f"/v2/models/acceptability/versions/{version}"):
        assert client.get(path).json() == described
        assert client.get(f"{path}/ready").json() == {"name": "acceptability", "ready": True}


@pytest.mark.parametrize(
    ("shape", "data"),
    [(shape, data) for shape in ([2], [2, 1]) for data in ([GOOD, BAD], [[GOOD], [BAD]])],
)
def test_the_protocol_answers_with_tensors(client: httpx.Client, champion: Champion, shape: Any, data: Any) -> None:
    version = champion.current().version
    body = {"id": "42", "parameters": {}} | tensor(data, shape=shape)
    for path in (INFER, f"/v2/models/acceptability/versions/{version}/infer"):
        answer = client.post(path, json=body).json()
        assert list(answer) == ["model_name", "model_version", "id", "outputs"]
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("acceptability", version, "42")
        label, probability, truncated = answer["outputs"]
        assert label == {
            "name": "label",
            "datatype": "BYTES",
            "shape": [2],
            "data": ["acceptable", "unacceptable"],
        }
        assert (probability["name"], probability["datatype"], probability["shape"]) == ("probability", "FP32", [2])
        assert all(0.5 <= value <= 1 for value in probability["data"])
        assert truncated == {"name": "truncated", "datatype": "BOOL", "shape": [2], "data": [False, False]}


def test_the_protocol_returns_only_the_requested_outputs(client: httpx.Client) -> None:
    answer = client.post(INFER, json=tensor([GOOD]) | {"outputs": [{"name": "probability"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["probability"]
    assert "id" not in answer


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ([], 400, "the body is an array; expected an object"),
        ({}, 400, 'inputs is missing; expected for example {"inputs": [{"name": "text"'),
        ({"inputs": []}, 400, "inputs: List should have at least 1 item, not 0"),
        ({"inputs": tensor([GOOD])["inputs"] * 2}, 400, "inputs: List should have at most 1 item, not 2"),
        ({"inputs": [1]}, 400, "inputs[0] is 1; expected an object"),
        (tensor([GOOD], name="input_ids"), 400, "inputs[0].name is 'input_ids'; expected 'text'"),
        (tensor([GOOD], datatype="FP32"), 400, "inputs[0].datatype is 'FP32'; expected 'BYTES'"),
        (tensor([GOOD], shape=[2]), 400, "inputs[0]: data holds 1 strings; expected 2, as shape says"),
        (tensor([GOOD], shape=[1, 2]), 400, "inputs[0].shape: expected [N] or [N, 1], not [1, 2]"),
        (tensor([GOOD], shape=[-1]), 400, "inputs[0].shape[0] is -1; expected greater than or equal to 0"),
        (tensor([GOOD], shape=[True]), 400, "inputs[0].shape[0] is a boolean; expected a valid integer"),
        (tensor([GOOD], shape="1"), 400, "inputs[0].shape is '1'; expected a valid array"),
        (tensor([1]), 422, "inputs[0].data[0] is 1; expected a valid string"),
        (tensor([[GOOD, BAD]]), 422, "inputs[0].data[0] is an array; expected a valid string"),
        (tensor([]), 422, "inputs[0].data: List should have at least 1 item, not 0"),
        (tensor(["a"] * 1_001), 413, "data holds 1001 sentences; expected at most 1000"),
        (tensor([GOOD]) | {"id": 5}, 400, "id is 5; expected a valid string"),
        (tensor([GOOD]) | {"id": "x" * 300}, 400, "id: String should have at most 256 characters"),
        (tensor([GOOD]) | {"id": "a\n"}, 400, "id: expected printable characters"),
        (
            tensor([GOOD]) | {"outputs": [{"name": "logits"}]},
            400,
            "outputs[0].name is 'logits'; expected 'label', 'probability' or",
        ),
        (tensor([GOOD]) | {"outputs": 3}, 400, "outputs is 3; expected a valid array"),
        (tensor([GOOD]) | {"outputs": [{"name": "label"}] * 2}, 400, "outputs: expected each output once"),
    ],
)
def test_the_protocol_rejects_invalid_requests_in_one_line(
    client: httpx.Client, body: Any, code: int, message: str
) -> None:
    answer = client.post(INFER, json=body)
    assert answer.status_code == code
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


names = st.sampled_from(["inputs", "outputs", "id", "name", "text", "label", "datatype", "BYTES", "shape", "data"])
atoms = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=3) | names
documents = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=12
)


@given(documents | st.fixed_dictionaries({"inputs": st.lists(st.dictionaries(names, documents), max_size=1)}))
@settings(max_examples=60, deadline=None)
def test_any_json_is_parsed_or_rejected(body: Any) -> None:
    for parse in (parse_infer_request, parse_judge_request):
        rejections = []
        try:
            parse(json.dumps(body).encode(), SMALL)  # type: ignore[operator]
        except RequestError as error:
            rejections.append((400 <= error.status < 500, len(str(error)) < 300))
        assert rejections in ([], [(True, True)])


def test_other_models_and_versions_are_404(client: httpx.Client) -> None:
    for path in ("grammar/infer", "acceptability/versions/9/infer"):
        answer = client.post(f"/v2/models/{path}", json=tensor([GOOD]))
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert client.get("/v2/models/acceptability/versions/9").status_code == 404
    assert client.get("/v2/models/acceptability/versions/9/ready").status_code == 404
    assert client.get("/v2/models/grammar/ready").status_code == 404


def test_metrics_count_what_happened(champion: Champion) -> None:
    with running_server(champion) as client:
        client.post("/v1/judge", json={"sentences": [GOOD] * 5})
        client.post("/v1/judge", json={"sentences": []})
        client.get("/v2/models/acceptability/versions/77")
        client.get("/nowhere")
        seen = figures(client)
    version, digest = champion.current().version, champion.current().digest
    assert seen["verdict_requests_total", "200", "/v1/judge"] == 1
    assert seen["verdict_requests_total", "422", "/v1/judge"] == 1
    assert seen["verdict_requests_total", "404", "/v2/models/{name}/versions/{version}"] == 1
    assert seen["verdict_requests_total", "404", "unknown"] == 1
    assert seen["verdict_request_seconds_count", "/v1/judge"] == 2
    assert seen["verdict_sentences_total", version] == 5
    assert (seen["verdict_batch_sentences_count",], seen["verdict_batch_sentences_sum",]) == (1, 5)
    assert (seen["verdict_queue_sentences",], seen["verdict_model_ready",]) == (0, 1)
    assert seen["verdict_model_info", digest, champion.model, "CPUExecutionProvider", version] == 1
    assert (seen["verdict_refresh_failures_total",], seen["verdict_model_moves_total",]) == (0, 0)


def test_requests_that_wait_together_share_a_batch(champion: Champion) -> None:
    with running_server(champion, slow=0.2, max_batch=8) as client, ThreadPoolExecutor(20) as pool:
        requests = [[f"{GOOD} {number}"] * (1 + number % 3) for number in range(20)]
        answers = list(pool.map(lambda one: client.post("/v1/judge", json={"sentences": one}).json(), requests))
        seen = figures(client)
    assert [[entry["sentence"] for entry in answer["predictions"]] for answer in answers] == requests
    assert seen["verdict_batch_sentences_sum",] == sum(len(one) for one in requests)
    assert seen["verdict_batch_sentences_count",] < 12
    assert seen["verdict_batch_sentences_bucket", "8.0"] == seen["verdict_batch_sentences_count",]


def test_a_full_queue_is_429_with_retry_after(champion: Champion) -> None:
    with running_server(champion, slow=0.3, max_batch=4, capacity=80) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/judge", json={"sentences": [GOOD, BAD]}), range(20)))
        # A request that is longer than the queue is answered all the same once nothing waits.
        assert client.post("/v1/judge", json={"sentences": [GOOD] * 20}).status_code == 200
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert all(answer.headers["Connection"] == "close" for answer in refused)  # it would not be kept as long
    assert "tokens wait, at most 80 may; try again in" in refused[0].json()["error"]


def test_short_requests_pass_a_long_one_which_is_computed_piece_by_piece(champion: Champion) -> None:
    with running_server(champion, slow=0.1, max_batch=4) as client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, "/v1/judge", json={"sentences": [f"{GOOD} {i}" for i in range(50)]})
        wait_until(lambda: figures(client)["verdict_batch_sentences_count",])
        for _ in range(3):
            assert client.post("/v1/judge", json={"sentences": [GOOD, BAD]}).status_code == 200
            assert not long.done()
        predictions = long.result().json()["predictions"]
        seen = figures(client)
    assert [entry["sentence"] for entry in predictions] == [f"{GOOD} {i}" for i in range(50)]
    assert seen["verdict_batch_sentences_bucket", "4.0"] == seen["verdict_batch_sentences_count",] == 13 + 3


def test_the_pieces_of_a_request_are_answered_by_one_version() -> None:
    class Version:
        max_length = 80

        def __init__(self, version: str) -> None:
            self.version = version

        def predict(self, sentences: list[str]) -> Any:
            served.append(Version("2"))
            return [{"version": self.version, "truncated": False} for _ in sentences]

    served = [Version("1")]
    batcher = Batcher(lambda: served[-1], max_batch=2)  # type: ignore[arg-type,return-value]
    reply = batcher.submit([GOOD] * 9).result(10)
    assert (reply.version, {answer["version"] for answer in reply.answers}, len(reply.answers)) == ("1", {"1"}, 9)
    assert batcher.submit([GOOD]).result(10).version == "2"
    batcher.close()


def test_long_sentences_are_divided_by_their_tokens() -> None:
    class Counted:
        version, max_length = "1", 80

        def predict(self, sentences: list[str]) -> Any:
            batches.append(len(sentences))
            if len(batches) == 5:
                raise VerdictError("a fault")
            return [{"truncated": True} for _ in sentences]

    batches: list[int] = []
    batcher = Batcher(lambda: Counted(), max_batch=8)  # type: ignore[arg-type,return-value]
    assert len(batcher.submit(["word " * 2_000] * 10).result(10).answers) == 10
    assert batches == [3, 3, 3, 1]
    with pytest.raises(VerdictError, match="a fault"):
        batcher.submit(["word " * 2_000] * 10).result(10)
    assert len(batcher.submit([GOOD] * 9).result(10).answers) == 9
    batcher.close()


def test_a_request_that_fails_does_not_fail_others_of_its_batch(champion: Champion) -> None:
    class Picky:
        version, max_length = "1", 80

        def predict(self, sentences: list[str]) -> Any:
            if "poison" in sentences:
                raise RuntimeError("a fault")
            return champion.current().predict(sentences)

    batcher = Batcher(lambda: Picky(), max_wait=0.2)  # type: ignore[arg-type,return-value]
    futures = [batcher.submit([text]) for text in (GOOD, "poison", BAD)]
    assert [answer["label"] for i in (0, 2) for answer in futures[i].result(10).answers] == [
        "acceptable",
        "unacceptable",
    ]
    with pytest.raises(RuntimeError):
        futures[1].result(10)
    batcher.close()
    with pytest.raises(BatcherClosed):
        batcher.submit([GOOD])


def test_an_unexpected_exception_is_500_with_one_line_of_json(
    champion: Champion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(champion) as client:
        monkeypatch.setattr(Batcher, "submit", lambda *arguments: 1 / 0)
        answer = client.post("/v1/judge", json={"sentences": [GOOD]})
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "internal error; the server's log has the details"},
    )
    assert [record.getMessage() for record in caplog.records if record.name == "tasks.serving.routes"] == [
        "POST /v1/judge: ZeroDivisionError: division by zero"
    ]


def test_without_a_champion_the_server_answers_503(home: RegistryHome) -> None:
    waiting = Champion.open(CHAMPION_URI, 0.05, "cpu", str(home.folder), require_model=False)
    with waiting as champion, running_server(champion) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/readyz", "/v2/health/ready", "/v2/models/acceptability/ready"):
            assert client.get(path).status_code == 503
        answer = client.post("/v1/judge", json={"sentences": [GOOD]})
        assert (answer.status_code, "there is no champion yet" in answer.json()["error"]) == (503, True)
        assert figures(client)["verdict_model_ready",] == 0
        home.set_champion("1")
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/judge", json={"sentences": [GOOD]}).json()["version"] == "1"


def test_the_champion_moves_while_clients_ask_and_no_request_fails(home: RegistryHome) -> None:
    home.set_champion("1")
    stop = threading.Event()

    def ask(number: int) -> list[tuple[int, str]]:
        seen = []
        with httpx.Client(base_url=client.base_url, timeout=30) as mine:
            while not stop.is_set():
                answer = mine.post("/v1/judge", json={"sentences": [GOOD] * (1 + number % 5)})
                versions = {entry["version"] for entry in answer.json()["predictions"]}
                assert versions == {answer.json()["version"]}
                seen.append((answer.status_code, answer.json()["version"]))
        return seen

    following = Champion.open(CHAMPION_URI, 0.05, "cpu", str(home.folder))
    with following as champion, running_server(champion) as client, ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(ask, number) for number in range(20)]
        try:
            for version in ("2", "1", "2"):
                time.sleep(0.3)
                home.set_champion(version)
                wait_until(lambda version=version: champion.status()["version"] == version)
            home.set_champion(DAMAGED)
            wait_until(lambda: champion.status()["failures"])
            (home.folder / "mlflow.db").unlink()
            wait_until(lambda: "is missing" in str(champion.status()["problem"]))
            time.sleep(0.3)
            assert client.get("/readyz").json()["version"] == "2"
            assert figures(client)["verdict_refresh_failures_total",] >= 2
        finally:
            stop.set()
        seen = [one for each in asking for one in each.result()]
    assert {code for code, _ in seen} == {200}
    assert {version for _, version in seen} == {"1", "2"}
    assert len(seen) > 100


def test_a_port_in_use_is_an_error_of_bind(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(VerdictError, match=rf"127\.0\.0\.1:{port} cannot be bound \(address already in use\)"):
            bind_socket("127.0.0.1", port)
    with pytest.raises(VerdictError, match=r"203\.0\.113\.7:80 cannot be bound"):
        bind_socket("203.0.113.7", 80)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start the command; return its process and, once it serves, its address."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, command: tuple[str, ...] = ("-m", "flows.cli.app")) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, *command, "serve", "--device", "cpu", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"VERDICT_HOME": str(tmp_path / "home")},
        )
        started.append(process)
        assert process.stdout is not None
        found = re.search(r"(?:none yet|, not signed), on (http://\S+) ", process.stdout.readline())
        return process, found[1] if found else ""

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_signal_lets_requests_in_flight_finish_and_ends_with_0(exported: Any, start: Any) -> None:
    arguments = ("--port", "0", "--max-batch", "1", "--model", exported["bundle"])
    process, address = start(*arguments, command=("-c", SLOW))
    ask = lambda: httpx.post(f"{address}/v1/judge", json={"sentences": [GOOD]}, timeout=30)  # noqa: E731

    def arrived() -> bool:
        """Besides the request that is computed, the four others wait or were answered."""
        seen = figures(client)
        answered = sum(value for (name, *_), value in seen.items() if name == "verdict_sentences_total")
        return answered + seen["verdict_queue_sentences",] >= 4

    with ThreadPoolExecutor(5) as pool, httpx.Client(base_url=address, timeout=30) as client:
        futures = [pool.submit(ask) for _ in range(5)]
        wait_until(arrived)
        process.send_signal(signal.SIGTERM)
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert process.wait(20) == 0
    assert process.stderr.read() == f"{exported['bundle']}: version {answers[0].json()['version']} loaded on " + (
        "CPUExecutionProvider, not signed\nstopped; every request that was accepted before is answered\n"
    )


def test_memory_is_bounded_however_many_large_requests_come(exported: Any, start: Any) -> None:
    process, address = start("--port", "0", "--no-page", "--model", exported["bundle"])
    shown = httpx.get(address, headers={"accept": "text/html"})
    assert shown.headers["content-type"].startswith("application/json")
    body = json.dumps({"sentences": ["the cat sees the dog " * 380] * 1_000}).encode()

    def memory(field: str) -> int:
        """Return the megabytes that the process has, VmRSS, or had at most, VmHWM."""
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        return int(found[1]) >> 10 if found else 0

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{address}/v1/judge", content=body, timeout=60)

    assert httpx.post(f"{address}/v1/judge", json={"sentences": [GOOD] * 64}).status_code == 200
    idle = memory("VmRSS")
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code != 200)
    assert ask(0).status_code == 200
    assert memory("VmHWM") - idle < 300
    assert memory("VmRSS") - idle < 100


def test_an_idle_server_stops_at_once(exported: Any, start: Any) -> None:
    port = free_port()
    process, address = start("--port", str(port), "--model", exported["bundle"])
    assert address == f"http://127.0.0.1:{port}"
    assert httpx.get(f"{address}/readyz").status_code == 200
    process.send_signal(signal.SIGINT)  # the test after this one sends SIGTERM
    assert process.wait(10) == 0


def test_a_server_without_a_champion_starts_says_so_and_stops(tmp_path: Path, start: Any) -> None:
    process, address = start("--port", "0")
    assert httpx.get(f"{address}/readyz").status_code == 503
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert "there is no champion yet" in process.stderr.read()
    assert not (tmp_path / "home").exists()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """Return what the command says as it ends with a code."""
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "--device", "cpu", "--no-page", *arguments])
    assert left.value.code == code
    return capsys.readouterr().err


def test_what_keeps_the_server_from_starting_is_an_error_in_one_line(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "home"))
    error = refusal(capsys, "--port", "0", "--model", str(tmp_path), code=2)
    assert error.startswith(f"error: {tmp_path} is no bundle")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refusal(capsys, "--port", str(port), "--model", exported["bundle"])
    assert error.startswith(f"error: 127.0.0.1:{port} cannot be bound (address already in use); name another")
    assert error.count("\n") == 1
