"""The binary tensor data extension of the Open Inference Protocol: tensors as bytes that follow a body's JSON.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md. Little-endian,
without padding; an element of BYTES is its length (unsigned, 4 bytes) and its content.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tasks.serving.request_validation import RequestError

JSON_LENGTH = "Inference-Header-Content-Length"  # header: bytes of the JSON in front of the tensors
EXTENSION = "binary_tensor_data"  # its name in the server's metadata
MAX_DIGITS = 18  # of a length; Python refuses to convert very long numbers


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON of a request and the tensors behind it.

    Args:
        body: of the request.
        json_length: the header; None where the request has none.

    Raises:
        RequestError: 400 the header does not fit the body.
    """
    if json_length is None:
        return body, b""
    number = json_length.strip()
    length = int(number) if number.isascii() and number.isdecimal() and len(number) <= MAX_DIGITS else 0
    if not 1 <= length <= len(body):
        raise RequestError(
            400, f"{JSON_LENGTH} is {number[:40]!r}; expected the JSON's number of bytes, 1 to the body's {len(body)}"
        )
    return body[:length], body[length:]


def read_strings(tensor: bytes, count: int, field: str) -> list[str]:
    """Return the elements of a BYTES tensor.

    Args:
        tensor: all its bytes.
        count: of elements, as its shape says.
        field: its name for error messages.

    Raises:
        RequestError: 400 it holds more or fewer elements, or others than UTF-8.
    """
    strings, start = [], 0
    for index in range(count):
        left = len(tensor) - start - 4
        if left < 0:
            raise RequestError(400, f"the bytes of {field} end after {index} strings; expected {count}, as shape says")
        (length,) = struct.unpack_from("<I", tensor, start)
        if length > left:
            raise RequestError(400, f"{field}[{index}] has {left} bytes; expected {length}, as the 4 before them say")
        start += 4 + length
        try:
            strings.append(tensor[start - length : start].decode())
        except UnicodeDecodeError as error:
            raise RequestError(400, f"{field}[{index}] is not UTF-8 at byte {error.start}") from None
    if start < len(tensor):
        raise RequestError(
            400, f"{len(tensor) - start} bytes of {field} are left after {count} strings, as many as shape says"
        )
    return strings


def write_tensor(datatype: str, values: Sequence[Any]) -> bytes:
    """Return the bytes of a tensor of BYTES (from strings), FP32 or BOOL."""
    if datatype == "BYTES":
        return b"".join(_length_and_content(values))
    return np.asarray(values, {"FP32": "<f4", "BOOL": "?"}[datatype]).tobytes()


def _length_and_content(strings: Sequence[str]) -> Iterator[bytes]:
    for string in strings:
        content = string.encode()
        yield struct.pack("<I", len(content)) + content
