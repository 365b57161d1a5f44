"""Ranks as processes on any hosts: `tls://host:port` (IPv4 or `[IPv6]`), TLS 1.3 over plain sockets, both ends known by
the certificate in the cluster's key file.

There is no thread but the caller's: bytes move while it sends, receives or closes, and a rank that waits sleeps in one
system call that also ends when a peer leaves. What does not fit into a socket is kept, encrypted, and leaves at the
next `receive`. So a rank that computes without looking reads nothing and answers no handshake, and is not lost by that:
whether a peer is there is judged by its host's kernel (`tcp_liveness`) and by its connections, which end with its
process. A process that is stopped keeps them: it is found lost where a `pulse` was felt before, and waited for else.

Two connections lie between two ranks, each opened by the one that sends on it, as `membership` has it.
"""

import math
import os
import socket
import time
from functools import partial
from pathlib import Path

from pipeinfer.runtime.processor_quota import spinning_s
from pipeinfer.runtime.transports import (
    MAX_PAYLOAD,
    Envelope,
    Hosting,
    PeerLost,
    TransportError,
)
from pipeinfer.runtime.transports.addresses import resolved
from pipeinfer.runtime.transports.certificates import Members
from pipeinfer.runtime.transports.keys import Keys, read_keys
from pipeinfer.runtime.transports.linked import LinkedTransport
from pipeinfer.runtime.transports.membership import Peer, Roster, Standing
from pipeinfer.runtime.transports.readiness import READ, WRITE, Readiness
from pipeinfer.runtime.transports.tls_connection import BEAT, Hangup
from pipeinfer.runtime.transports.tls_links import Link
from pipeinfer.runtime.transports.tls_pulse import Pulse
from pipeinfer.runtime.transports.tls_streams import REFUSED, Streams, listening

LINGER_S = 1.0
"""The longest that `close` waits for what was sent to leave."""

PAUSE_S = 0.25
"""Who was not here for longer cannot say of a peer that it was late in that time."""


