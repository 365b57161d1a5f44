"""The rank that drafts, and what it knows of the draft's other ranks where the draft is a pipeline of its own."""

import gc
import time
from collections.abc import Sequence
from typing import Any

from pipeinfer.core.draft import DraftPolicy
from pipeinfer.core.drafter import Drafter
from pipeinfer.core.effects import Abort, Apply, ComputeDraft, Drafted, Forward, Wake, Woken
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import CancelRun, Candidates, Decode, DraftFrom, KvOp, Logits, RunKind
from pipeinfer.engine.backend import Batch, ModelStage
from pipeinfer.engine.sampling import Floats, Sampling, best_candidates
from pipeinfer.plugins import open_drafting
from pipeinfer.runtime.control import AddRequest, Begin
from pipeinfer.runtime.rank_links import Endpoint, unexpected
from pipeinfer.runtime.stage_rank import add_request, apply, as_bytes, samplings
from pipeinfer.runtime.transports import HEAD
from pipeinfer.runtime.world import World

COLLECT_AFTER = 64
"""Requests that have ended. What was drafted for them refers to itself in circles, and while requests follow one
another no trial ends, after which a rank collects garbage otherwise."""


class DraftWorker(World):
    """Performs a Drafter's effects with the draft model: its layers here, and the ranks behind for the others."""

    def __init__(self, endpoint: Endpoint, model: ModelStage) -> None:
        self.busy = False
        self._endpoint = endpoint
        self._model = model
        self._behind = RanksBehind(endpoint) if endpoint.setup.behind else None
        self._sampling: dict[int, Sampling] = {}
        self._policies: dict[int, tuple[str, dict[str, Any]]] = {}
        self._policy: tuple[str, dict[str, Any]] = ("", {})
        self._drafter: Drafter | None = None
        self._work: ComputeDraft | None = None
        self._wake_at = float("inf")
        self._over = 0
        """Requests that have ended since garbage was collected."""

    def now(self) -> float:
        return time.monotonic()

    def take(self, message: Any, payload: bytes | memoryview) -> None:
        """A DraftFrom, a Begin, an AddRequest, or a Logits of the draft's last rank."""
        if isinstance(message, DraftFrom):
            self._handle(message)
        elif isinstance(message, Begin):
            self._start_anew(message)
        elif isinstance(message, AddRequest):
            self._add(message)
        elif isinstance(message, Logits) and self._behind is not None:
            self._behind.take(message)
        else:
            unexpected(message, "the draft rank")

    def _start_anew(self, begin: Begin) -> None:
        setup = self._endpoint.setup
        self._sampling = dict(begin.sampling)
        self._policy, self._policies = (begin.drafting, begin.drafting_options), {}
        self._drafter = Drafter(setup.cells, setup.sequences, begin.context, self._open_policy,
                                keeps_texts=begin.keeps_texts)  # fmt: skip
        self._work, self._wake_at = None, float("inf")
        self._over = 0
        self._model.clear()
        if self._behind is not None:
            self._behind.pass_on(begin)

    def _add(self, message: AddRequest) -> None:
        for request in message.over:
            self._policies.pop(request, None)
        self._over += len(message.over)
        if self._over >= COLLECT_AFTER:
            self._over = 0
            gc.collect()
        self._policies[message.request] = (message.drafting, message.drafting_options)
        add_request(self._sampling, message)
        if self._behind is not None:
            self._behind.pass_on(message)

    def _open_policy(self, request: int) -> DraftPolicy:
        made: DraftPolicy = open_drafting(*self._policies.get(request, self._policy))
        return made

    def next_wake(self) -> float:
        return self._wake_at

    def wake_up(self) -> None:
        self._wake_at = float("inf")
        self._handle(Woken())

    def _handle(self, event: Any) -> None:
        drafter = self._drafter
        assert drafter is not None
        self.tell(drafter, event)
        while self._work is not None and not self.busy and not self._endpoint.over:
            self.tell(drafter, self._compute(self._work))

    def compute_draft(self, machine: Machine, effect: ComputeDraft) -> None:
        self._work = effect

    def apply(self, machine: Machine, effect: Apply) -> None:
        apply(self._model, effect.ops)
        if self._behind is not None:
            self._behind.apply(effect.ops)

    def forward(self, machine: Machine, effect: Forward) -> None:
        self._endpoint.send_to(HEAD, effect.message)

    def abort(self, machine: Machine, effect: Abort) -> None:
        self._endpoint.abort_requested = True

    def wake(self, machine: Machine, effect: Wake) -> None:
        self._wake_at = time.monotonic() + effect.delay

    def _compute(self, work: ComputeDraft) -> Drafted:
        self._work, self.busy = None, True
        start = self._endpoint.start()
        batch = Batch(work.tokens, work.positions, work.sequences, work.outputs, work.requests)
        output = self._model.forward(batch, None, self._endpoint.poll)
        found: Candidates | None = None
        if output is not None and self._behind is None:
            hows = samplings(self._sampling, work.requests, work.outputs)
            found = best_candidates(output, work.positions, hows, work.count)
        seconds, aborted = self._endpoint.finish(lambda: "draft", start, aborted=output is None)
        if aborted:
            found = None
        elif output is not None and self._behind is not None:
            found = self._behind.forward(work, output, seconds)
            seconds = time.monotonic() - start
        self.busy = False
        return Drafted(found or (), found is None, seconds)


class RanksBehind:
    """The draft's layers that lie on further ranks, which are stages with this rank for a head.

    KV operations travel with the next forward. One that is not wanted any more is cancelled and never waited for: what
    comes back in its place is dropped, and what is sent after it stands in order behind it.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._ranks = range(endpoint.setup.rank + 1, endpoint.setup.rank + 1 + len(endpoint.setup.behind))
        self._run = -1
        self._pending: list[KvOp] = []
        self._answer: Logits | None = None

    def pass_on(self, message: Begin | AddRequest) -> None:
        """A new trial, or one more request in this one."""
        if isinstance(message, Begin):
            self._pending.clear()
        self._endpoint.send(message)

    def apply(self, ops: Sequence[KvOp]) -> None:
        """Apply KV operations, in order, before the next forward."""
        self._pending += ops

    def forward(self, work: ComputeDraft, hidden: Floats, seconds: float) -> Candidates | None:
        """The candidates for hidden states float32 [R, hidden size] that took `seconds` here; None if it was aborted.
        Rows that ask for none, like those of a prompt, are not waited for."""
        self._run += 1
        kv, self._pending = tuple(self._pending), []
        self._answer = None
        self._endpoint.send(
            Decode(self._run, RunKind.SPECULATIVE, work.tokens, work.positions, work.sequences, work.outputs, kv,
                   compute_s=(seconds,), requests=work.requests, candidates=work.count),
            as_bytes(hidden),
        )  # fmt: skip
        if not work.outputs:
            return ()
        if not self._endpoint.wait(lambda: self._answer is not None):
            for rank in self._ranks:
                self._endpoint.send_to(rank, CancelRun((self._run,)), urgent=True)
            return None
        assert self._answer is not None
        return self._answer.candidates or None  # None: that rank was told of the end before this one

    def take(self, message: Logits) -> None:
        """Take the result of a forward; that of an older forward is ignored."""
        if message.run == self._run:
            self._answer = message
