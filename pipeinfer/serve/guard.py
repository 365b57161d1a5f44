"""What every request passes before anything is done for it: host, key, size."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from pipeinfer.serve.refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 2 * 2**20
"""Bytes of a request's body."""

OPEN_PATHS = ("/", "/health")
"""What needs no key: a page without anything of its own, and whether the server lives."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests without the key, if there is one; without a key, those that a browser was led to send here
    under another name than this machine's own (a page elsewhere whose name points to this address)."""

    def __init__(self, app: Application, *, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope), scope["path"])
        except Refusal as refusal:
            response = JSONResponse(refusal.body, refusal.status, refusal.headers)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        if self._key is None:
            self._check_host(headers.get("host", ""))
        elif path not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MOST_BODY:
            raise too_large()

    def _check_host(self, host: str) -> None:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if name not in LOCAL_NAMES:
            raise Refusal(403, "expected a Host of this machine, like localhost: without --api-key the server answers"
                               " to no other name")  # fmt: skip

    def _check_key(self, given: str) -> None:
        assert self._key is not None
        scheme, _, key = given.partition(" ")
        # Both are compared whole, however much of them agrees.
        if not hmac.compare_digest(key.strip().encode(), self._key) or scheme.lower() != "bearer":
            raise Refusal(401, "expected the server's key, as Authorization: Bearer KEY", code="invalid_api_key",
                          headers={"www-authenticate": "Bearer"})  # fmt: skip


def too_large() -> Refusal:
    return Refusal(413, f"expected a body of at most {MOST_BODY} bytes", headers={"connection": "close"})