class TlsTransport(LinkedTransport[Link]):
    """One endpoint. Port 0 takes a free one.

    `keys`: the cluster's, or the path of its key file; addresses that are not loopback require a file. Times in
    seconds: `connect_s` until somebody takes our connection; `answer_s` until he speaks, who may be computing;
    `silence_s` for which a peer's host may owe an answer; `still_s` for which a peer may not be felt whose pulse was;
    `again_s` for which a peer is tried again that left or refused us before its first word, as one does that is still
    leaving another session; `spin_s` of busy looking before `receive` blocks (default: as `processor_quota` says).
    `pulse`: who is connected to this endpoint feels that its process runs, by a thread that says so every second.
    Raises TransportError when the address cannot be had.
    """

    scheme = "tls"
    hosting = Hosting("processes", "tls://127.0.0.1:0")

    def __init__(
        self,
        address: str,
        rank: int,
        *,
        keys: Keys | str | Path,
        max_payload: int = MAX_PAYLOAD,
        connect_s: float = 10.0,
        answer_s: float = math.inf,
        silence_s: float = 2.5,
        still_s: float = 10.0,
        again_s: float = 0.0,
        spin_s: float | None = None,
        pulse: bool = False,
    ) -> None:
        self._keys = keys if isinstance(keys, Keys) else read_keys(keys)
        self._members = Members(self._keys)
        self._max_payload = max_payload
        self._connect_s = connect_s
        self._answer_s = answer_s
        self._silence_s = silence_s
        self._again_s = again_s
        self._spin_s = spinning_s() if spin_s is None else spin_s
        self._roster = Roster(rank, silence_s, again_s, still_s)
        self._links: dict[int, Link] = {}
        host, port = self._check(address)
        listener, self.address = listening(self.scheme, host, port)
        self._bell, self._ringing = socket.socketpair()
        self._bell.setblocking(False)
        self._ringing.setblocking(False)
        self._woken = False
        self._readiness = Readiness()
        self._streams = Streams(listener, self._readiness, self._roster, self._members, max_payload, silence_s,
                                self._look_after_all)  # fmt: skip
        self._inbox = self._streams.inbox
        self._readiness.register(self._bell, READ, self._hear_bell)
        self._looked = self._listened = time.monotonic()
        self._due = 0.0
        """When there is something to mind besides what comes; 0 where that has to be found out."""
        self._closed = False
        self._pulse = Pulse(self._streams.members) if pulse else None

    @property
    def rejected(self) -> int:
        """Messages dropped because no peer could be held to account for them."""
        return self._streams.rejected

    def receive(self, timeout: float) -> Envelope | None:
        """See Transport. Looks, spins where that pays, then sleeps until something comes or a peer has to be looked
        after."""
        if self._inbox:
            return self._inbox.popleft()
        start = time.monotonic()
        if start - self._looked > PAUSE_S:
            self._roster.postpone(start - self._looked)
            self._due = 0.0
        envelope = self._spin(start + min(timeout, self._spin_s)) if self._comes_soon and timeout > 0 else None
        if envelope is None:
            envelope = self._wait(start + timeout)
            if timeout > 0:
                self._comes_soon = self._looked - start < self._spin_s
        return envelope

    def close(self) -> None:
        """See Transport. Peers see the end last."""
        if self._closed:
            return
        self._closed = True
        if self._pulse is not None:
            self._pulse.close()
        deadline = time.monotonic() + LINGER_S
        while any(link.unsent for link in self._links.values()) and (left := deadline - time.monotonic()) > 0:
            self._attend(min(left, self._due - self._looked))
        for link in self._links.values():
            link.close()
        self._streams.close()
        self._readiness.close()
        self._bell.close()
        self._ringing.close()

    # Waiting, and minding who is still there.

    def _spin(self, until: float) -> Envelope | None:
        while True:
            self._attend(0.0)
            if self._inbox:
                return self._inbox.popleft()
            if self._looked >= until:
                return None
            os.sched_yield()

    def _wait(self, deadline: float) -> Envelope | None:
        while True:
            until = 0.0 if self._roster.ended else min(deadline, self._due)
            self._attend(until - time.monotonic())
            if self._inbox:
                return self._inbox.popleft()
            if self._roster.ended:
                raise self._lose(self._roster.ended[0])
            if self._woken or self._looked >= deadline:
                self._woken = False
                return None

    def _attend(self, seconds: float) -> None:
        """Sleep until something can be done, at most so long where that is more than nothing, and do it."""
        self._readiness.attend(seconds)
        self._looked = time.monotonic()
        if self._looked >= self._due:
            self._mind_peers(self._looked)

    def _mind_peers(self, now: float) -> None:
        """Do what is due."""
        if now >= self._listened + self._silence_s / 4:
            self._listened = now
            self._find_silent()
        if now >= self._streams.listens_at:
            self._streams.listen_again()
        for link in self._links.values():
            if now >= link.retry_at:
                try:
                    link.open()
                except OSError:  # no descriptor is free, say
                    link.try_again()
        for peer in list(self._roster.peers.values()):
            if peer.standing is Standing.LEAVING and now >= peer.deadline:
                self._streams.hear_out(peer)
        for peer in self._roster.expire(now):
            self._open_link(peer, peer.address)
            self._links[peer.rank].queued = list(peer.unheard)
        retry_at = min((link.retry_at for link in self._links.values()), default=math.inf)
        self._due = min(self._roster.next_deadline(), retry_at, self._listened + self._silence_s / 4,
                        self._streams.listens_at)  # fmt: skip

    def _look_after_all(self) -> None:
        """Soon: something is due that was not before."""
        self._due = 0.0

    def _find_silent(self) -> None:
        for rank, link in list(self._links.items()):
            if link.tls is not None and link.is_silent(self._silence_s):
                self._link_down(self._roster.peers[rank], link)
        self._streams.end_silent()

    def _lose(self, peer: Peer) -> PeerLost:
        self._roster.lose(peer)
        self._close_link(peer)
        self._streams.end_of(peer)
        return PeerLost(peer.rank, peer.fate)

    def _hear_bell(self, events: int) -> None:
        self._woken = bool(self._bell.recv(4096))

    # Our links.

    def _put(self, link: Link, first: bytes, payload: bytes | memoryview, size: int) -> None:
        link.send(first, payload, size)

    def _open_link(self, peer: Peer, address: str) -> None:
        where = resolved(address, self.scheme)
        link = Link(self._readiness, partial(self._tend_link, peer), self._members, where, self._silence_s)
        try:
            link.open()
        except OSError as problem:
            raise TransportError(f'cannot connect to "{address}": {os.strerror(problem.errno or 0)}') from problem
        self._links[peer.rank] = link
        self._roster.connecting(peer, address, time.monotonic() + self._connect_s)
        self._due = 0.0

    def _tend_link(self, peer: Peer, events: int) -> None:
        link = self._links.get(peer.rank)
        if link is None or link.connection is None:
            return  # It was closed by what came in the same moment.
        self._due = 0.0
        try:
            if link.tls is None:
                if link.connected():
                    link.left_s, peer.deadline = peer.deadline - self._looked, self._looked + self._answer_s
                return
            if events & WRITE:
                link.tls.flush()
            if events & READ and self._read_answer(peer, link):
                return
            link.watch()
        except Hangup:
            self._link_down(peer, link)

    def _read_answer(self, peer: Peer, link: Link) -> bool:
        """The handshake goes on, or what else comes back. Whether the link was closed by that."""
        assert link.tls is not None
        was_open, words = link.is_open, link.tls.words()
        if link.is_open and not was_open:
            self._roster.link_up(peer)
            link.send_queued()
        if REFUSED in words:
            self._roster.refused(peer, time.monotonic())
            self._close_link(peer)
        elif BEAT in words:
            self._roster.felt(peer, time.monotonic())
        return REFUSED in words

    def _link_down(self, peer: Peer, link: Link) -> None:
        """It closed, or the other host is silent. Before the handshake's end that is only an attempt that failed."""
        self._streams.accept_all()  # Its stream may be among those.
        now = time.monotonic()
        self._due = 0.0
        self._roster.link_down(peer, now)
        if peer.answered:
            self._close_link(peer)
            return
        peer.deadline = now + link.left_s
        link.try_again()

    def _close_link(self, peer: Peer) -> None:
        link = self._links.pop(peer.rank, None)
        if link is not None:
            link.close()
