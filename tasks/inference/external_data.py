"""Rejects ONNX files with external data: tensors in other files would be loaded without a checksum.

Parses the Protocol Buffers wire format (https://protobuf.dev/programming-guides/encoding/) with the field numbers of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, because inference does not depend on the onnx package.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import VerdictError

# For each message type: fields whose message is or contains a tensor, and that message's type.
TENSOR_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor; location 0 means inside the tensor itself
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types


def reject_external_data(path: Path) -> None:
    """Check every tensor of an ONNX file.

    Raises:
        VerdictError: if one refers to another file, or the file is not an ONNX model.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            external = _has_external_tensor(content, 0, len(content), "model")
    except (ValueError, IndexError) as error:
        raise VerdictError(f"{path} is no ONNX model ({error}); fetch it again from the registry") from error
    if external:
        raise VerdictError(f"{path} keeps weights in other files, expected all in one; export it again")


def _has_external_tensor(content: mmap.mmap, start: int, end: int, message: str) -> bool:
    """Return whether the message at bytes [start, end) contains a tensor with external data."""
    for field, wire, first, last in _fields(content, start, end):
        if message == "tensor" and (field == EXTERNAL_DATA or (field == DATA_LOCATION and content[first] != 0)):
            return True
        inner = TENSOR_FIELDS[message].get(field)
        if inner and wire == LENGTH_DELIMITED and _has_external_tensor(content, first, last, inner):
            return True
    return False


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type and byte range [first, last) of each field of a message.

    Raises:
        ValueError: if the bytes are not a message.
    """
    at = start
    while at < end:
        key, at = _varint(content, at)
        wire = key & 7
        first = at
        if wire == VARINT:
            _, last = _varint(content, at)
        elif wire in (FIXED64, FIXED32):
            last = at + (8 if wire == FIXED64 else 4)
        elif wire == LENGTH_DELIMITED:
            length, first = _varint(content, at)
            last = first + length
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if last > end:
            raise ValueError(f"cut off at byte {end}")
        yield key >> 3, wire, first, last
        at = last


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a variable-length integer and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"number without end at byte {at}")
