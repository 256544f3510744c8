"""Reads request bodies: their size is bounded while they arrive, their content is checked by pydantic models.

An error is one line that names the field, what it holds and what is expected. Long strings are never repeated in it.
"""

import asyncio
import codecs
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from tasks.core.errors import VerdictError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_DRAIN_BYTES = 64 << 20  # bytes read and dropped, so that a client that is still sending can read the 413
MAX_REPEATED_CHARS = 40  # of a string or number of the request that an error repeats
# JSON's grammar allows half of a surrogate pair, UTF-8 and the parser do not: the content is wrong, not the syntax.
SURROGATE_ERRORS = ("lone leading surrogate", "unexpected end of hex escape")

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    body: int = 8 << 20
    """bytes"""
    sentences: int = 1_000
    """of one request"""
    characters: int = 10_000
    """of one sentence; the model reads a few hundred tokens of it"""
    refuse_truncated: bool = False
    """refuse requests with a sentence of more tokens than the model reads, instead of judging its beginning"""
    seconds: float = 30.0
    """for a body to arrive"""


class RequestError(VerdictError):
    """A request that cannot be answered; `status` is the HTTP status code."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


async def read_body(chunks: AsyncIterator[bytes], headers: dict[str, str], limits: RequestLimits) -> bytes:
    """Read a body; stop as soon as it is known to be too long.

    Args:
        chunks: the body as it arrives.
        headers: of the request, names in lower case.
        limits: what it may hold.

    Raises:
        RequestError: 413 too long, 415 compressed, 408 too slow.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "the body is compressed (Content-Encoding); send it uncompressed")
    declared = headers.get("content-length", "")
    too_long = RequestError(
        413, f"the body is longer than {limits.body} bytes; send fewer sentences at a time", {"Connection": "close"}
    )
    if declared.isdecimal() and int(declared[:20]) > MAX_DRAIN_BYTES:
        raise too_long
    try:
        async with asyncio.timeout(limits.seconds):
            body = await _read(chunks, limits.body)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not arrive within {limits.seconds:g} s; send it again", {"Connection": "close"}
        ) from None
    if body is None:
        raise too_long
    return body


async def _read(chunks: AsyncIterator[bytes], limit: int) -> bytes | None:
    """Return a body; None for one that is too long, of which nothing is kept."""
    body, length = bytearray(), 0
    async for chunk in chunks:
        length += len(chunk)
        if length > MAX_DRAIN_BYTES:
            return None
        if length > limit:
            body.clear()
        else:
            body += chunk
    return bytes(body) if length <= limit else None


def parse_body(body: bytes, model: type[Model], status: int, sentences: Sequence[str | int], example: str) -> Model:
    """Parse a JSON body into a pydantic model.

    Args:
        body: UTF-8, with or without a byte order mark.
        model: what it has to be.
        status: HTTP status code of a body that is something else.
        sentences: path of the field that holds the sentences, whose errors have the code 422.
        example: of a valid body, for error messages.

    Raises:
        RequestError: 400 no JSON, 422 the sentences, `status` everything else.
    """
    try:
        return model.model_validate_json(body.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            reason = str(first["ctx"]["error"])
            if reason.startswith(SURROGATE_ERRORS):
                raise RequestError(422, f"the body holds half of a surrogate pair ({reason}); expected text") from None
            raise RequestError(400, f"the body is not valid JSON ({reason}); expected for example {example}") from None
        code = 422 if first["loc"][: len(sentences)] == tuple(sentences) else status
        raise RequestError(code, _describe(first, example)) from None


def check_limits(sentences: Sequence[str], field: str, limits: RequestLimits) -> None:
    """Check number and lengths of sentences.

    Raises:
        RequestError: 413 too many or too long.
    """
    check_number(len(sentences), field, limits)
    for index, sentence in enumerate(sentences):
        if len(sentence) > limits.characters:
            raise RequestError(
                413, f"{field}[{index}] has {len(sentence)} characters; expected at most {limits.characters}"
            )


def check_number(sentences: int, field: str, limits: RequestLimits) -> None:
    """Check the number of sentences.

    Raises:
        RequestError: 413 too many, 422 none.
    """
    if sentences > limits.sentences:
        raise RequestError(413, f"{field} holds {sentences} sentences; expected at most {limits.sentences}")
    if not sentences:
        raise RequestError(422, f"{field} holds no sentence; expected at least 1")


def _describe(error: "ErrorDetails", example: str) -> str:
    """Return pydantic's description of an error as a line that names field, value and expectation."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    field = field.removeprefix(".") or "the body"
    message = error["msg"].replace(" after validation", "")
    if error["type"] == "missing":
        return f"{field} is missing; expected for example {example}"
    if message.startswith("Input should be "):
        return f"{field} is {_show(error['input'])}; expected {message.removeprefix('Input should be ')}"
    return f"{field}: {message}"


def _show(value: Any) -> str:
    """Return a JSON value for an error message: its type, or itself where it is a short string or a number."""
    names = {type(None): "null", bool: "a boolean", list: "an array", dict: "an object"}
    if type(value) in names:
        return names[type(value)]
    text = repr(value)
    kind = "string" if isinstance(value, str) else "number"
    return text if len(text) <= MAX_REPEATED_CHARS else f"a {kind} of {len(text)} characters"
