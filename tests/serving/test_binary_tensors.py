"""Tensors as bytes, as Triton's own client sends them by default and as broken clients do."""

import asyncio
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from http_server import BAD, GOOD, running_server

from tasks.serving.binary_tensors import JSON_LENGTH, read_strings, write_tensor
from tasks.serving.champion import Champion
from tasks.serving.open_inference import parse_infer_request
from tasks.serving.request_validation import RequestError, RequestLimits

MODEL = "acceptability"
INFER = f"/v2/models/{MODEL}/infer"
LIMITS = RequestLimits(body=20_000, sentences=100, characters=2_000)


@pytest.fixture(scope="module")
def client(champion: Champion) -> Iterator[httpx.Client]:
    with running_server(champion, LIMITS) as client:
        yield client


@pytest.fixture(scope="module")
def single(client: httpx.Client) -> list[float]:
    """The probabilities of GOOD and BAD, as JSON has them."""
    answer = client.post("/v1/judge", json={"sentences": [GOOD, BAD]}).json()
    return [entry["probability"] for entry in answer["predictions"]]


@pytest.fixture
def remote(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as remote:
        yield remote


def text(sentences: Any, binary: bool = True) -> list[triton.InferInput]:
    values = np.array(sentences, dtype=object)
    tensor = triton.InferInput("text", list(values.shape), "BYTES")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return [tensor]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("sentences", [[GOOD, BAD], [[GOOD], [BAD]]])
def test_tritons_client_is_answered(
    remote: triton.InferenceServerClient, champion: Champion, single: list[float], sentences: Any, binary: bool
) -> None:
    version = champion.current().version
    for chosen in ({}, {"model_version": version}):
        answer = remote.infer(MODEL, text(sentences, binary), request_id="7", **chosen)
        assert (answer.get_response()["id"], answer.get_response()["model_version"]) == ("7", version)
        assert all(set(output) == {"name", "datatype", "shape", "parameters"} for output in answer._result["outputs"])
        assert answer.as_numpy("label").tolist() == [b"acceptable", b"unacceptable"]
        assert answer.as_numpy("probability").tolist() == np.float32(single).tolist()
        assert answer.as_numpy("truncated").tolist() == [False, False]
    assert remote.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert remote.is_model_ready(MODEL, version)


def test_tritons_client_chooses_form_and_order_of_outputs(remote: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput(*one) for one in (("truncated",), ("label", False), ("probability",))]
    answer = remote.infer(MODEL, text(["日本語 \x00", "", GOOD]), outputs=wanted)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["truncated", "label", "probability"]
    assert ["data" in output for output in answer.get_response()["outputs"]] == [False, True, False]
    assert [answer.as_numpy(name).shape for name in ("truncated", "label", "probability")] == [(3,)] * 3
    assert answer.as_numpy("label")[2] == "acceptable"


def test_tritons_asynchronous_client_is_answered(client: httpx.Client) -> None:
    async def ask() -> list[bytes]:
        async with triton_aio.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as remote:
            return list((await remote.infer(MODEL, text([GOOD, BAD]))).as_numpy("label"))

    assert asyncio.run(ask()) == [b"acceptable", b"unacceptable"]


@pytest.mark.parametrize(
    ("model", "sentences", "chosen", "status", "message"),
    [
        ("grammar", [GOOD], {}, "404", "model 'grammar' is not served; expected 'acceptability'"),
        (MODEL, [GOOD], {"model_version": "9"}, "404", "version '9' is not served"),
        (MODEL, [GOOD] * 101, {}, "413", "inputs[0] holds 101 sentences; expected at most 100"),
        (MODEL, ["a", "x" * 2_001], {}, "413", "data[1] has 2001 characters; expected at most 2000"),
        (MODEL, ["x" * 30_000], {}, "413", "the body is longer than 20000 bytes"),
        (
            MODEL,
            [GOOD],
            {"outputs": [triton.InferRequestedOutput("label", class_count=2)]},
            "400",
            "outputs[0].parameters: classification is not supported; leave it out",
        ),
    ],
)
def test_tritons_client_reads_why_it_is_refused(
    remote: triton.InferenceServerClient, model: str, sentences: Any, chosen: Any, status: str, message: str
) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        remote.infer(model, text(sentences), **chosen)
    assert (refused.value.status(), refused.value.message()[: len(message)]) == (status, message)


def body(tensor: bytes, size: Any = None, shape: Any = (1,), **changes: Any) -> tuple[bytes, int]:
    """Return a request of bytes and the length of its JSON."""
    parameters = {"binary_data_size": len(tensor) if size is None else size}
    request = {"name": "text", "datatype": "BYTES", "shape": list(shape), "parameters": parameters} | changes
    head = json.dumps({"inputs": [request]}).encode()
    return head + tensor, len(head)


ONE = struct.pack("<I", 3) + b"abc"
MINUS_ONE = struct.pack("<i", -1) + b"abc"


@pytest.mark.parametrize(
    ("request_body", "json_length", "message"),
    [
        (body(ONE), "", f"{JSON_LENGTH} is ''; expected the JSON's number of bytes, 1 to the body's "),
        (body(ONE), "-5", f"{JSON_LENGTH} is '-5'; expected"),
        (body(ONE), "0", f"{JSON_LENGTH} is '0'; expected"),
        (body(ONE), "1_0", f"{JSON_LENGTH} is '1_0'; expected"),
        (body(ONE), "9" * 5_000, f"{JSON_LENGTH} is '{'9' * 40}'; expected"),
        (body(ONE), "5000", f"{JSON_LENGTH} is '5000'; expected"),
        (body(ONE), "20", "the body is not valid JSON (EOF while parsing"),
        (body(ONE), None, "the body is not valid JSON (trailing characters"),
        (body(b"", 7), None, "0 bytes follow the JSON; expected 7, as binary_data_size says (the JSON's own length"),
        (body(ONE, 6), ..., "7 bytes follow the JSON; expected 6, as binary_data_size says"),
        (body(ONE, 8), ..., "7 bytes follow the JSON; expected 8, as binary_data_size says"),
        (body(ONE, -7), ..., "inputs[0].parameters.binary_data_size is -7; expected greater than or equal to 0"),
        (body(ONE, shape=[10**4_000]), ..., "inputs[0].shape[0] is a number of 4001 characters; expected less than"),
        (body(ONE, "7"), ..., "inputs[0].parameters.binary_data_size is '7'; expected a valid integer"),
        (
            body(ONE, 10**30),
            ...,
            "inputs[0].parameters.binary_data_size is 1000000000000000000000000000000; expected less",
        ),
        (body(ONE, parameters={}), ..., "inputs[0]: expected either data or the parameter binary_data_size"),
        (body(ONE, data=["a"]), ..., "inputs[0]: expected either data or the parameter binary_data_size"),
        (body(ONE, data=["a"], parameters={}), ..., "7 bytes follow the JSON; expected 0, as binary_data_size says"),
        (body(ONE, shape=[2]), ..., "the bytes of data end after 1 strings; expected 2, as shape says"),
        (body(ONE + b"\0\0\0", shape=[2, 1]), ..., "the bytes of data end after 1 strings; expected 2"),
        (body(ONE + ONE), ..., "7 bytes of data are left after 1 strings, as many as shape says"),
        (body(ONE[:-1]), ..., "data[0] has 2 bytes; expected 3, as the 4 before them say"),
        (body(MINUS_ONE), ..., "data[0] has 3 bytes; expected 4294967295, as the 4 before them say"),
        (body(ONE + struct.pack("<I", 2) + b"\xc3\x28", shape=[2]), ..., "data[1] is not UTF-8 at byte 0"),
        (
            body(ONE, parameters={"shared_memory_region": "a", "shared_memory_byte_size": 9}),
            ...,
            "inputs[0].parameters: shared_memory_region is not supported; leave it out",
        ),
    ],
)
def test_broken_bytes_are_rejected_in_one_line(
    client: httpx.Client, request_body: tuple[bytes, int], json_length: Any, message: str
) -> None:
    content, length = request_body
    length_sent = str(length) if json_length is ... else json_length
    answer = client.post(INFER, content=content, headers={} if length_sent is None else {JSON_LENGTH: length_sent})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    error = answer.json()["error"]
    assert error.startswith(message)
    assert len(error) < 300
    assert "\n" not in error


def test_bytes_that_are_read_stay_within_the_limits() -> None:
    with pytest.raises(RequestError, match=r"inputs\[0\] holds 1000000000000 sentences; expected at most 1000"):
        parse_infer_request(*_with_length(body(ONE, shape=[10**12])))
    with pytest.raises(RequestError, match=r"inputs\[0\] holds no sentence; expected at least 1"):
        parse_infer_request(*_with_length(body(b"", shape=[0])))


def _with_length(request: tuple[bytes, int]) -> tuple[bytes, RequestLimits, str]:
    return request[0], RequestLimits(), str(request[1])


def test_strings_are_read_as_they_were_written() -> None:
    strings = ["", "a", "日本語\x00", "\U0001f600" * 100]
    assert read_strings(write_tensor("BYTES", strings), 4, "data") == strings
    assert write_tensor("FP32", [0.5, 1.0]) == struct.pack("<2f", 0.5, 1.0)
    assert write_tensor("BOOL", [True, False]) == b"\1\0"
