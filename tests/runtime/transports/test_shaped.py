"""Shaping on a clock that only the test moves, and the conformance kit in real time."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer.runtime.transports import Envelope, PeerLost, Traffic
from pipeinfer.runtime.transports.inproc import InprocTransport
from pipeinfer.runtime.transports.keys import Keys
from pipeinfer.runtime.transports.shaped import LinkShape, ShapedTransport
from pipeinfer.runtime.transports.tcp import TcpTransport
from pipeinfer.testing.transports import TransportConformance

KEYS = Keys.generate()
TICK = 5e-6
"""What it costs to look once, on the test's clock."""
SLACK = 100e-6


class TestShapedInproc(TransportConformance):
    def endpoint(self, rank: int) -> ShapedTransport:
        return self.endpoint_at("inproc://*", rank)

    def endpoint_at(self, address: str, rank: int) -> ShapedTransport:
        return ShapedTransport(InprocTransport(address, rank), bandwidth_bps=10e9, latency_s=1e-3)


class TestShapedTcp(TransportConformance):
    def endpoint(self, rank: int) -> ShapedTransport:
        return self.endpoint_at("tcp://127.0.0.1:0", rank)

    def endpoint_at(self, address: str, rank: int) -> ShapedTransport:
        return ShapedTransport(TcpTransport(address, rank, keys=KEYS), bandwidth_bps=10e9, latency_s=1e-3)


