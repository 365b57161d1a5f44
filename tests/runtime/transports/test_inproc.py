import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeinfer.runtime.transports import Transport, TransportError
from pipeinfer.runtime.transports.inproc import InprocTransport
from pipeinfer.testing.transports import TransportConformance, expect, expect_lost


class TestInproc(TransportConformance):
    def endpoint(self, rank: int) -> Transport:
        return InprocTransport("inproc://*", rank)

    def endpoint_at(self, address: str, rank: int) -> Transport:
        return InprocTransport(address, rank)


@pytest.fixture
def linked() -> Iterator[list[InprocTransport]]:
    """Ranks 0 and 1, and a link from 0 to 1."""
    with closing(InprocTransport("inproc://", 0)) as a, closing(InprocTransport("inproc://", 1)) as b:
        a.connect(1, b.address)
        yield [a, b]


def test_the_payload_is_not_copied(linked: list[InprocTransport]) -> None:
    a, b = linked
    payload = memoryview(bytearray(10))
    a.send(1, b"", payload)
    assert expect(b).payload is payload


def test_a_receiver_that_waits_is_woken(linked: list[InprocTransport]) -> None:
    a, b = linked
    sender = threading.Timer(0.05, a.send, (1, b"wake up"))
    sender.start()
    assert expect(b).header == b"wake up"
    sender.join()


def test_a_taken_name_is_refused_until_its_owner_closes() -> None:
    first = InprocTransport("inproc://name", 0)
    with pytest.raises(TransportError, match="inproc://name is in use by rank 0"):
        InprocTransport("inproc://name", 1)
    first.close()
    InprocTransport("inproc://name", 1).close()


def test_a_peer_that_never_comes_is_lost() -> None:
    with closing(InprocTransport("inproc://", 0, connect_s=0.05)) as a:
        a.connect(1, "inproc://nobody")
        assert expect_lost(a) == 1
