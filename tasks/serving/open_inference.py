"""The Open Inference Protocol, version 2, over REST, which KServe and Triton clients speak.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. One input, `text`
(BYTES, [N] or [N, 1]); outputs, all [N]: `label` (BYTES), `probability` (FP32), that of the label, `truncated` (BOOL),
whether the sentence is longer than the model reads. Tensors are JSON or, as Triton's clients send and ask for them by
default, bytes after the JSON (binary_tensors.py).
"""

import importlib.metadata
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.serving.batcher import BatchReply
from tasks.serving.binary_tensors import EXTENSION, JSON_LENGTH, read_strings, split_body, write_tensor
from tasks.serving.judge_api import Sentences
from tasks.serving.request_validation import RequestError, RequestLimits, check_limits, check_number, parse_body

INPUT_NAME = "text"
OUTPUT_TYPES = {"label": "BYTES", "probability": "FP32", "truncated": "BOOL"}
SERVER_NAME = "verdict"
MAX_ID_CHARS = 256
STRICT = ConfigDict(strict=True)
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
INFER_EXAMPLE = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["..."]}]}'


class InputParameters(BaseModel):
    """Parameters of the input that are understood."""

    model_config = STRICT
    binary_data_size: Count | None = None
    """bytes behind the JSON that hold the sentences, instead of `data`"""


class InputTensor(BaseModel):
    """N sentences; `data` may be flat, or nested like [N, 1], and is absent where they are sent as bytes."""

    model_config = STRICT
    name: Literal["text"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[Count], Field(min_length=1, max_length=2)]
    parameters: InputParameters | None = None
    data: Sentences | None = None

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: list[int]) -> list[int]:
        if shape[1:] not in ([], [1]):
            raise PydanticCustomError("shape", "expected [N] or [N, 1], not {shape}", {"shape": shape})
        return shape

    @field_validator("parameters", mode="before")
    @classmethod
    def _reject_shared_memory(cls, parameters: Any) -> Any:
        return _reject(parameters, "shared_memory_region")

    @field_validator(
        "data",
        mode="before",
        json_schema_input_type=Sentences | list[Annotated[list[str], Field(min_length=1, max_length=1)]] | None,
    )
    @classmethod
    def _flatten(cls, data: Any) -> Any:
        if isinstance(data, list) and all(isinstance(row, list) and len(row) == 1 for row in data):
            return [row[0] for row in data]
        return data

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if (self.data is None) == (self.binary_size is None):
            raise PydanticCustomError("data", "expected either data or the parameter binary_data_size")
        if self.data is not None and len(self.data) != self.shape[0]:
            raise PydanticCustomError(
                "length",
                "data holds {count} strings; expected {size}, as shape says",
                {"count": len(self.data), "size": self.shape[0]},
            )
        return self

    @property
    def binary_size(self) -> int | None:
        """Bytes of the tensor behind the JSON; None where it is JSON itself."""
        return self.parameters.binary_data_size if self.parameters else None


class OutputParameters(BaseModel):
    """Parameters of an output that are understood."""

    model_config = STRICT
    binary_data: bool | None = None
    """send it as bytes behind the JSON"""


class RequestedOutput(BaseModel):
    """An output that the response is to hold."""

    model_config = STRICT
    name: Literal["label", "probability", "truncated"]
    parameters: OutputParameters | None = None

    @field_validator("parameters", mode="before")
    @classmethod
    def _reject_others(cls, parameters: Any) -> Any:
        return _reject(parameters, "shared_memory_region", "classification")


class RequestParameters(BaseModel):
    """Parameters of a request that are understood."""

    model_config = STRICT
    binary_data_output: bool = False
    """send all outputs as bytes whose own parameters do not say otherwise"""


