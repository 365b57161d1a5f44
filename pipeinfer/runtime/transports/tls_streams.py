"""Who connects to a TLS endpoint: strangers, members who have not said who they are, and the streams of peers."""

import errno
import math
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from pipeinfer.runtime.transports import Envelope, TransportError, framing
from pipeinfer.runtime.transports.addresses import bracketed, family_of, resolved
from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.membership import Peer, Roster, check_stream
from pipeinfer.runtime.transports.message_reader import Take
from pipeinfer.runtime.transports.readiness import READ, WRITE, Readiness
from pipeinfer.runtime.transports.tls_connection import Hangup, TlsConnection
from pipeinfer.runtime.transports.tls_links import Watched, prepare

REFUSED = b"refused"
"""All that ever comes back on a link: to who claims a rank that is another's."""

FULL_S = 0.05
"""After so long it is tried again to take a connection for which there was no descriptor."""

STRANGERS = 64
"""Handshakes under way at once. When there are more, the oldest goes: a member's is begun again."""


class Stream(Watched):
    """Somebody's connection to us: a stranger's until its handshake is done, and nobody's until its first message says
    whose it is. `take` is given its messages. `refused`: it claimed to be somebody else, and it is not read."""

    take: Take

    def __init__(
        self,
        readiness: Readiness,
        connection: socket.socket,
        members: Members,
        max_payload: int,
    ) -> None:
        super().__init__(readiness)
        self.peer: Peer | None = None
        self.refused = False
        self.connection = connection
        self.fd = connection.fileno()
        self.tls = TlsConnection(connection, members, max_payload, accepted=True)

    @property
    def is_stranger(self) -> bool:
        """Whether nobody knows yet that a member is at the other end."""
        return self.tls is not None and not self.tls.shaken

    @property
    def behind(self) -> bool:
        """Whether more had come than was taken last."""
        return self.tls is not None and self.tls.behind

    def refuse(self, word: bytes) -> None:
        """Say why, and hear no more."""
        self.refused = True
        if self.tls is not None:
            self.tls.send_word(word)


