"""The Open Inference Protocol, version 2, over REST, which KServe and Triton clients speak.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. One input, `text`
(BYTES, [N] or [N, 1]); outputs, all [N]: `label` (BYTES), `probability` (FP32), that of the label, `truncated` (BOOL),
whether the sentence is longer than the model reads.
"""

import importlib.metadata
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.serving.batcher import BatchReply
from tasks.serving.judge_api import Sentences
from tasks.serving.request_validation import RequestLimits, check_limits, parse_body

INPUT_NAME = "text"
OUTPUT_TYPES = {"label": "BYTES", "probability": "FP32", "truncated": "BOOL"}
SERVER_NAME = "verdict"
MAX_ID_CHARS = 256
STRICT = ConfigDict(strict=True)
INFER_EXAMPLE = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["..."]}]}'


class InputTensor(BaseModel):
    """N sentences; `data` may be flat, or nested like its shape [N, 1]."""

    model_config = STRICT
    name: Literal["text"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=2)]
    parameters: dict[str, Any] | None = None
    data: Sentences

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: list[int]) -> list[int]:
        if shape[1:] not in ([], [1]):
            raise PydanticCustomError("shape", "expected [N] or [N, 1], not {shape}", {"shape": shape})
        return shape

    @field_validator("parameters")
    @classmethod
    def _reject_binary(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and "binary_data_size" in parameters:
            raise PydanticCustomError("binary", "binary tensors are not supported; send data as JSON")
        return parameters

    @field_validator(
        "data",
        mode="before",
        json_schema_input_type=Sentences | list[Annotated[list[str], Field(min_length=1, max_length=1)]],
    )
    @classmethod
    def _flatten(cls, data: Any, info: ValidationInfo) -> Any:
        nested = len(info.data.get("shape", ())) == 2 and isinstance(data, list)
        if nested and all(isinstance(row, list) and len(row) == 1 for row in data):
            return [row[0] for row in data]
        return data

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if len(self.data) != self.shape[0]:
            raise PydanticCustomError(
                "length",
                "data holds {count} strings; expected {size}, as shape says",
                {"count": len(self.data), "size": self.shape[0]},
            )
        return self


class RequestedOutput(BaseModel):
    """An output that the response is to hold."""

    model_config = STRICT
    name: Literal["label", "probability", "truncated"]


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
    def sentences(self) -> list[str]:
        """The sentences of the input tensor."""
        return self.inputs[0].data

    @property
    def output_names(self) -> list[str]:
        """The requested outputs; all where the request names none."""
        return [output.name for output in self.outputs or ()] or list(OUTPUT_TYPES)


class OutputTensor(BaseModel):
    """One value for each sentence."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | list[float] | list[bool]


class InferResponse(BaseModel):
    """An inference response; `id` is that of the request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def describe_server() -> dict[str, Any]:
    """Return the server's metadata."""
    try:
        version = importlib.metadata.version("verdict-mlops")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": SERVER_NAME, "version": version, "extensions": []}


def describe_model(name: str, version: str) -> dict[str, Any]:
    """Return the model's metadata with the one version that answers now."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT_NAME, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": output, "datatype": kind, "shape": [-1]} for output, kind in OUTPUT_TYPES.items()],
    }


def parse_infer_request(body: bytes, limits: RequestLimits) -> InferRequest:
    """Parse an inference request.

    Raises:
        RequestError: 413 too many or too long sentences, 422 otherwise wrong sentences, 400 everything else.
    """
    request = parse_body(body, InferRequest, 400, ("inputs", 0, "data"), INFER_EXAMPLE)
    check_limits(request.sentences, "data", limits)
    return request


def infer_response(name: str, request: InferRequest, reply: BatchReply) -> dict[str, Any]:
    """Return the inference response."""
    columns: dict[str, list[Any]] = {
        "label": [answer["label"] for answer in reply.answers],
        "probability": [answer["probability"] for answer in reply.answers],
        "truncated": [answer["truncated"] for answer in reply.answers],
    }
    response: dict[str, Any] = {"model_name": name, "model_version": reply.version}
    if request.id is not None:
        response["id"] = request.id
    shape = [len(reply.answers)]
    response["outputs"] = [
        {
            "name": output,
            "datatype": OUTPUT_TYPES[output],
            "shape": shape,
            "data": columns[output],
        }
        for output in request.output_names
    ]
    return response
