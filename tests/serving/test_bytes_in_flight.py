"""Large bodies are refused while others are in flight; small ones pass; answers are written as they are read."""

import asyncio
from typing import Any

import pytest

from tasks.serving.bytes_in_flight import PIECE, SMALL_BODY, BytesInFlight
from tasks.serving.request_validation import RequestError

LARGE = 2 * SMALL_BODY  # bytes


class Reader:
    """An application that reads a body and answers it with itself, once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body + message["body"]})


async def post(app: BytesInFlight, body: bytes) -> list[Any]:
    """Send a body in two parts; return what is answered."""
    half = len(body) // 2
    parts = [{"body": body[half:], "more_body": False}, {"body": body[:half], "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", **parts.pop()}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http"}, receive, send)
    return sent


def test_large_bodies_are_refused_while_too_many_bytes_are_in_flight_and_small_ones_pass() -> None:
    async def run() -> None:
        reader = Reader()
        app = BytesInFlight(reader, body=LARGE, total=LARGE + SMALL_BODY)
        first = asyncio.create_task(post(app, b"x" * LARGE))
        small = [asyncio.create_task(post(app, b"x" * SMALL_BODY)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="bytes of requests are in flight; try again in 1 s") as refused:
            await post(app, b"x" * LARGE)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        reader.may_answer.set()
        await asyncio.gather(first, *small)
        assert len(await post(app, b"x" * LARGE)) == 1 + LARGE // PIECE
        assert app._held == 0

    asyncio.run(run())


def test_discarded_bytes_of_an_oversized_body_do_not_count_as_in_flight() -> None:
    async def run() -> None:
        reader = Reader()
        app = BytesInFlight(reader, body=LARGE, total=2 * LARGE)
        oversized = asyncio.create_task(post(app, b"x" * 4 * LARGE))
        await asyncio.sleep(0)
        second = asyncio.create_task(post(app, b"x" * LARGE))
        await asyncio.sleep(0)
        reader.may_answer.set()
        for task in (oversized, second):
            assert (await task)[0]["status"] == 200
        assert app._held == 0

    asyncio.run(run())


@pytest.mark.parametrize("length", [0, 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5])
def test_a_long_answer_is_sent_in_pieces(length: int) -> None:
    body = (b"0123456789" * (length // 10 + 1))[:length]

    async def run() -> list[Any]:
        reader = Reader()
        reader.may_answer.set()
        return await post(BytesInFlight(reader, body=length), body)

    _, *pieces = asyncio.run(run())
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(len(piece["body"]) <= PIECE for piece in pieces)
