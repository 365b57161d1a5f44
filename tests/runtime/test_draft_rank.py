"""A draft rank at the end of a trial: it lets go of what it computes, and none of that is left in the next trial."""

import gc
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import DraftFrom, DraftSettings, KvOp, Proposal
from pipeinfer.core.tree import Node
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden
from pipeinfer.engine.sampling import Sampling
from pipeinfer.runtime import control
from pipeinfer.runtime.control import AddRequest, AskReport, Begin, Report, Setup, Shutdown
from pipeinfer.runtime.draft_rank import COLLECT_AFTER, DraftWorker
from pipeinfer.runtime.rank_links import Endpoint
from pipeinfer.runtime.transports import Envelope, Traffic

VOCABULARY = 8
ENDLESS = 1000
"""A draft that is let on so far is never done by itself."""

SETTINGS = DraftSettings(micro_batch=1)
BEGIN = Begin({}, "chain", {}, 4096)


class Wire:
    """A transport with `waiting` messages from the head, where what follows None comes to a rank that waits, not to one
    that computes; keeps what is sent. With nothing left it says goodbye after a while, to a rank that computes after a
    long one."""

    rank, address = 1, ""

    def __init__(self, *waiting: Any) -> None:
        self.waiting = deque(waiting)
        self.sent: list[Any] = []
        self.traffic: dict[int, Traffic] = {}
        self.computing = 3 * ENDLESS
        self.idle = 20

    def connect(self, rank: int, address: str) -> None: ...

    def send(self, rank: int, header: bytes, payload: bytes | memoryview = b"", *, urgent: bool = False) -> None:
        self.sent.append(control.decode(header))

    def receive(self, timeout: float) -> Envelope | None:
        if not self.waiting:
            time.sleep(min(timeout, 1e-3))
            self.computing -= timeout == 0
            self.idle -= timeout > 0
            if self.computing > 0 and self.idle > 0:
                return None
        if self.waiting and self.waiting[0] is None:
            if timeout > 0:
                self.waiting.popleft()
            return None
        message = self.waiting.popleft() if self.waiting else Shutdown()
        return Envelope(-1, control.encode(message), memoryview(b""))

    def close(self) -> None: ...


class Model:
    """A draft that likes token 1. During forward number n the messages `arriving[n]` come."""

    def __init__(self, wire: Wire, arriving: dict[int, list[Any]]) -> None:
        self.forwards: list[Batch] = []
        self.aborted = 0
        self._wire = wire
        self._arriving = arriving

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        self._wire.waiting.extend(self._arriving.get(len(self.forwards), ()))
        self.forwards.append(batch)
        if abort():
            self.aborted += 1
            return None
        logits = np.zeros((batch.outputs, VOCABULARY), np.float32)
        logits[:, 1] = 9
        return logits

    def apply(self, op: KvOp) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


def served(*waiting: Any, arriving: dict[int, list[Any]]) -> tuple[Wire, Model]:
    setup = Setup(1, "draft", "", b"", "", (0, 1), 0, 1, sequences=16, cells=4096, next_rank=-1, next_address="",
                  head_address="")  # fmt: skip
    wire = Wire(*waiting)
    endpoint = Endpoint(wire, setup)
    model = Model(wire, arriving)
    endpoint.worker = DraftWorker(endpoint, model)
    endpoint.serve()
    return wire, model


def test_asked_for_its_report_it_stops_drafting() -> None:
    order = DraftFrom(1, (5, 6), ENDLESS, SETTINGS)
    wire, model = served(BEGIN, order, arriving={3: [AskReport()]})
    assert [type(message) for message in wire.sent].count(Report) == 1
    assert len(model.forwards) == 4


def test_asked_just_when_it_was_to_draft_something_else() -> None:
    """What is drafted was not wanted any more already: no reason to start on what was."""
    first, other = DraftFrom(1, (5, 6), ENDLESS, SETTINGS), DraftFrom(2, (7,), ENDLESS)
    wire, model = served(BEGIN, first, arriving={3: [other, AskReport()]})
    assert isinstance(wire.sent[-1], Report)
    assert len(model.forwards) == 4


def test_a_trial_that_begins_in_the_midst_of_the_last_one_gets_its_drafts() -> None:
    first, prompt, text = DraftFrom(1, (5, 6), ENDLESS, SETTINGS), DraftFrom(2, (3, 4, 5), 8), DraftFrom(3, (1,), 8)
    further = DraftFrom(4, (1,), 8)
    wire, model = served(BEGIN, first, arriving={3: [BEGIN, prompt, text], 4: [further]})
    assert [batch.tokens for batch in model.forwards[4:5]] == [(3, 4, 5)]
    assert model.aborted == 1, "that of the trial before"
    proposals = [message for message in wire.sent if isinstance(message, Proposal) and message.order >= 2]
    assert sum(len(proposal.nodes) for proposal in proposals) >= 3


def test_a_stalled_draft_does_not_wake_after_its_trial() -> None:
    """With `decay` it would, and what it then computes would be counted in the next trial."""
    begin = BEGIN
    doubtful = DraftSettings(1, cutoff=1.0, decay=0.5)
    wire, model = served(begin, DraftFrom(1, (5, 6), ENDLESS, doubtful), None, AskReport(), arriving={})
    assert isinstance(wire.sent[-1], Report)
    assert len(model.forwards) == 1


def test_requests_that_have_ended_leave_nothing_on_a_rank_that_never_reports() -> None:
    """Ranks collect garbage between trials alone, and a service has none."""
    messages: list[Any] = [BEGIN]
    for number in range(3 * COLLECT_AFTER):
        over = (number - 1,) if number else ()
        messages += [
            AddRequest(number, Sampling(), "chain", {}, over=over), DraftFrom(1, (5, 6), 3, SETTINGS, number), None,
            DraftFrom(2, (), -1, None, number), None,
        ]  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        before = _trees()
        served(*messages, arriving={})
        left = _trees() - before
    finally:
        gc.enable()
    assert left <= COLLECT_AFTER + 2


def _trees() -> int:
    """How many token trees this process holds."""
    return len({id(root) for root in map(_root, gc.get_objects()) if root is not None})


def _root(one: object) -> Node | None:
    """Where the tree begins that this is a token of, if it is one."""
    if type(one) is not Node:  # isinstance asks the object for its class, which libraries' deprecated ones warn of
        return None
    while one.parent is not None:
        one = one.parent
    return one
