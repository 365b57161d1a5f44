"""Ranks as threads of one process: `inproc://name`. Payloads go by reference, so neither side may change one."""

import itertools
import threading
import time
from collections import deque

from pipeinfer.runtime.transports import MAX_PAYLOAD, Envelope, Hosting, PeerLost, Traffic, TransportError, message_size

_lock = threading.Lock()
_fresh = itertools.count()


class _Mailbox:
    """What has arrived at one name. It is there from the first `connect` or listener on, whichever comes first."""

    def __init__(self) -> None:
        self.items: deque[Envelope | PeerLost] = deque()
        self.arrived = threading.Condition()
        self.owner: InprocTransport | None = None
        self.closed = False
        self.neighbours: set[_Mailbox] = set()

    def put(self, item: Envelope | PeerLost) -> None:
        with self.arrived:
            self.items.append(item)
            self.arrived.notify()


_mailboxes: dict[str, _Mailbox] = {}


def _mailbox(address: str) -> _Mailbox:
    return _mailboxes.setdefault(address, _Mailbox())


class InprocTransport:
    """One endpoint. `inproc://` and `inproc://*` take a fresh name. Raises TransportError when the name is taken."""

    hosting = Hosting("threads", "inproc://", workers=False)

    def __init__(
        self, address: str, rank: int, *, max_payload: int = MAX_PAYLOAD, connect_s: float = 10.0
    ) -> None:
        if address in ("inproc://", "inproc://*"):
            address = f"inproc://fresh-{next(_fresh)}"
        self.address = address
        self.rank = rank
        self.traffic: dict[int, Traffic] = {}
        self._max_payload = max_payload
        self._connect_s = connect_s
        self._links: dict[int, _Mailbox] = {}
        self._unanswered: dict[int, float] = {}
        self._lost: set[int] = set()
        self._woken = False
        with _lock:
            self._mailbox = _mailbox(address)
            if self._mailbox.owner is not None:
                raise TransportError(f"{address} is in use by rank {self._mailbox.owner.rank}; choose another name")
            self._mailbox.owner = self

    def connect(self, rank: int, address: str) -> None:
        """See Transport. Messages wait in the mailbox for a peer that is not there yet."""
        if rank in self._links:
            return
        with _lock:
            mailbox = _mailbox(address)
            mailbox.neighbours.add(self._mailbox)
            self._mailbox.neighbours.add(mailbox)
        self._links[rank] = mailbox
        self._unanswered[rank] = time.monotonic() + self._connect_s

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        """See Transport. `urgent` is ignored: there is no queue to overtake."""
        if rank not in self._links:
            raise ValueError(f"rank {self.rank} has no link to rank {rank}; connect first")
        mailbox = self._links[rank]
        if rank in self._lost or mailbox.closed:
            raise PeerLost(rank, f"rank {rank} is gone: it closed its end")
        size = message_size(header, payload, self._max_payload)
        mailbox.put(Envelope(self.rank, header, payload))
        self._traffic_of(rank).sent(len(header) + size)

    def receive(self, timeout: float) -> Envelope | None:
        """See Transport."""
        deadline = time.monotonic() + timeout
        while True:
            item = self._take(deadline)
            if isinstance(item, Envelope):
                return self._count(item)
            if item is not None and item.rank not in self._lost:
                self._lost.add(item.rank)
                raise item
            if item is None and (self._woken or time.monotonic() >= deadline):
                self._woken = False
                return None

    def wake(self) -> None:
        """See Transport."""
        with self._mailbox.arrived:
            self._woken = True
            self._mailbox.arrived.notify()

    def close(self) -> None:
        """See Transport. Peers find what was sent before they find that this end is gone."""
        with _lock:
            if self._mailbox.closed:
                return
            self._mailbox.closed = True
            _mailboxes.pop(self.address, None)
            neighbours = self._mailbox.neighbours
            for neighbour in neighbours:
                neighbour.neighbours.discard(self._mailbox)
        for neighbour in neighbours:
            neighbour.put(PeerLost(self.rank, f"rank {self.rank} at {self.address} closed its end"))

    def _take(self, deadline: float) -> Envelope | PeerLost | None:
        mailbox = self._mailbox
        if mailbox.items:
            return mailbox.items.popleft()
        silent = self._never_answered()
        if silent is not None:
            return silent
        with mailbox.arrived:
            wait = min([deadline, *self._unanswered.values()]) - time.monotonic()
            if not mailbox.items and not self._woken and wait > 0:
                mailbox.arrived.wait(wait)
            return mailbox.items.popleft() if mailbox.items else None

    def _never_answered(self) -> PeerLost | None:
        if not self._unanswered:
            return None
        for rank, deadline in list(self._unanswered.items()):
            if self._links[rank].owner is not None:
                del self._unanswered[rank]
            elif time.monotonic() >= deadline:
                del self._unanswered[rank]
                return PeerLost(rank, f"rank {rank} never answered in {self._connect_s:g} s")
        return None

    def _count(self, envelope: Envelope) -> Envelope:
        size = len(envelope.header) + message_size(envelope.header, envelope.payload)
        self._traffic_of(envelope.sender).received(size)
        return envelope

    def _traffic_of(self, rank: int) -> Traffic:
        return self.traffic.setdefault(rank, Traffic())