class Streams:
    """Those of one endpoint, whose listening socket and readiness these are. What peers say comes into `inbox`;
    `rejected` counts messages that were dropped because no peer could be held to account for them. `on_full` is told
    when there is no descriptor for who waits: `listen_again` is due at `listens_at` then."""

    def __init__(
        self,
        listener: socket.socket,
        readiness: Readiness,
        roster: Roster,
        members: Members,
        max_payload: int,
        silence_s: float,
        on_full: Callable[[], None],
    ) -> None:
        self.inbox: deque[Envelope] = deque()
        self.rejected = 0
        self._listener = listener
        self._readiness = readiness
        self._roster = roster
        self._members = members
        self._max_payload = max_payload
        self._silence_s = silence_s
        self._streams: dict[int, Stream] = {}
        self.listens_at = math.inf
        """When connections are taken again, where there was no descriptor for one."""
        self._on_full = on_full
        readiness.register(listener, READ, self.accept_all)

    def __len__(self) -> int:
        return len(self._streams)

    def members(self) -> list[TlsConnection]:
        """The connections of members. For any thread."""
        tls = [stream.tls for stream in list(self._streams.values()) if not stream.refused]
        return [each for each in tls if each is not None and each.shaken]

    def end_silent(self) -> None:
        """End those whose other host owes an answer for too long."""
        for stream in list(self._streams.values()):
            if stream.is_silent(self._silence_s):
                self._end(stream)

    def end_of(self, peer: Peer) -> None:
        """End the stream of that peer."""
        for stream in [stream for stream in self._streams.values() if stream.peer is peer]:
            self._end(stream)

    def close(self) -> None:
        """End all, and listen no more."""
        for stream in self._streams.values():
            stream.close()
        self._listener.close()

    def accept_all(self, events: int = READ) -> None:
        """Take the connections that wait."""
        try:
            while True:
                self._accept(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError as problem:
            if problem.errno in (errno.EMFILE, errno.ENFILE) and not self._send_a_stranger_away():
                self._wait_for_descriptors()

    def _wait_for_descriptors(self) -> None:
        """Who waits can be taken by nobody now: do not be woken for him."""
        if self.listens_at == math.inf:
            self._readiness.unregister(self._listener)
        self.listens_at = time.monotonic() + FULL_S
        self._on_full()

    def listen_again(self) -> None:
        """There may be descriptors again."""
        self.listens_at = math.inf
        self._readiness.register(self._listener, READ, self.accept_all)

    def _accept(self, connection: socket.socket) -> None:
        prepare(connection, self._silence_s)
        self._roster.accepted(connection.fileno())
        stream = Stream(self._readiness, connection, self._members, self._max_payload)
        stream.take = partial(self._take, stream)
        stream.attend(partial(self._hear, stream))
        self._streams[stream.fd] = stream
        if sum(each.is_stranger for each in self._streams.values()) > STRANGERS:
            self._send_a_stranger_away()

    def _send_a_stranger_away(self) -> bool:
        """Whether there was one."""
        stranger = next((each for each in self._streams.values() if each.is_stranger), None)
        if stranger is not None:
            self._end(stranger)
        return stranger is not None

    def _hear(self, stream: Stream, events: int) -> None:
        """Take what has come on a stream."""
        tls = stream.tls
        if tls is None:
            return  # It was closed by what came in the same moment.
        try:
            if events & WRITE:
                tls.flush()
            if stream.refused:
                tls.discard()
            else:
                tls.hear(stream.take)
            stream.watch()
        except Hangup:
            self._end(stream)
        except framing.BadFrame as offence:
            if stream.peer is not None:
                self._roster.end(stream.peer, f"the stream of rank {stream.peer.rank} is broken: {offence}")
            elif not stream.refused:
                self.rejected += 1
            self._end(stream)

    def _take(self, stream: Stream, rank: int, number: int, header: bytes, payload: bytes | memoryview) -> None:
        """One message, of a known peer or of one that it introduces. Raises BadFrame."""
        if stream.refused:
            return
        peer = stream.peer or self._introduce(stream, rank, number)
        if peer is None:
            return
        check_stream(peer, rank, number)
        peer.received += 1
        peer.traffic.received(len(header) + len(payload))
        self.inbox.append(Envelope(rank, header, payload))

    def _introduce(self, stream: Stream, rank: int, number: int) -> Peer | None:
        """Hold the connection to the rank that its first message claims. None: it is another's."""
        if number:
            raise framing.BadFrame("the rest of a stream to an endpoint that was here before")
        stream.peer = self._roster.bind(stream.fd, rank)
        if stream.peer is None:
            self.rejected += 1
            stream.refuse(REFUSED)
        return stream.peer

    def hear_out(self, peer: Peer) -> None:
        """Take all that has come of a peer, before it is given up."""
        for stream in [stream for stream in self._streams.values() if stream.peer in (peer, None)]:
            self._hear(stream, READ)
            while stream.behind:
                self._hear(stream, READ)

    def _end(self, stream: Stream) -> None:
        if self._streams.pop(stream.fd, None) is not None:
            stream.close()
            self._roster.disconnected(stream.fd)


def listening(scheme: str, host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens there, and the address with the real port. Raises TransportError."""
    where = f"{scheme}://{bracketed(host)}:{port}"
    own, _ = resolved(where, scheme)
    listener = socket.socket(family_of(own), socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((own, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as problem:
        listener.close()
        if problem.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another program; choose another port, or 0 for a free one"
        else:
            text = f"cannot listen at {where}: {problem.strerror}; choose an address of this host"
        raise TransportError(text) from problem
    real_host, real_port = listener.getsockname()[:2]
    return listener, f"{scheme}://{bracketed(real_host)}:{real_port}"
