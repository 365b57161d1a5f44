"""Connections of a TLS endpoint, and of those our links to peers."""

import errno
import math
import socket
import time
from contextlib import suppress

from pipeinfer.runtime.transports.addresses import family_of
from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.readiness import READ, WRITE, Handler, Readiness
from pipeinfer.runtime.transports.tcp_liveness import is_silent, keep_alive
from pipeinfer.runtime.transports.tls_connection import TlsConnection

AGAIN_S = 0.05
"""The pause before an attempt to connect is repeated."""


class Watched:
    """A connection that is looked after: to be read always, to be written while it holds back something."""

    _handler: Handler

    def __init__(self, readiness: Readiness) -> None:
        self.connection: socket.socket | None = None
        self.tls: TlsConnection | None = None
        self._readiness = readiness
        self._events = 0

    def attend(self, handler: Handler) -> None:
        """From now on tell `handler` what happens."""
        self._handler = handler
        self.watch()

    def watch(self) -> None:
        """Have looked for what matters now."""
        if self.tls is not None:
            events = READ | WRITE if self.tls.unsent else READ
            if events != self._events:
                self._watch(events)

    def is_silent(self, silence_s: float) -> bool:
        """Whether the host at its other end is."""
        return self.connection is not None and is_silent(self.connection, silence_s)

    def close(self) -> None:
        """What the socket took still leaves. Idempotent."""
        if self.connection is not None:
            self._watch(0)
            self.connection.close()
            self.connection = self.tls = None

    def _watch(self, events: int) -> None:
        if events == self._events or self.connection is None:
            return
        if not self._events:
            self._readiness.register(self.connection, events, self._handler)
        elif not events:
            self._readiness.unregister(self.connection)
        else:
            self._readiness.modify(self.connection, events)
        self._events = events


class Link(Watched):
    """Our connection to a peer: tried again until the handshake is done, then open. `queued` is what was sent before.

    `left_s`: how much longer it may take until somebody takes the connection. Who took it may take any time to speak:
    he may be computing.
    """

    def __init__(
        self, readiness: Readiness, handler: Handler, members: Members, where: tuple[str, int], silence_s: float
    ) -> None:
        super().__init__(readiness)
        self._handler = handler
        self.queued: list[tuple[bytes, bytes]] = []
        self.left_s = 0.0
        self.retry_at = math.inf
        self._members = members
        self._where = where
        self._silence_s = silence_s

    @property
    def is_open(self) -> bool:
        """Whether messages can leave on it."""
        return self.tls is not None and self.tls.shaken

    @property
    def unsent(self) -> bool:
        """Whether something waits to leave."""
        return bool(self.queued) or (self.tls is not None and bool(self.tls.unsent))

    def open(self) -> None:
        """Try to connect. Raises OSError where this host cannot even try."""
        self.close()
        self.retry_at = math.inf
        self.connection = socket.socket(family_of(self._where[0]), socket.SOCK_STREAM)
        prepare(self.connection, self._silence_s)
        failure = self.connection.connect_ex(self._where)
        if failure not in (0, errno.EINPROGRESS, errno.EAGAIN, errno.ECONNREFUSED):
            self.close()
            raise OSError(failure, "cannot connect")
        self._watch(WRITE)

    def connected(self) -> bool:
        """The attempt has ended: whether there is a connection, whose handshake has begun then."""
        assert self.connection is not None
        try:
            # A free port of this host, tried from itself, connects to itself.
            failed = self.connection.getpeername() == self.connection.getsockname()
        except OSError:
            failed = True
        if failed:
            self.try_again()
            return False
        self.tls = TlsConnection(self.connection, self._members, 0, accepted=False)
        self.tls.shake()
        self.watch()
        return True

    def try_again(self) -> None:
        """Soon, from the start."""
        self.close()
        self.retry_at = time.monotonic() + AGAIN_S

    def send(self, first: bytes, payload: bytes | memoryview, size: int) -> None:
        """Now, as far as the socket takes it, or when the handshake is done."""
        if self.tls is None or not self.tls.shaken:
            self.queued.append((first, bytes(payload)))
            return
        self.tls.send(first, payload, size)
        if self.tls.unsent:
            self.watch()

    def send_queued(self) -> None:
        """The handshake is done."""
        assert self.tls is not None
        for first, payload in self.queued:
            self.tls.send(first, payload, len(payload))
        self.queued.clear()


def prepare(connection: socket.socket, silence_s: float) -> None:
    """A TCP connection that does not block, holds nothing back and notices when the other host is gone."""
    connection.setblocking(False)
    with suppress(OSError):  # Somebody who came and went.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(connection, silence_s)
