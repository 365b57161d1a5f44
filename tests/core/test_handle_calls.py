"""What handling an event costs, counted in calls: nothing that grows with other requests' runs."""

import gc
import sys
from collections import deque
from statistics import mean
from typing import Any

import pytest

from pipeinfer.core.effects import Request, Start
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.messages import Decode, DraftFrom, DraftNode, Logits, Proposal
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.strategies.pipeinfer import PipeInfer

PROMPT = tuple(range(10))
FAR = 1000
ASKING = 36
"""Calls in which another request is asked what it would send, before and after, the likelier run is chosen, and whether
the other had better go with it."""

ALONE = 50
"""Calls per result of a request that has the pipe for itself."""


class CountingPeers:
    """Stages and draft of a text in which each token is the one before plus one; counts the scheduler's calls. A row
    takes as long as a run, so that each travels alone."""

    def __init__(self, stages: int, requests: int, in_flight: int) -> None:
        shape = PipelineShape(stages, cells=4096, sequences=260)
        self.scheduler = Scheduler(shape, lambda _: PipeInfer(draft=2, in_flight=in_flight))
        self.calls: dict[int, list[int]] = {number: [] for number in range(requests)}
        self._runs: deque[Logits] = deque()
        self._orders: deque[DraftFrom] = deque()
        self._drafted: dict[int, int] = {}
        for number in range(requests):
            self._tell(Start(Request(PROMPT, FAR), number))

    def run(self, results: int) -> None:
        """So many results come back, and all that is drafted in between."""
        for _ in range(results):
            result = self._runs.popleft()
            self.calls[result.requests[0]].append(self._tell(result))
            while self._orders:
                self._draft(self._orders.popleft())

    def _draft(self, order: DraftFrom) -> None:
        last = self._drafted.get(order.request, len(PROMPT) - 1)
        while last < order.until:
            nodes = [DraftNode(last + 1, last if last >= len(PROMPT) else -1, last + 1, 0.9),
                     DraftNode(last + 2, last + 1, last + 2, 0.9)]  # fmt: skip
            last += 2
            self._tell(Proposal(order.order, tuple(nodes), False, order.request))
        self._drafted[order.request] = last

    def _tell(self, event: Any) -> int:
        calls = 0

        def count(_frame: Any, what: str, _argument: Any) -> None:
            nonlocal calls
            calls += what == "call"

        gc.disable()  # Others' hooks into a collection are calls too.
        sys.setprofile(count)
        try:
            effects = self.scheduler.handle(0.0, event)
        finally:
            sys.setprofile(None)
            gc.enable()
        for effect in effects:
            if isinstance(effect, Decode):
                ids = tuple([token + 1 for token in effect.tokens[len(effect.tokens) - effect.outputs :]])
                rows = (len(effect.tokens),) * self.scheduler.pipeline.stages
                self._runs.append(Logits(effect.run, ids, compute_s=rows, computed=rows, requests=effect.requests))
            elif isinstance(effect, DraftFrom):
                self._orders.append(effect)
        return calls


def calls_of_the_first(stages: int = 32, requests: int = 1, in_flight: int = 64) -> float:
    """Calls per result of the first of so many requests, while the pipe is full."""
    peers = CountingPeers(stages, requests, in_flight)
    peers.run(4 * in_flight)
    assert len(peers.scheduler.in_flight) >= min(stages, in_flight) - 1, "the pipe is full"
    peers.calls[0].clear()
    peers.run(2 * in_flight)
    return mean(peers.calls[0])


def test_a_request_alone_pays_for_no_company() -> None:
    assert calls_of_the_first() <= ALONE


def test_it_does_not_grow_with_runs_in_flight() -> None:
    assert calls_of_the_first(in_flight=64) == pytest.approx(calls_of_the_first(in_flight=16), rel=0.02)


@pytest.mark.parametrize("stages", [8, 32])
def test_a_second_request_adds_a_question_however_many_runs_it_has(stages: int) -> None:
    assert calls_of_the_first(stages, requests=2) <= calls_of_the_first(stages) + ASKING
