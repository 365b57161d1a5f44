"""Server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

from pipeinfer.serve.guard import Receive, Scope, Send

UNREAD_S = 60.0
"""A reader who takes nothing for so long is taken for gone."""

END = b"data: [DONE]\n\n"


def data(value: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def comment(text: str) -> bytes:
    """What readers of the stream skip."""
    return f": {' '.join(text.split())}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream of `events`; `close` is called when it ends, whoever ended it: the reader too, at any byte."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], object]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Any) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        try:
            await super().__call__(scope, receive, send_soon)
        except TimeoutError:
            return
        finally:
            self._close()
