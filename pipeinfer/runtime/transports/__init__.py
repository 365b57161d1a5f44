"""How ranks reach one another. A URI's scheme chooses the transport: entry points in the group `pipeinfer.transports`.

A transport is one endpoint: it listens at its own address and opens one outgoing link per peer. What is promised:
messages on one link arrive in order, whole and once, or the peer is lost; nothing is promised between links.
`pipeinfer.testing.TransportConformance` checks it.

Its class may have an attribute `hosting`, which says where its ranks can be; an option `keys`, which is given the path
of the session's key file; and a static method `facing(address)`, which gives an address for an endpoint here that the
one at `address` can reach (without it that is `hosting.local`).
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

HEAD = -1
"""The head's rank. Target stages are 0..N-1 and the draft ranks follow."""

ANY_RANK = -2
"""The rank of an endpoint whose rank the head will say: until then it only listens."""

MAX_HEADER = 1 << 20
"""Length limit of a header, in bytes. A transport that wraps another may need up to 64 of them itself."""

MAX_PAYLOAD = 1 << 30
"""Length limit of a payload, in bytes, unless a transport is given another."""


class Hosting(NamedTuple):
    """Where ranks over a transport can be.

    `start`: how the launcher comes by ranks, as threads of its own process, as processes that it starts on this
    machine, or as those of a world that was started with it (as MPI has it); None: not at all. `local`: where such a
    thread or process listens, at a free name or port. `workers`: ranks that run already are reached by their addresses.
    """

    start: Literal["threads", "processes", "world"] | None = None
    local: str = ""
    workers: bool = True


class Envelope(NamedTuple):
    """One message as it arrived: the sender's rank, its header and its raw payload (empty when there is none)."""

    sender: int
    header: bytes
    payload: bytes | memoryview


@dataclass(slots=True)
class Traffic:
    """What crossed the links to and from one rank: messages, and the bytes of their headers and payloads."""

    sent_messages: int = 0
    sent_bytes: int = 0
    received_messages: int = 0
    received_bytes: int = 0

    def sent(self, size: int) -> None:
        """Count a message of so many bytes."""
        self.sent_messages += 1
        self.sent_bytes += size

    def received(self, size: int) -> None:
        """The same for one that came."""
        self.received_messages += 1
        self.received_bytes += size


class TransportError(Exception):
    """Something between ranks went wrong; the text is one line for the user."""


class PeerLost(TransportError):  # noqa: N818 - reads as what happened
    """`rank` is gone or silent: connection closed, heartbeats missed or its stream broken."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


class Transport(Protocol):
    """One rank's endpoint. Used by one thread at a time, but for `wake`."""

    rank: int
    address: str
    """Where peers connect to, with the real port."""

    @property
    def traffic(self) -> Mapping[int, Traffic]:
        """Counters per peer since the endpoint was opened."""

    def connect(self, rank: int, address: str) -> None:
        """Open the outgoing link to `rank`. Idempotent. Does not wait for the peer."""

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        """Queue one message on the link to `rank` without blocking for the peer. The payload is one contiguous buffer.

        `urgent`: the message may overtake earlier ones on this link where the transport can; a transport that cannot
        keeps it in order. Raises PeerLost, or ValueError when the message is over a length limit or the link was never
        opened.
        """

    def receive(self, timeout: float) -> Envelope | None:
        """The next message from anyone, or None after `timeout` seconds (0: only look). Raises PeerLost once per peer
        when a connected peer goes away or goes silent."""

    def wake(self) -> None:
        """For any thread: the `receive` under way, or else the next one, gives None soon if no message is there."""

    def close(self) -> None:
        """Flush what was sent (for at most a second), close every link and give the address back. Idempotent."""


def message_size(header: bytes, payload: bytes | memoryview, max_payload: int = MAX_PAYLOAD) -> int:
    """Bytes in the payload. Raises ValueError when header or payload is over its limit."""
    size = len(payload) if isinstance(payload, bytes) else payload.nbytes
    if len(header) > MAX_HEADER:
        raise ValueError(f"header of {len(header)} bytes is over the limit of {MAX_HEADER}")
    if size > max_payload:
        raise ValueError(f"payload of {size} bytes is over the limit of {max_payload}")
    return size


def open_transport(uri: str, rank: int, **options: Any) -> Transport:
    """The endpoint of `rank` at `uri`, by the transport plug-in that is named like the URI's scheme.

    Raises UnknownPlugin or BrokenPlugin (`pipeinfer.plugins`), or TransportError when the address cannot be had.
    """
    from pipeinfer.plugins import TRANSPORTS, load

    scheme, separator, _ = uri.partition("://")
    if not separator:
        raise TransportError(f'"{uri}" is not a transport address; expected one like tcp://127.0.0.1:0')
    return cast(Transport, load(TRANSPORTS, scheme)(uri, rank, **options))


def hosting_of(scheme: str) -> Hosting:
    """Where ranks over a transport can be. Raises UnknownPlugin or BrokenPlugin."""
    from pipeinfer.plugins import TRANSPORTS, load

    found: Hosting = getattr(load(TRANSPORTS, scheme), "hosting", Hosting())
    return found


def scheme_of(uri: str) -> str:
    """The transport that an address is of; empty where it names none."""
    return uri.strip().partition("://")[0] if "://" in uri else ""


def takes_keys(scheme: str) -> bool:
    """Whether the transport has an option `keys`."""
    return scheme != "" and _takes(scheme, "keys")


def open_member(uri: str, rank: int, **offered: Any) -> Transport:
    """The endpoint at `uri` as a member of a session, with those of the options that the transport has. Raises what
    `open_transport` does."""
    scheme = scheme_of(uri)
    known = {name: value for name, value in offered.items() if scheme and _takes(scheme, name)}
    return open_transport(uri, rank, **known)


def facing(address: str) -> str:
    """An address for an endpoint of this host that the one at `address` can reach. Raises TransportError."""
    from pipeinfer.plugins import TRANSPORTS, load

    scheme = scheme_of(address)
    if not scheme:
        raise TransportError(f'"{address}" is not a transport address; expected one like tcp://10.0.0.7:5555')
    transport = load(TRANSPORTS, scheme)
    return str(transport.facing(address)) if hasattr(transport, "facing") else hosting_of(scheme).local


def _takes(scheme: str, option: str) -> bool:
    from pipeinfer.plugins import TRANSPORTS, load

    return option in inspect.signature(load(TRANSPORTS, scheme)).parameters
