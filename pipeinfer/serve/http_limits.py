"""HTTP/1.1 for strangers: a connection that brings no whole request head in time is closed, and so is one too many."""

import asyncio
from typing import Any

import h11
import msgspec
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeinfer.errors import one_line
from pipeinfer.serve.refusal import Refusal

HEAD_S = 10.0
"""From the first byte of a request, or the opening of the connection, to the end of its headers."""

MOST_HEADERS = 16 * 2**10
"""Bytes of a request's line and headers."""

MOST_CONNECTIONS = 128


class LimitedHttp(H11Protocol):
    """uvicorn waits for headers as long as somebody sends some; a place is worth more than that."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            refusal = Refusal(503, f"{MOST_CONNECTIONS} connections are open already: try again later")
            self.app = JSONResponse(refusal.body, refusal.status, {"connection": "close", "retry-after": "1"})
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the shape of every other refusal."""
        body = msgspec.json.encode(Refusal(400, one_line(msg)).body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]  # fmt: skip
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        events = (answer, h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join([self.conn.send(event) or b"" for event in events]))
        self.transport.close()

    def _wait(self) -> None:
        """Give it so long where it is its turn to send a head. An idle connection is closed by uvicorn, and sooner."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
