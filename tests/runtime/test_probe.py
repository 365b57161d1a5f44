"""A rank that has no model yet: it answers the head, and minds nobody else."""

from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest

from pipeinfer.errors import LaunchError
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Failure, Inspect, Inspected, MeasureLink, Ping, Pong, Setup, Shutdown
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.transports import HEAD, PeerLost, Transport, open_transport

WITHIN_S = 60.0


class Head:
    """The head's side of one rank, and a neighbour of it."""

    def __init__(self) -> None:
        self.transport = open_transport("inproc://", HEAD)
        self.rank = open_transport("inproc://", 0)
        self.neighbour = open_transport("inproc://", 1)
        self.thread = Thread(target=self._be_a_rank)
        self.thread.start()
        self.transport.connect(0, self.rank.address)

    def _be_a_rank(self) -> None:
        with suppress(LaunchError, PeerLost):  # Of which the head is told.
            run_rank(self.rank, WITHIN_S)
        self.rank.close()

    def tell(self, message: object) -> None:
        self.transport.send(0, control.encode(message))

    def hear(self) -> object:
        return hear(self.transport)


def hear(transport: Transport) -> object:
    envelope = transport.receive(WITHIN_S)
    assert envelope is not None
    return control.decode(envelope.header)


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    with suppress(PeerLost):  # It may have left already.
        head.tell(Shutdown())
    head.thread.join(WITHIN_S)
    head.transport.close()
    head.neighbour.close()
    assert not head.thread.is_alive()


def inspect(head: Head, rank: int = 0) -> None:
    head.tell(Inspect(rank, "numpy", b"{}", head.transport.address))


def test_it_says_who_it_is_and_what_is_free(head: Head) -> None:
    inspect(head)
    found = head.hear()
    assert isinstance(found, Inspected)
    assert found.rank == 0
    assert found.shared
    assert found.memory_bytes > 1 << 20


def test_a_neighbour_may_leave_first(head: Head) -> None:
    inspect(head)
    head.hear()
    head.neighbour.connect(0, head.rank.address)
    head.neighbour.send(0, control.encode(Ping(1, head.neighbour.address)))
    assert isinstance(hear(head.neighbour), Pong)
    head.neighbour.close()
    inspect(head)
    assert isinstance(head.hear(), Inspected)


def test_a_neighbour_that_is_gone_cannot_be_timed(head: Head) -> None:
    inspect(head)
    head.hear()
    head.neighbour.connect(0, head.rank.address)
    head.neighbour.send(0, control.encode(Ping(1, head.neighbour.address)))
    head.neighbour.close()
    head.tell(MeasureLink(1, head.neighbour.address, head.rank.address))
    said = head.hear()
    assert isinstance(said, Failure)
    assert said.rank == 1


def test_a_worker_of_another_number_says_so(head: Head) -> None:
    inspect(head, rank=3)
    line = "the head takes this worker for rank 3, but it was started as 0: start it without --rank to be any"
    assert head.hear() == Failure(3, line, True)


def test_it_is_set_up_after_it_was_measured(head: Head) -> None:
    inspect(head)
    head.hear()
    address = head.transport.address
    head.tell(Setup(0, "target", "nonsense", b"{}", "", (0, 1), 0, 1, 4, 64, HEAD, address, address))
    said = head.hear()
    assert isinstance(said, Failure)
    assert said.user_error
    assert 'no backend "nonsense"' in said.text