class World:
    """A clock, and an instant transport between ranks whose waiting moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.arrived: dict[int, deque[Envelope | PeerLost]] = {}

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


class Instant:
    """An endpoint in a World."""

    def __init__(self, world: World, rank: int) -> None:
        self.rank = rank
        self.address = f"instant://{rank}"
        self.traffic: dict[int, Traffic] = {}
        self._world = world
        self._arrived = world.arrived.setdefault(rank, deque())

    def connect(self, rank: int, address: str) -> None:
        pass

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        self._world.arrived[rank].append(Envelope(self.rank, header, payload))

    def receive(self, timeout: float) -> Envelope | None:
        if not self._arrived:
            self._world.pass_time(max(timeout, TICK))
            return None
        item = self._arrived.popleft()
        if isinstance(item, PeerLost):
            raise item
        return item

    def close(self) -> None:
        pass


def shaped(world: World, rank: int, link: LinkShape, links: dict[int, LinkShape] | None = None) -> ShapedTransport:
    return ShapedTransport(
        Instant(world, rank), link.bandwidth_bps, link.latency_s, links, clock=world.clock, sleep=world.pass_time
    )


def pair(link: LinkShape) -> tuple[World, ShapedTransport, ShapedTransport]:
    world = World()
    return world, shaped(world, 0, link), shaped(world, 1, link)


def arrivals(world: World, endpoint: ShapedTransport, count: int) -> list[tuple[bytes, float]]:
    """Headers of the next messages, and when they came, in seconds since the start."""
    seen = []
    for _ in range(count):
        envelope = endpoint.receive(100.0)
        assert envelope is not None
        seen.append((envelope.header, world.now - 1000.0))
    return seen


def soon_after(seconds: float) -> object:
    return pytest.approx(seconds + SLACK / 2, abs=SLACK / 2 + 1e-9, rel=0)  # the clock counts from 1000


def test_latency_delays_and_does_not_queue() -> None:
    world, a, b = pair(LinkShape(latency_s=0.030))
    for n in range(3):
        a.send(1, b"%d" % n)
    assert arrivals(world, b, 3) == [(b"0", soon_after(0.030)), (b"1", soon_after(0.030)), (b"2", soon_after(0.030))]


def test_bandwidth_serialises_header_and_payload() -> None:
    world, a, b = pair(LinkShape(bandwidth_bps=8e6, latency_s=0.010))
    a.send(1, b"1000", bytes(96_000 - 4))
    a.send(1, b"2000", bytes(4_000 - 4))
    world.pass_time(1.0)
    a.send(1, b"idle", bytes(10_000 - 4))
    assert arrivals(world, b, 1) == [(b"1000", soon_after(1.0))]
    assert arrivals(world, b, 1) == [(b"2000", soon_after(1.0))]
    assert arrivals(world, b, 1) == [(b"idle", soon_after(1.0 + 0.010 + 0.010))]


def test_a_busy_link_makes_the_next_message_wait() -> None:
    world, a, b = pair(LinkShape(bandwidth_bps=8e6, latency_s=0.010))
    for n in range(3):
        a.send(1, b"%d" % n, bytes(99_999))
    assert arrivals(world, b, 3) == [(b"0", soon_after(0.11)), (b"1", soon_after(0.21)), (b"2", soon_after(0.31))]


def test_a_peer_may_have_a_link_of_its_own() -> None:
    world = World()
    a = shaped(world, 0, LinkShape(latency_s=0.5), links={2: LinkShape(latency_s=0.001)})
    b, c = shaped(world, 1, LinkShape()), shaped(world, 2, LinkShape())
    a.send(1, b"far")
    a.send(2, b"near")
    assert arrivals(world, c, 1) == [(b"near", soon_after(0.001))]
    assert arrivals(world, b, 1) == [(b"far", soon_after(0.5))]


def test_a_floor_is_what_no_message_takes_less_than() -> None:
    world = World()
    floor = LinkShape(bandwidth_bps=8e6, latency_s=0.010, floor_s=0.050)
    a, b = shaped(world, 0, LinkShape(), links={1: floor}), shaped(world, 1, LinkShape())
    a.send(1, b"1000", bytes(10_000 - 4))
    a.send(1, b"2000", bytes(40_000 - 4))
    assert arrivals(world, b, 2) == [(b"1000", soon_after(0.050)), (b"2000", soon_after(0.060))]


def test_an_urgent_message_overtakes_what_is_queued() -> None:
    world, a, b = pair(LinkShape(bandwidth_bps=8e6, latency_s=0.010))
    a.send(1, b"hidden states", bytes(1_000_000))
    a.send(1, b"cancel" + bytes(994), urgent=True)
    assert [(header[:6], at) for header, at in arrivals(world, b, 2)] == [
        (b"cancel", soon_after(0.011)),
        (b"hidden", soon_after(1.010013)),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.floats(0, 0.02)), max_size=15), st.floats(1e5, 1e9))
def test_order_and_times_follow_the_model_of_a_link(messages: list[tuple[int, float]], bandwidth_bps: float) -> None:
    world, a, b = pair(LinkShape(bandwidth_bps, latency_s=0.005))
    expected, free = [], 0.0
    for n, (size, pause) in enumerate(messages):
        world.pass_time(pause)
        a.send(1, b"%03d" % n, bytes(size))
        free = max(free, world.now - 1000.0) + 8 * (3 + size) / bandwidth_bps
        expected.append((b"%03d" % n, free + 0.005))
    sent_all = world.now - 1000.0
    assert arrivals(world, b, len(messages)) == [(name, soon_after(max(due, sent_all))) for name, due in expected]


def test_receive_gives_up_before_a_held_message_is_due() -> None:
    world, a, b = pair(LinkShape(latency_s=1.0))
    a.send(1, b"later")
    assert b.receive(0) is None
    assert b.receive(0.4) is None
    assert world.now - 1000.0 == soon_after(0.4)
    assert arrivals(world, b, 1) == [(b"later", soon_after(1.0))]


def test_the_held_messages_of_a_lost_peer_come_first() -> None:
    world, a, b = pair(LinkShape(latency_s=0.1))
    a.send(1, b"last words")
    world.arrived[1].append(PeerLost(0, "rank 0 is gone"))
    assert arrivals(world, b, 1) == [(b"last words", soon_after(0.1))]
    with pytest.raises(PeerLost, match="rank 0 is gone"):
        b.receive(1.0)


def test_the_last_of_a_wait_is_spent_looking() -> None:
    """A blocking wait may overrun by a millisecond; a held message must not be late by it."""
    world, a, b = pair(LinkShape(latency_s=0.1))
    a.send(1, b"")
    assert b.receive(0) is None
    a_while = world.now
    b.receive(10.0)
    assert world.now - a_while == soon_after(0.1)
