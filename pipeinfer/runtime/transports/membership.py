"""Who is there, as one TCP endpoint sees it. Pure bookkeeping: the endpoint reports what sockets did, and when.

Two TCP connections can lie between two ranks, each opened by the one that sends on it: *our link* to the peer, and
the peer's *stream* to us. The end of the stream is the end of the peer: whatever it sent has arrived by then. The end
of our link alone may come a little before its last messages.
"""

import math
from collections import deque
from enum import Enum

from pipeinfer.runtime.transports import HEAD, Traffic
from pipeinfer.runtime.transports.framing import BadFrame

LAST_WORDS_S = 0.25
"""How long a peer's stream is waited for after our link to it went down."""

AGAIN_IVL_S = 0.05
"""The pause before a peer that did not hear us out is tried again."""


class Standing(Enum):
    """HERE; AWAY: it was leaving another session when we came, and is tried again; LEAVING: our link is down, its
    stream may still bring messages; ENDED: nothing more arrives, and the user is to be told after what has arrived;
    LOST: the user was told."""

    HERE = 0
    AWAY = 1
    LEAVING = 2
    ENDED = 3
    LOST = 4


class Peer:
    """One rank. Message numbers count from 0 in each direction; `fate` says in one line why it is not here, and
    `unheard` is what was sent before its first word, where that may have to be sent again. `still_at`: when it is lost
    unless its pulse is felt before; no time where none was ever felt."""

    __slots__ = ("address", "again_until", "answered", "bound", "deadline", "fate", "hung_up", "rank", "received",
                 "sent", "standing", "still_at", "traffic", "unheard")  # fmt: skip

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.address = ""
        self.standing = Standing.HERE
        self.fate = ""
        self.answered = False
        self.hung_up = False
        self.bound = False
        self.deadline = math.inf
        self.again_until = math.inf
        self.still_at = math.inf
        self.unheard: list[tuple[bytes, bytes]] = []
        self.sent = 0
        self.received = 0
        self.traffic = Traffic()


class Roster:
    """All peers of rank `rank`. Times are seconds on one monotonic clock. `again_s`: for how long a peer is tried again
    that refused us, or closed its end, before its first word; `still_s`: for how long a pulse may not be felt."""

    def __init__(self, rank: int, silence_s: float, again_s: float = 0.0, still_s: float = math.inf) -> None:
        self.rank = rank
        self.peers: dict[int, Peer] = {}
        self.ended: deque[Peer] = deque()
        self._silence_s = silence_s
        self._again_s = again_s
        self._still_s = still_s
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
        peer.unheard.clear()
        if peer.standing is Standing.AWAY:
            peer.standing = Standing.LEAVING
        elif peer.standing is Standing.HERE:
            peer.fate = ""
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
        peer.deadline = min(deadline, peer.again_until)
        peer.answered = peer.hung_up = False

    def link_up(self, peer: Peer) -> None:
        """The peer answered on our link."""
        peer.answered = True
        peer.deadline = math.inf

    def felt(self, peer: Peer, now: float) -> None:
        """Its process runs."""
        if peer.standing is Standing.HERE:
            peer.still_at = now + self._still_s

    def link_down(self, peer: Peer, now: float) -> None:
        """Our link closed or fell silent. Before the first answer that is only an attempt that failed."""
        if peer.standing in (Standing.ENDED, Standing.LOST):
            return
        peer.still_at = math.inf
        if not peer.answered:
            peer.hung_up = True
        elif peer in self._connections.values() or None in self._connections.values():
            peer.standing = Standing.LEAVING
            peer.fate = self._closed(peer)
            peer.deadline = now + LAST_WORDS_S
        elif not self._again(peer, self._closed(peer), now):
            self.end(peer, self._closed(peer))

    def refused(self, peer: Peer, now: float) -> None:
        """It has another peer of our rank."""
        us = "head" if self.rank == HEAD else f"rank {self.rank}"
        peer.still_at = math.inf
        fate = f"rank {peer.rank} at {peer.address} is busy with another session: it has a {us} already"
        if peer.standing not in (Standing.ENDED, Standing.LOST) and not self._again(peer, fate, now):
            self.end(peer, fate)

    def _again(self, peer: Peer, fate: str, now: float) -> bool:
        """Whether `peer` is to be tried again. Who has not said a word may have been on its way out of another session,
        and took us for a part of that."""
        if peer.bound or self._again_s == 0:
            return False
        peer.fate = fate
        peer.again_until = min(peer.again_until, now + self._again_s)
        if now >= peer.again_until:
            return False
        peer.standing = Standing.AWAY
        peer.deadline = now + AGAIN_IVL_S
        return True

    def end(self, peer: Peer, fate: str) -> None:
        """Nothing more arrives from `peer`."""
        if peer.standing not in (Standing.ENDED, Standing.LOST):
            peer.standing = Standing.ENDED
            peer.fate = peer.fate or fate
            peer.deadline = peer.still_at = math.inf
            self.ended.append(peer)

    def next_deadline(self) -> float:
        """When `expire` has something to do next."""
        return min((min(peer.deadline, peer.still_at) for peer in self.peers.values()), default=math.inf)

    def postpone(self, seconds: float) -> None:
        """Nobody looked for so long: what came meanwhile was not seen."""
        for peer in self.peers.values():
            peer.deadline += seconds
            peer.still_at += seconds

    def expire(self, now: float) -> list[Peer]:
        """End the peers whose deadline has passed. Those in the list are here again: open our link to them."""
        for peer in (peer for peer in self.peers.values() if now >= peer.still_at):
            self.end(peer, self._still(peer))
        due = [peer for peer in self.peers.values() if now >= peer.deadline]
        again = [peer for peer in due if peer.standing is Standing.AWAY]
        for peer in due:
            if peer in again:
                peer.standing = Standing.HERE
            elif peer.standing is not Standing.LEAVING or not self._again(peer, peer.fate, now):
                self.end(peer, self._unanswered(peer))
        return again

    def lose(self, peer: Peer) -> None:
        """The user is being told."""
        self.ended.remove(peer)
        peer.standing = Standing.LOST

    def _closed(self, peer: Peer) -> str:
        where = f" at {peer.address}" if peer.address else ""
        return f"rank {peer.rank}{where} is gone: it closed its end or was silent for {self._silence_s:g} s"

    def _still(self, peer: Peer) -> str:
        silence = f"rank {peer.rank} at {peer.address} gave no sign of life for {self._still_s:g} s"
        return f"{silence}: its process is stopped, or gets no processor"

    def _unanswered(self, peer: Peer) -> str:
        if peer.hung_up:
            return f"rank {peer.rank} at {peer.address} hangs up on us; do both have the same key file?"
        return f"rank {peer.rank} at {peer.address} never answered; is it running, and can this host reach it?"


def check_stream(peer: Peer, rank: int, number: int) -> None:
    """Whether a message may be the next one on the stream of `peer`. Raises BadFrame."""
    if peer.standing is Standing.LOST:
        raise BadFrame("a message after its end")
    if rank != peer.rank:
        raise BadFrame(f"a claim to be rank {rank}")
    if number != peer.received:
        raise BadFrame(f"message {number} where {peer.received} was due")
