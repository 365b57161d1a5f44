"""How ranks reach one another. A URI's scheme chooses the transport: entry points in the group `pipeinfer.transports`.

A transport is one endpoint: it listens at its own address and opens one outgoing link per peer. What is promised:
messages on one link arrive in order, whole and once, or the peer is lost; nothing is promised between links.
`pipeinfer.testing.TransportConformance` checks it.
"""

from typing import NamedTuple, Protocol

HEAD = -1
"""The head's rank. Target stages are 0..N-1 and the draft ranks follow."""


class Envelope(NamedTuple):
    """One message as it arrived: the sender's rank, its header and its raw payload (empty when there is none)."""

    sender: int
    header: bytes
    payload: bytes | memoryview


class TransportError(Exception):
    """Something between ranks went wrong; the text is one line for the user."""


class PeerLost(TransportError):  # noqa: N818 - reads as what happened
    """`rank` is gone or silent: connection closed, heartbeats missed or its stream broken."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


class Transport(Protocol):
    """One rank's endpoint. Used by one thread at a time."""

    rank: int
    address: str
    """Where peers connect to, with the real port."""

    def connect(self, rank: int, address: str) -> None:
        """Open the outgoing link to `rank`. Idempotent. Does not wait for the peer."""

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"") -> None:
        """Queue one message on the link to `rank` without blocking for the peer. Raises PeerLost, or ValueError when
        the message is over the length limit."""

    def receive(self, timeout: float) -> Envelope | None:
        """The next message from anyone, or None after `timeout` seconds (0: only look). Raises PeerLost once per peer
        when a connected peer goes away or goes silent."""

    def close(self) -> None:
        """Flush what was sent (for at most a second), close every link and give the address back. Idempotent."""
