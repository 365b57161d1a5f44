"""Ranks that compute in a share of the time: as long as a slower node would take, and as easy to interrupt."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.core.messages import CancelRun
from pipeinfer.plugins import open_strategy
from pipeinfer.results.metrics import summary
from pipeinfer.runtime import control
from pipeinfer.runtime.control import Setup
from pipeinfer.runtime.rank_links import Endpoint
from pipeinfer.runtime.transports import HEAD, Transport, open_transport

WORK_S = 0.02


class Cancellable:
    """A role that stops what it computes for any message."""

    busy = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def take(self, message: object, payload: bytes | memoryview) -> None:
        self.endpoint.abort_requested = True

    def next_wake(self) -> float:
        return float("inf")

    def wake(self) -> None:
        """Never asked for."""


@pytest.fixture
def head() -> Iterator[Transport]:
    with closing(open_transport("inproc://", HEAD)) as transport:
        yield transport


def rank(head: Transport, cpu_share: float) -> Endpoint:
    """An endpoint that `head` can reach."""
    transport = open_transport("inproc://", 0)
    head.connect(0, transport.address)
    setup = Setup(0, "target", "numpy", b"{}", "", (0, 1), 0, 1, 1, 1, HEAD, "", "", cpu_share=cpu_share)
    endpoint = Endpoint(transport, setup)
    endpoint.worker = Cancellable(endpoint)
    return endpoint


def burn() -> None:
    """Use a processor for WORK_S."""
    until = time.thread_time() + WORK_S
    while time.thread_time() < until:
        pass


def test_a_computation_takes_as_long_as_on_a_slower_node(head: Transport) -> None:
    endpoint = rank(head, cpu_share=0.25)
    start = endpoint.start()
    burn()
    seconds, aborted = endpoint.finish("run", start, aborted=False)
    assert not aborted
    assert seconds >= 4 * WORK_S


def test_time_without_the_processor_is_no_work(head: Transport) -> None:
    endpoint = rank(head, cpu_share=0.01)
    start = endpoint.start()
    time.sleep(0.2)
    seconds, aborted = endpoint.finish("run", start, aborted=False)
    assert not aborted
    assert seconds < 2  # a hundredth of the speed would be 20 s


def test_a_whole_share_waits_for_nothing(head: Transport) -> None:
    endpoint = rank(head, cpu_share=1.0)
    head.send(0, control.encode(CancelRun((0,))))
    start = endpoint.start()
    assert not endpoint.finish("run", start, aborted=False)[1]
    assert endpoint.transport.receive(0) is not None


@pytest.mark.parametrize("cpu_share", [1e-3, 0.9])
def test_a_cancellation_ends_the_wait(head: Transport, cpu_share: float) -> None:
    endpoint = rank(head, cpu_share)
    start = endpoint.start()
    burn()
    head.send(0, control.encode(CancelRun((0,))))
    seconds, aborted = endpoint.finish("run", start, aborted=False)
    assert aborted
    assert seconds < 100 * WORK_S  # of 1000
    assert not endpoint.abort_requested


def test_slow_ranks_give_the_same_tokens_and_say_how_slow_they_were() -> None:
    trials = []
    for share in (1.0, 0.5):
        with Cluster(stages=2, transport="inproc", cpu_share=share) as cluster:
            prompt = cluster.tokenizer.encode("def read(")
            trials.append(cluster.generate(prompt, open_strategy("pipeinfer", {}), max_tokens=12, stop_ids=()))
    fast, slow = trials
    assert slow.token_ids == fast.token_ids
    assert [found["cpu_share"] for found in summary(slow)["ranks"]] == [0.5, 0.5, 0.5]
