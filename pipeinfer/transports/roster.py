"""Who is there, as one TCP endpoint sees it. Pure bookkeeping: the endpoint reports what sockets did, and when.

Two TCP connections can lie between two ranks, each opened by the one that sends on it: *our link* to the peer, and
the peer's *stream* to us. The end of the stream is the end of the peer: whatever it sent has arrived by then. The end
of our link alone may come a little before its last messages.
"""

import math
from collections import deque
from enum import Enum

from pipeinfer.transports import Traffic

LAST_WORDS_S = 0.25
"""How long a peer's stream is waited for after our link to it went down."""


class Standing(Enum):
    """HERE; LEAVING: our link is down, its stream may still bring messages; ENDED: nothing more arrives, and the user
    is to be told after what has arrived; LOST: the user was told."""

    HERE = 0
    LEAVING = 1
    ENDED = 2
    LOST = 3


class Peer:
    """One rank. Message numbers count from 0 in each direction; `fate` says in one line why it is not here."""

    __slots__ = ("address", "answered", "bound", "deadline", "fate", "hung_up", "rank", "received", "sent", "standing",
                 "traffic")  # fmt: skip

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.address = ""
        self.standing = Standing.HERE
        self.fate = ""
        self.answered = False
        self.hung_up = False
        self.bound = False
        self.deadline = math.inf
        self.sent = 0
        self.received = 0
        self.traffic = Traffic()


class Roster:
    """All peers of rank `rank`. Times are seconds on one monotonic clock."""

    def __init__(self, rank: int, silence_s: float) -> None:
        self.rank = rank
        self.peers: dict[int, Peer] = {}
        self.ended: deque[Peer] = deque()
        self._silence_s = silence_s
        self._connections: dict[int, Peer | None] = {}

    def peer(self, rank: int) -> Peer:
        """The peer of that rank, new if need be."""
        return self.peers.setdefault(rank, Peer(rank))

    def accepted(self, fd: int) -> None:
        """Someone's connection is open; who it is, its first message will claim."""
        self._connections[fd] = None

    def bind(self, fd: int, rank: int) -> Peer | None:
        """The connection `fd` claims to be the stream of `rank`. None: it cannot be, that rank has (or had) one."""
        if rank == self.rank:
            return None
        peer = self.peer(rank)
        if peer.bound or peer.standing is Standing.LOST:
            return None
        peer.bound = True
        if fd not in self._connections:
            self.end(peer, self._closed(peer))
            return peer
        previous, self._connections[fd] = self._connections[fd], peer
        if previous is not None:  # closed in the same moment, and the kernel gave its descriptor to this one
            self.end(previous, self._closed(previous))
        return peer

    def disconnected(self, fd: int) -> None:
        """A connection from someone closed or fell silent."""
        peer = self._connections.pop(fd, None)
        if peer is not None:
            self.end(peer, self._closed(peer))

    def connecting(self, peer: Peer, address: str, deadline: float) -> None:
        """Our link to `peer` is being opened and has to be answered by `deadline`."""
        peer.address = address
        peer.deadline = deadline

    def link_up(self, peer: Peer) -> None:
        """The peer answered on our link."""
        peer.answered = True
        peer.deadline = math.inf

    def link_down(self, peer: Peer, now: float) -> None:
        """Our link closed or fell silent. Before the first answer that is only an attempt that failed."""
        if not peer.answered:
            peer.hung_up = True
        elif peer in self._connections.values() or None in self._connections.values():
            peer.standing = Standing.LEAVING
            peer.fate = self._closed(peer)
            peer.deadline = now + LAST_WORDS_S
        else:
            self.end(peer, self._closed(peer))

    def end(self, peer: Peer, fate: str) -> None:
        """Nothing more arrives from `peer`."""
        if peer.standing in (Standing.HERE, Standing.LEAVING):
            peer.standing = Standing.ENDED
            peer.fate = peer.fate or fate
            peer.deadline = math.inf
            self.ended.append(peer)

    def next_deadline(self) -> float:
        """When `expire` has something to do next."""
        return min((peer.deadline for peer in self.peers.values()), default=math.inf)

    def expire(self, now: float) -> None:
        """End the peers whose deadline has passed."""
        for peer in self.peers.values():
            if now >= peer.deadline:
                self.end(peer, self._unanswered(peer))

    def lose(self, peer: Peer) -> None:
        """The user is being told."""
        self.ended.remove(peer)
        peer.standing = Standing.LOST

    def _closed(self, peer: Peer) -> str:
        where = f" at {peer.address}" if peer.address else ""
        return f"rank {peer.rank}{where} is gone: it closed its end or was silent for {self._silence_s:g} s"

    def _unanswered(self, peer: Peer) -> str:
        if peer.hung_up:
            return f"rank {peer.rank} at {peer.address} hangs up on us; do both have the same key file?"
        return f"rank {peer.rank} at {peer.address} never answered; is it running, and can this host reach it?"
