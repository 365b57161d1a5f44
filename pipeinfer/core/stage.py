"""One stage of a pipeline as a state machine: runs in stream order, cancellation beside it."""

from collections import deque
from typing import Any

import msgspec

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Effect, Forward
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, Logits


class Stage:
    """Stage `index` of `count`. A cancelled run is skipped or abandoned mid-compute, and travels on as a marker."""

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.is_last = index == count - 1
        self._waiting: deque[tuple[Decode, Any]] = deque()
        self._computing: Decode | None = None
        self._cancelled: set[int] = set()
        self._newest = -1

    @property
    def idle(self) -> bool:
        return self._computing is None

    def handle(self, event: Any, payload: Any = None) -> list[Effect]:
        """A Decode (with its payload), a CancelRun or a Computed; gives what is to be done, in order."""
        if isinstance(event, Decode):
            self._waiting.append((event, payload))
            return self._next() if self._computing is None else []
        if isinstance(event, Computed):
            return [self._finished(event), *self._next()]
        return self._cancel(event)

    def _cancel(self, event: CancelRun) -> list[Effect]:
        # Runs arrive in the order of their ids, so one that is not newer than the last to leave has left already.
        self._cancelled.update(run for run in event.runs if run > self._newest)
        computing = self._computing
        return [Abort()] if computing is not None and computing.run in event.runs else []

    def _next(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting:
            decode, payload = self._waiting.popleft()
            if decode.kv:
                effects.append(Apply(decode.kv))
            if decode.cancelled_at == NOT_CANCELLED and decode.run not in self._cancelled:
                self._computing = decode
                effects.append(Compute(decode, payload))
                return effects
            effects.append(self._leave(decode, 0.0, cancelled=True))
        return effects

    def _finished(self, event: Computed) -> Effect:
        decode = self._computing
        assert decode is not None
        assert decode.run == event.run
        self._computing = None
        # A run whose cancellation came too late to abort it is a marker from here on all the same.
        cancelled = event.aborted or decode.run in self._cancelled
        return self._leave(decode, event.seconds, cancelled=cancelled, computed=event)

    def _leave(self, decode: Decode, seconds: float, *, cancelled: bool, computed: Computed | None = None) -> Effect:
        self._newest = decode.run
        self._cancelled.discard(decode.run)
        spent = (*decode.compute_s, seconds)
        at = decode.cancelled_at
        if cancelled and at == NOT_CANCELLED:
            at = self.index
        if not self.is_last:
            payload = computed.payload if computed is not None and not cancelled else None
            return Forward(msgspec.structs.replace(decode, cancelled_at=at, compute_s=spent), payload)
        if cancelled or computed is None:
            return Forward(Logits(decode.run, (), (), at, spent))
        logits = Logits(decode.run, computed.ids, computed.margins, at, spent, computed.candidates)
        return Forward(logits, computed.payload)
