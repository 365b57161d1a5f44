"""What every transport has to do. Subclass in a pytest module and say how endpoints are made:

    class TestMine(TransportConformance):
        def endpoint(self, rank):
            return MyTransport("mine://", rank)

Endpoints may need things in common (keys, a directory): keep those on the test instance. An endpoint's `address` has to
be free to listen at again after it was closed.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from pipeinfer.runtime.transports import MAX_HEADER, MAX_PAYLOAD, Envelope, PeerLost, Transport

WAIT_S = 1.0

PATIENCE_S = 30.0
"""How long a message may take to arrive before a test gives it up."""


class TransportConformance:
    """Base class; its tests know only the protocol."""

    def endpoint(self, rank: int) -> Transport:
        """A new endpoint for `rank`, at an address nobody has."""
        raise NotImplementedError

    def endpoint_at(self, address: str, rank: int) -> Transport | None:
        """A new endpoint at `address`; None: this transport's addresses cannot be known beforehand."""
        return None

    @pytest.fixture
    def endpoints(self) -> Iterator[Callable[[int], list[Transport]]]:
        """Makes n endpoints, ranks 0 to n-1, each with a link to every other, and closes them afterwards."""
        with ExitStack() as stack:

            def make(count: int) -> list[Transport]:
                ranks = [stack.enter_context(closing(self.endpoint(rank))) for rank in range(count)]
                for one in ranks:
                    for other in ranks:
                        if one is not other:
                            one.connect(other.rank, other.address)
                return ranks

            yield make

    @pytest.fixture
    def pair(self, endpoints: Callable[[int], list[Transport]]) -> list[Transport]:
        """Ranks 0 and 1, linked both ways."""
        return endpoints(2)

    def test_header_and_payload_arrive_as_they_were_sent(self, pair: list[Transport]) -> None:
        a, b = pair
        for payload in (b"", b"\x00", bytes(range(256)) * 64, random.Random(0).randbytes(5_000_000)):
            a.send(1, b"header", payload)
            envelope = expect(b)
            assert (envelope.sender, envelope.header) == (0, b"header")
            assert bytes(envelope.payload) == payload

    def test_a_buffer_is_a_payload(self, pair: list[Transport]) -> None:
        a, b = pair
        a.send(1, b"", memoryview(bytearray(b"0123456789"))[2:5])
        assert bytes(expect(b).payload) == b"234"

    def test_order_is_kept_over_thousands_of_messages_of_mixed_sizes(self, pair: list[Transport]) -> None:
        a, b = pair
        sizes = [0, 0, 1, 100, 16 * 1024, 200_000]
        for n in range(3000):
            a.send(1, b"%d" % n, bytes([n % 256]) * sizes[n % len(sizes) if n % 100 == 5 else n % 4])
        for n in range(3000):
            envelope = expect(b)
            assert envelope.header == b"%d" % n
            assert bytes(envelope.payload[:1]) in (b"", bytes([n % 256]))

    def test_whoever_waits_can_be_woken_and_no_message_is_lost(self, pair: list[Transport]) -> None:
        a, b = pair
        b.send(0, b"before")
        assert expect(a).header == b"before"
        for _ in range(3):
            caller = threading.Thread(target=a.wake)
            caller.start()
            caller.join()
            start = time.monotonic()
            assert a.receive(PATIENCE_S) is None
            assert time.monotonic() - start < PATIENCE_S / 2
        a.wake()
        b.send(0, b"after")
        heard = [a.receive(PATIENCE_S) for _ in range(2)]
        assert [envelope.header for envelope in heard if envelope is not None][:1] == [b"after"]

    def test_both_directions_at_once(self, pair: list[Transport]) -> None:
        a, b = pair
        for n in range(300):
            a.send(1, b"%d" % n, bytes(n))
            b.send(0, b"%d" % n, bytes(2 * n))
        for n in range(300):
            assert len(expect(b).payload) == n
            assert len(expect(a).payload) == 2 * n

    def test_three_ranks_each_hear_the_other_two_in_order(self, endpoints: Callable[[int], list[Transport]]) -> None:
        ranks = endpoints(3)
        for n in range(100):
            for one in ranks:
                for other in ranks:
                    if one is not other:
                        one.send(other.rank, b"%d" % n)
        for one in ranks:
            heard: dict[int, list[bytes]] = {other.rank: [] for other in ranks if other is not one}
            for _ in range(200):
                envelope = expect(one)
                heard[envelope.sender].append(envelope.header)
            assert all(headers == [b"%d" % n for n in range(100)] for headers in heard.values())

    def test_a_big_header_arrives(self, pair: list[Transport]) -> None:
        a, b = pair
        header = random.Random(1).randbytes(MAX_HEADER - 64)
        a.send(1, header, b"payload")
        assert expect(b) == (0, header, b"payload")

    def test_over_a_length_limit_is_a_value_error_and_harmless(self, pair: list[Transport]) -> None:
        a, b = pair
        with pytest.raises(ValueError, match="header"):
            a.send(1, bytes(MAX_HEADER + 1))
        with pytest.raises(ValueError, match="payload"):
            a.send(1, b"", bytes(MAX_PAYLOAD + 1))
        a.send(1, b"next")
        assert expect(b).header == b"next"

    def test_a_link_that_was_never_opened_is_a_value_error(self, pair: list[Transport]) -> None:
        with pytest.raises(ValueError, match="rank 7"):
            pair[0].send(7, b"")

    def test_receive_gives_up_after_its_timeout(self, pair: list[Transport]) -> None:
        assert pair[0].receive(0) is None
        start = time.monotonic()
        assert pair[0].receive(0.05) is None
        assert time.monotonic() - start >= 0.05

    @pytest.fixture
    def others_s(self) -> float:
        """Processor time of this process while it waits without a pair: threads of other tests may be about."""
        before = time.process_time()
        time.sleep(WAIT_S)
        return time.process_time() - before

    def test_waiting_takes_no_processor_time(self, others_s: float, pair: list[Transport]) -> None:
        """By the processor's clock, of all threads that the pair brought: less than 1 % of a core."""
        for endpoint in pair:
            endpoint.receive(0.01)
        before = time.process_time()
        pair[0].receive(WAIT_S)
        assert time.process_time() - before - others_s < 0.01 * WAIT_S

    def test_connect_is_idempotent(self, pair: list[Transport]) -> None:
        a, b = pair
        a.send(1, b"1")
        a.connect(1, b.address)
        a.send(1, b"2")
        assert [expect(b).header, expect(b).header] == [b"1", b"2"]

    def test_connect_and_send_before_the_peer_listens(self) -> None:
        with closing(self.endpoint(1)) as probe:
            address = probe.address
        with closing(self.endpoint(0)) as a:
            a.connect(1, address)
            a.send(1, b"early", b"bird")
            assert a.receive(0.1) is None
            b = self.endpoint_at(address, 1)
            if b is None:
                pytest.skip("addresses cannot be known beforehand")
            with closing(b):
                assert expect(b) == (0, b"early", b"bird")

    def test_urgent_messages_arrive(self, pair: list[Transport]) -> None:
        a, b = pair
        a.send(1, b"cancel", urgent=True)
        assert expect(b).header == b"cancel"

    def test_traffic_is_counted_per_peer(self, pair: list[Transport]) -> None:
        a, b = pair
        a.send(1, b"four", bytes(1000))
        a.send(1, b"four")
        expect(b)
        expect(b)
        assert (a.traffic[1].sent_messages, a.traffic[1].sent_bytes) == (2, 1008)
        assert (b.traffic[0].received_messages, b.traffic[0].received_bytes) == (2, 1008)

    def test_close_is_idempotent(self, pair: list[Transport]) -> None:
        pair[0].close()
        pair[0].close()

    def test_the_last_words_of_a_closed_peer_arrive_and_then_it_is_lost_once(self, pair: list[Transport]) -> None:
        a, b = pair
        for n in range(100):
            a.send(1, b"%d" % n, bytes(10_000))
        a.close()
        assert [expect(b).header for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert expect_lost(b) == 0
        assert b.receive(0.05) is None
        with pytest.raises(PeerLost):
            b.send(0, b"anyone there?")

    def test_a_peer_is_lost_in_either_direction_of_a_single_link(self) -> None:
        for closer in (0, 1):
            ends = [self.endpoint(0), self.endpoint(1)]
            with closing(ends[0]), closing(ends[1]):
                ends[0].connect(1, ends[1].address)
                ends[0].send(1, b"hello")
                assert expect(ends[1]).header == b"hello"
                assert ends[0].receive(0.05) is None
                ends[closer].close()
                assert expect_lost(ends[1 - closer]) == closer

    def test_the_others_go_on_when_one_is_lost(self, endpoints: Callable[[int], list[Transport]]) -> None:
        a, b, c = ranks = endpoints(3)
        for one in ranks:
            for other in ranks:
                if one is not other:
                    one.send(other.rank, b"hello")
        for _ in range(2):
            assert {expect(one).header for one in ranks} == {b"hello"}
        a.close()
        assert expect_lost(b) == 0
        assert expect_lost(c) == 0
        b.send(2, b"still there")
        assert expect(c) == (1, b"still there", b"")


def expect(endpoint: Transport) -> Envelope:
    """The next message; fails when none comes."""
    envelope = endpoint.receive(PATIENCE_S)
    assert envelope is not None, f"rank {endpoint.rank} received nothing in {PATIENCE_S:g} s"
    return envelope


def expect_lost(endpoint: Transport) -> int:
    """The rank that `endpoint` loses next; fails when it receives a message or nothing."""
    with pytest.raises(PeerLost) as lost:
        endpoint.receive(PATIENCE_S)
    assert "\n" not in str(lost.value)
    return lost.value.rank