class InferRequest(BaseModel):
    """An inference request."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "example": {
                "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["The child has eaten."]}]
            }
        },
    )
    id: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None
    parameters: RequestParameters | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=len(OUTPUT_TYPES))] | None = None

    @field_validator("id")
    @classmethod
    def _check_printable(cls, identity: str | None) -> str | None:
        if identity is not None and not identity.isprintable():
            raise PydanticCustomError("printable", "expected printable characters")
        return identity

    @field_validator("outputs")
    @classmethod
    def _check_distinct(cls, outputs: list[RequestedOutput] | None) -> list[RequestedOutput] | None:
        if outputs and len({output.name for output in outputs}) != len(outputs):
            raise PydanticCustomError("distinct", "expected each output once")
        return outputs

    @property
    def requested_outputs(self) -> dict[str, bool]:
        """The names of the requested outputs, all where the request names none, and whether each is sent as bytes."""
        default = self.parameters.binary_data_output if self.parameters else False
        if not self.outputs:
            return dict.fromkeys(OUTPUT_TYPES, default)
        own = {output.name: output.parameters.binary_data if output.parameters else None for output in self.outputs}
        return {name: default if binary is None else binary for name, binary in own.items()}


class OutputTensor(BaseModel):
    """One value for each sentence, in `data` or in as many bytes behind the JSON as `parameters` say."""

    name: str
    datatype: str
    shape: list[int]
    parameters: InputParameters | None = None
    data: list[str] | list[float] | list[bool] | None = None


class InferResponse(BaseModel):
    """An inference response; `id` is that of the request."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: Annotated[
        dict[str, str] | None, Field(description="`versions` of the answers, where a canary answered some")
    ] = None
    outputs: list[OutputTensor]


def describe_server() -> dict[str, Any]:
    """Return the server's metadata."""
    try:
        version = importlib.metadata.version("verdict-mlops")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": SERVER_NAME, "version": version, "extensions": [EXTENSION]}


def describe_model(name: str, version: str) -> dict[str, Any]:
    """Return the model's metadata with the one version that answers now."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT_NAME, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": output, "datatype": kind, "shape": [-1]} for output, kind in OUTPUT_TYPES.items()],
    }


def parse_infer_request(
    body: bytes, limits: RequestLimits, json_length: str | None = None
) -> tuple[InferRequest, list[str]]:
    """Parse an inference request.

    Args:
        body: of the request.
        limits: what it may hold.
        json_length: the header that says where the JSON ends; None where the request has none.

    Returns:
        It and its sentences.

    Raises:
        RequestError: 413 too many or too long sentences, 422 otherwise wrong ones in the JSON, 400 everything else.
    """
    text, tensors = split_body(body, json_length)
    request = parse_body(text, InferRequest, 400, ("inputs", 0, "data"), INFER_EXAMPLE)
    tensor = request.inputs[0]
    if len(tensors) != (tensor.binary_size or 0):
        raise RequestError(
            400,
            f"{len(tensors)} bytes follow the JSON; expected {tensor.binary_size or 0}, as binary_data_size says"
            + (f" (the JSON's own length is sent as {JSON_LENGTH})" if json_length is None else ""),
        )
    sentences = tensor.data
    if sentences is None:
        check_number(tensor.shape[0], "inputs[0]", limits)
        sentences = read_strings(tensors, tensor.shape[0], "data")
    check_limits(sentences, "data", limits)
    return request, sentences


def infer_response(name: str, request: InferRequest, reply: BatchReply) -> tuple[bytes, int | None]:
    """Return the body of an inference response, and the length of its JSON where bytes follow that."""
    response: dict[str, Any] = {"model_name": name, "model_version": reply.version}
    if request.id is not None:
        response["id"] = request.id
    versions = [answer["version"] for answer in reply.answers]
    if len(set(versions)) > 1:
        response["parameters"] = {"versions": ",".join(versions)}
    tensors = []
    response["outputs"] = []
    for output, binary in request.requested_outputs.items():
        values = [answer[output] for answer in reply.answers]  # type: ignore[literal-required]
        described = {"name": output, "datatype": OUTPUT_TYPES[output], "shape": [len(values)]}
        if binary:
            tensors.append(write_tensor(OUTPUT_TYPES[output], values))
            response["outputs"].append(described | {"parameters": {"binary_data_size": len(tensors[-1])}})
        else:
            response["outputs"].append(described | {"data": values})
    text = json.dumps(response, ensure_ascii=False, separators=(",", ":")).encode()
    return b"".join([text, *tensors]), len(text) if tensors else None


def _reject(parameters: Any, *names: str) -> Any:
    """Refuse parameters of extensions that this server lacks, whose answer the client would look for elsewhere."""
    for name in names:
        if isinstance(parameters, dict) and name in parameters:
            raise PydanticCustomError("unsupported", "{name} is not supported; leave it out", {"name": name})
    return parameters
