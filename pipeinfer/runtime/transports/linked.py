"""What transports over TCP connections have in common, whatever these speak: a roster of peers, a link to each that is
sent to, and a bell that another thread may ring."""

import socket
from contextlib import suppress
from typing import Generic, TypeVar

from pipeinfer.runtime.transports import PeerLost, Traffic, framing, message_size
from pipeinfer.runtime.transports.addresses import check_address, facing_address
from pipeinfer.runtime.transports.keys import Keys
from pipeinfer.runtime.transports.membership import Peer, Roster, Standing

L = TypeVar("L")


class LinkedTransport(Generic[L]):
    """Subclasses set these fields, open links, and put frames on them."""

    scheme: str
    _keys: Keys
    _max_payload: int
    _again_s: float
    _roster: Roster
    _links: dict[int, L]
    _ringing: socket.socket
    _spin_s: float
    _comes_soon = False
    """Whether what was waited for last came within `_spin_s`, so that it may pay to look for the next before sleeping.
    Where ranks share cores or compute for long it comes later, and looking would take from their computing."""

    @staticmethod
    def facing(address: str) -> str:
        """An address of the interface that leads to `address`, with a free port. Raises TransportError."""
        return facing_address(address)

    @property
    def rank(self) -> int:
        """Ours. It may be set until the first message is sent."""
        return self._roster.rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._roster.rank = rank

    @property
    def traffic(self) -> dict[int, Traffic]:
        """See Transport."""
        return {peer.rank: peer.traffic for peer in self._roster.peers.values()}

    def connect(self, rank: int, address: str) -> None:
        """See Transport. A peer that is not up yet is tried again for `connect_s`. Raises PeerLost when it was lost."""
        peer = self._roster.peer(rank)
        if peer.standing is not Standing.HERE:
            raise PeerLost(rank, peer.fate)
        if rank not in self._links:
            self._check(address)
            self._open_link(peer, address)

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        """See Transport. `urgent` is ignored: a TCP stream cannot overtake itself.

        Never blocks, because what is kept has no bound: how much is in flight is the scheduler's to limit, and one that
        waited here for a slow peer could no longer cancel anything.
        """
        peer = self._roster.peers.get(rank)
        if peer is not None and peer.standing is not Standing.HERE:
            raise PeerLost(rank, peer.fate)
        link = self._links.get(rank)
        if peer is None or link is None:
            raise ValueError(f"rank {self.rank} has no link to rank {rank}; connect first")
        size = message_size(header, payload, self._max_payload)
        first = framing.first_frame(self._roster.rank, peer.sent, header, size)
        if self._again_s and not peer.bound:
            peer.unheard.append((first, bytes(payload)))
        self._put(link, first, payload, size)
        peer.sent += 1
        peer.traffic.sent(len(header) + size)

    def wake(self) -> None:
        """See Transport."""
        with suppress(OSError):  # A bell that rang so often is heard, or nobody listens any more.
            self._ringing.send(b"!")

    def _check(self, address: str) -> tuple[str, int]:
        """Host and port. Raises TransportError when it is no such address, or these keys are not enough for it."""
        return check_address(address, self.scheme, has_key_file=self._keys.file is not None)

    def _open_link(self, peer: Peer, address: str) -> None:
        """Begin to open our link to this peer. Raises TransportError when there can be none."""
        raise NotImplementedError

    def _put(self, link: L, first: bytes, payload: bytes | memoryview, size: int) -> None:
        """Send a message of these frames on the link, or keep it until it can be."""
        raise NotImplementedError
