"""The web server: uvicorn on a socket that is open before any rank is started."""

import ipaddress
import logging
import socket
from collections.abc import Callable

import uvicorn

from pipeinfer.serve.app import application
from pipeinfer.serve.handlers import Handlers
from pipeinfer.serve.http_limits import MOST_HEADERS, LimitedHttp

LEAVE_S = 5
"""Seconds that requests under way have to end when the server is told to."""


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """A socket bound there. Raises ValueError for an address that others reach where there is no key for them, and
    OSError where it cannot be had."""
    if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
        raise ValueError("--api-key: expected printable ASCII characters")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as problem:
        raise ValueError(f"--host {host}: {problem.strerror}") from None
    family, _, _, _, address = found[0]
    if key is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(f"--host {host} is reached from other machines: give them a key with --api-key, or listen on"
                         " 127.0.0.1")  # fmt: skip
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as problem:
        opened.close()
        raise OSError(problem.errno, f"cannot listen on {host}:{port}: {problem.strerror}") from None
    return opened


def url(opened: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if opened.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Tells the endpoint when it is about to end, and somebody when it has started."""

    def __init__(self, handlers: Handlers, *, key: str | None, started: Callable[[], object]) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(uvicorn.Config(
            application(handlers, key=key), http=LimitedHttp, ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
            h11_max_incomplete_event_size=MOST_HEADERS, timeout_graceful_shutdown=LEAVE_S,
        ))  # fmt: skip
        self._handlers = handlers
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._handlers.closing.set()
        await super().shutdown(sockets)
