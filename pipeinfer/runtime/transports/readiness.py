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
        seconds = max(seconds, 0.0)
        if self._epoll is not None:
            ready = self._epoll.poll(seconds, len(self._handlers))
        else:
            ready = self._poller.poll(1000 * seconds)
        for fd, events in ready:
            handler = self._handlers.get(fd)
            # Who was told before may have closed it; a new one with its descriptor is then told in vain.
            if handler is not None:
                handler((events | READ | WRITE) if events & _BROKEN else events)

    def fileno(self) -> int:
        """Readable while there are events. Only where there is epoll."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None:
            self._epoll.close()
