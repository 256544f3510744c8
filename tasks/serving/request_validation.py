"""What a request may hold, checked while it is read: sizes first, then JSON, then sentences.

Every refusal is one line that names the limit and repeats nothing of what was sent but a number.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tasks.core.errors import VerdictError

MAX_DRAIN_BYTES = 64 << 20  # bytes that are read and thrown away so that the client gets to read why it is refused


@dataclass(frozen=True)
class RequestLimits:
    """What one request may hold."""

    body: int = 8 << 20
    """bytes"""
    sentences: int = 1_000
    characters: int = 10_000
    """of one sentence; the model reads a few hundred tokens of it"""
    seconds: float = 30.0
    """that a body may take to arrive"""


class RequestError(VerdictError):
    """A request that cannot be answered; `status` is HTTP's code."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


async def read_body(chunks: AsyncIterator[bytes], headers: dict[str, str], limits: RequestLimits) -> Any:
    """Read a JSON body, giving up as soon as it is known to be too long.

    Args:
        chunks: the body as it arrives.
        headers: of the request, names in small letters.
        limits: what it may hold.

    Raises:
        Refused: 413 too long, 415 packed, 408 too slow, 400 no JSON.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "the body is packed (Content-Encoding); send it plain")
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
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise RequestError(
            400, f'the body is no JSON ({reason}); expected for example {{"sentences": ["..."]}}'
        ) from None


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


def parse_sentences(body: Any, limits: RequestLimits) -> list[str]:
    """Return the sentences of {"sentences": [...]}.

    Raises:
        Refused: 422.
    """
    if not isinstance(body, dict) or "sentences" not in body:
        raise RequestError(422, 'the body has no field "sentences"; expected {"sentences": ["..."]}')
    return check_sentences(body["sentences"], "sentences", limits)


def check_sentences(values: Any, field: str, limits: RequestLimits) -> list[str]:
    """Return sentences that are within the limits.

    Args:
        values: any JSON value.
        field: what the request calls it.
        limits: what it may hold.

    Raises:
        Refused: 413 too many or too long, 422 everything else.
    """
    if not isinstance(values, list):
        raise RequestError(422, f"{field} is a {_kind(values)}; expected a list of strings")
    if not values:
        raise RequestError(422, f"{field} is empty; expected 1 to {limits.sentences} strings")
    if len(values) > limits.sentences:
        raise RequestError(
            413, f"{field} holds {len(values)} sentences; at most {limits.sentences} are taken at a time"
        )
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise RequestError(422, f"{field}[{place}] is a {_kind(value)}; expected a string")
        if len(value) > limits.characters:
            raise RequestError(
                413, f"{field}[{place}] has {len(value)} characters; a sentence may have {limits.characters}"
            )
        if not _is_text(value):
            raise RequestError(
                422, f"{field}[{place}] holds half of a surrogate pair, which is no character; expected text"
            )
    return values


def _is_text(value: str) -> bool:
    """Tell whether a string can be written as UTF-8; JSON can escape halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    """Name a JSON value's type as JSON does."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
