"""Sockets that wait to be read or written, each with whom to tell: `selectors`, with less of Python between the system
and him."""

import select
import socket
from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT
"""As epoll has them too."""

Handler = Callable[[int], None]
"""Told of the events on one socket: READ, WRITE or both, each also where it is broken."""

_BROKEN = ~(READ | WRITE)


class Readiness:
    """epoll where the system has it, else poll."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poller = self._epoll or select.poll()

    def register(self, connection: socket.socket, events: int, handler: Handler) -> None:
        """Tell `handler` of these events from now on."""
        self._poller.register(connection, events)
        self._handlers[connection.fileno()] = handler

    def modify(self, connection: socket.socket, events: int) -> None:
        """Tell of these events instead."""
        self._poller.modify(connection, events)

    def unregister(self, connection: socket.socket) -> None:
        """Tell nobody any more. Before the socket is closed."""
        del self._handlers[connection.fileno()]
        self._poller.unregister(connection)

    def attend(self, seconds: float) -> None:
        """Sleep until there are events, at most so long where that is more than nothing, and tell of them."""
        ready = self._wait(seconds if seconds > 0 else 0)
        # Who is told may close others, and a new one may get its descriptor.
        told = [(self._handlers[fd], events) for fd, events in ready if fd in self._handlers]
        for handler, events in told:
            handler((events | READ | WRITE) if events & _BROKEN else events)

    def fileno(self) -> int:
        """Readable while there are events. Only where there is epoll."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None:
            self._epoll.close()

    def _wait(self, seconds: float) -> list[tuple[int, int]]:
        """Descriptors and what is with them."""
        if self._epoll is not None:
            return self._epoll.poll(seconds, len(self._handlers))
        return self._poller.poll(1000 * seconds)
