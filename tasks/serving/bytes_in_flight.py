"""Bounds the memory that requests take together: bodies and answers, from the first byte in to the last one out."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.serving.request_validation import RequestError

# Of all bodies that are read and not answered yet; reading and answering one takes several times its size.
MAX_BYTES_IN_FLIGHT = 32 << 20
SMALL_BODY = 64 << 10  # bytes; such bodies pass, there are as many as connections at most
PIECE = 64 << 10  # bytes of an answer that are written at a time, while the client reads


class BytesInFlight:
    """ASGI middleware that refuses bodies with status 503 while too many bytes are in flight."""

    def __init__(self, app: ASGIApp, body: int, total: int = MAX_BYTES_IN_FLIGHT) -> None:
        """Set the limits.

        Args:
            app: reads the bodies.
            body: bytes of a body that are kept; of a longer one the rest is dropped.
            total: bytes of all bodies.
        """
        self.app, self._body, self._total, self._held = app, body, total, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its body until it is answered."""
        held = 0

        async def count() -> Message:
            nonlocal held
            message = await receive()
            kept = min(len(message.get("body", b"")), self._body - held)
            held, self._held = held + kept, self._held + kept
            if kept and held > SMALL_BODY and self._held > self._total:
                raise RequestError(
                    503, f"over {self._total} bytes of requests are in flight; try again in 1 s", {"Retry-After": "1"}
                )
            return message

        try:
            await self.app(scope, count, _in_pieces(send))
        finally:
            self._held -= held


def _in_pieces(send: Send) -> Send:
    """Return what sends a long answer bit by bit: the server waits for the client before it takes the next piece."""

    async def send_pieces(message: Message) -> None:
        body = message.get("body", b"")
        for start in range(PIECE, len(body), PIECE):
            await send({**message, "body": body[start - PIECE : start], "more_body": True})
        await send({**message, "body": body[(len(body) - 1) // PIECE * PIECE :]} if len(body) > PIECE else message)

    return send_pieces
