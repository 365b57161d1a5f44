"""A transport with the bandwidth and latency of another network: wraps any transport between ranks of one host.

The sender knows its own links, so it computes when a message would be through and stamps that on it; the receiver holds
the message until then. Both read the same monotonic clock. Where the real transport is slower than the emulated link,
the message is simply late.
"""

import heapq
import itertools
import math
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeinfer.runtime.transports import Envelope, PeerLost, Traffic, Transport, message_size

_STAMP = struct.Struct("<d")

# The wait for a message that is held: block in the transport, then nap and look, then only look.
_BLOCK_UNTIL_S = 2e-3
_NAP_S = 250e-6
_SPIN_S = 200e-6


@dataclass(frozen=True)
class LinkShape:
    """One direction between two ranks: bandwidth in bit/s, latency in seconds. No message takes less than `floor_s`."""

    bandwidth_bps: float = math.inf
    latency_s: float = 0.0
    floor_s: float = 0.0

    def serialisation(self, size: int) -> float:
        """Seconds that `size` bytes take to be put on the wire."""
        return 8 * size / self.bandwidth_bps


class ShapedTransport:
    """`inner`, with `bandwidth_bps` (bit/s) and `latency_s` on each outgoing link; `links` overrides them by peer.

    Messages on a link are serialised one after another. An urgent one is not: it takes its own serialisation time and
    the latency, and so overtakes what is queued.
    """

    def __init__(
        self,
        inner: Transport,
        bandwidth_bps: float = math.inf,
        latency_s: float = 0.0,
        links: Mapping[int, LinkShape] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.rank = inner.rank
        self.address = inner.address
        self._inner = inner
        self._link = LinkShape(bandwidth_bps, latency_s)
        self._links = dict(links or {})
        self._clock = clock
        self._sleep = sleep or _sleep
        self._free_at: dict[int, float] = {}
        self._held: list[tuple[float, int, Envelope | PeerLost]] = []
        self._arrivals = itertools.count()
        self._last_due: dict[int, float] = {}
        self._woken = False

    @property
    def traffic(self) -> dict[int, Traffic]:
        """See Transport. Stamps are not counted."""
        return {rank: _without_stamps(traffic) for rank, traffic in self._inner.traffic.items()}

    def connect(self, rank: int, address: str) -> None:
        """See Transport."""
        self._inner.connect(rank, address)

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        """See Transport. An urgent message may overtake."""
        link = self._links.get(rank, self._link)
        size = len(header) + message_size(header, payload)
        now = self._clock()
        start = now if urgent else max(now, self._free_at.get(rank, now))
        through = start + link.serialisation(size)
        due = max(through + link.latency_s, now + link.floor_s)
        self._inner.send(rank, _STAMP.pack(due) + header, payload, urgent=urgent)
        if not urgent:
            self._free_at[rank] = through

    def receive(self, timeout: float) -> Envelope | None:
        """See Transport. A message is there when it is due; a lost peer's held messages come before its PeerLost."""
        deadline = self._clock() + timeout
        while True:
            heard = self._hear(0.0)
            now = self._clock()
            if self._held and self._held[0][0] <= now:
                return self._release()
            if not heard:
                if self._woken or now >= deadline:
                    self._woken = False
                    return None
                self._wait(now, deadline)

    def wake(self) -> None:
        """See Transport."""
        self._woken = True
        self._inner.wake()

    def close(self) -> None:
        """See Transport. The peer still holds what is not due."""
        self._inner.close()

    def _hear(self, timeout: float) -> bool:
        """Put what arrives within `timeout` with the held ones; False: nothing did."""
        try:
            envelope = self._inner.receive(timeout)
        except PeerLost as lost:
            self._hold(self._last_due.get(lost.rank, self._clock()), lost)
            return True
        if envelope is None:
            return False
        sender, header, payload = envelope
        (due,) = _STAMP.unpack_from(header)
        self._last_due[sender] = max(due, self._last_due.get(sender, due))
        self._hold(due, Envelope(sender, header[_STAMP.size :], payload))
        return True

    def _hold(self, due: float, item: Envelope | PeerLost) -> None:
        heapq.heappush(self._held, (due, next(self._arrivals), item))

    def _release(self) -> Envelope:
        _, _, item = heapq.heappop(self._held)
        if isinstance(item, PeerLost):
            raise item
        return item

    def _wait(self, now: float, deadline: float) -> None:
        """Let some of the time pass until the first held message is due, or `deadline`."""
        if not self._held:
            self._hear(deadline - now)
            return
        wait = min(deadline, self._held[0][0]) - now
        if wait > _BLOCK_UNTIL_S:
            self._hear(wait - _BLOCK_UNTIL_S)
        elif wait > _SPIN_S:
            self._sleep(min(wait - _SPIN_S, _NAP_S))
        else:
            self._sleep(0.0)


def _sleep(seconds: float) -> None:
    if seconds > 0.0:
        time.sleep(seconds)
    else:
        os.sched_yield()


def _without_stamps(traffic: Traffic) -> Traffic:
    return Traffic(
        traffic.sent_messages,
        traffic.sent_bytes - _STAMP.size * traffic.sent_messages,
        traffic.received_messages,
        traffic.received_bytes - _STAMP.size * traffic.received_messages,
    )
