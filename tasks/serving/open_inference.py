"""The Open Inference Protocol, version 2, over REST: what KServe and Triton clients speak.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. One input, `text`
(BYTES, [N] or [N, 1]); two outputs, `label` (BYTES, [N]) and `probability` (FP32, [N]), the probability of that label.
"""

import importlib.metadata
from typing import Any, NamedTuple

from tasks.serving.batcher import BatchReply
from tasks.serving.request_validation import RequestError, RequestLimits, check_sentences

INPUT_NAME = "text"
OUTPUT_TYPES = {"label": "BYTES", "probability": "FP32"}
SERVER_METADATA = "verdict"
MAX_ID_CHARS = 256  # characters of a request's id


class InferRequest(NamedTuple):
    """An inference request: its id, if it has one, its sentences, the outputs that it wants."""

    id: str | None
    sentences: list[str]
    outputs: list[str]


def describe_server() -> dict[str, Any]:
    """Return the server's metadata."""
    try:
        version = importlib.metadata.version("verdict-mlops")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": SERVER_METADATA, "version": version, "extensions": []}


def describe_model(name: str, version: str) -> dict[str, Any]:
    """Return the model's metadata; the one version that answers now can be asked for."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT_NAME, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": output, "datatype": kind, "shape": [-1]} for output, kind in OUTPUT_TYPES.items()],
    }


def parse_infer_request(body: Any, limits: RequestLimits) -> InferRequest:
    """Read an inference request.

    Raises:
        Refused: 400 where it is not one, 413 and 422 for its sentences.
    """
    if not isinstance(body, dict):
        raise RequestError(400, 'the body is no object; expected {"inputs": [...]}')
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(400, f'inputs has to hold one tensor, {{"name": "{INPUT_NAME}", "datatype": "BYTES", ...}}')
    identity = body.get("id")
    short = isinstance(identity, str) and len(identity) <= MAX_ID_CHARS and identity.isprintable()
    if identity is not None and not short:
        raise RequestError(400, f"id has to be a printable string of at most {MAX_ID_CHARS} characters")
    return InferRequest(identity, _sentences(inputs[0], limits), _requested_outputs(body.get("outputs")))


def _sentences(tensor: dict[str, Any], limits: RequestLimits) -> list[str]:
    """Return the sentences of an input tensor, whose data may be flat or nested like its shape."""
    if tensor.get("name") != INPUT_NAME:
        raise RequestError(400, f"the input is called {INPUT_NAME!r}; see: GET /v2/models/NAME")
    if tensor.get("datatype") != "BYTES":
        raise RequestError(400, f"the datatype of {INPUT_NAME!r} is BYTES, and data holds strings")
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        raise RequestError(400, "binary tensors are not taken; send data as JSON")
    shape, data = tensor.get("shape"), tensor.get("data")
    if (
        not isinstance(shape, list)
        or not all(type(size) is int and size >= 0 for size in shape)
        or len(shape) not in (1, 2)
        or shape[1:] not in ([], [1])
    ):
        raise RequestError(400, f"the shape of {INPUT_NAME!r} is [N] or [N, 1]")
    if isinstance(data, list) and len(shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    sentences = check_sentences(data, "data", limits)
    if len(sentences) != shape[0]:
        raise RequestError(400, f"data holds {len(sentences)} strings, and shape says another number")
    return sentences


def _requested_outputs(outputs: Any) -> list[str]:
    """Return the names of the outputs that are asked for; all where none is named."""
    if outputs is None or outputs == []:
        return list(OUTPUT_TYPES)
    named = outputs if isinstance(outputs, list) else []
    names = [output.get("name") if isinstance(output, dict) else None for output in named[: len(OUTPUT_TYPES) + 1]]
    if (
        not names
        or len(set(map(str, names))) != len(names)
        or not all(name in OUTPUT_TYPES for name in map(str, names))
    ):
        raise RequestError(400, f"outputs may name {' and '.join(OUTPUT_TYPES)}, each once")
    return [str(name) for name in names]


def infer_response(name: str, question: InferRequest, reply: BatchReply) -> dict[str, Any]:
    """Return the inference response."""
    columns: dict[str, list[Any]] = {
        "label": [answer["label"] for answer in reply.answers],
        "probability": [answer["probability"] for answer in reply.answers],
    }
    answer: dict[str, Any] = {"model_name": name, "model_version": reply.version}
    if question.id is not None:
        answer["id"] = question.id
    shape = [len(reply.answers)]
    answer["outputs"] = [
        {"name": output, "datatype": OUTPUT_TYPES[output], "shape": shape, "data": columns[output]}
        for output in question.outputs
    ]
    return answer
