"""One stage of a pipeline as a state machine: runs in stream order, cancellation and pruning beside it."""

from collections import deque
from typing import Any, NamedTuple

import msgspec

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Forward
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, Logits


class Arrival(NamedTuple):
    """A run as it came over a link: its header, and the hidden states beside it (opaque, None for a marker)."""

    decode: Decode
    payload: Any = None


class Stage(Machine):
    """Stage `index` of `count`. A cancelled run is skipped or abandoned mid-compute, and travels on as a marker; pruned
    rows of a run that goes on are dropped before it is computed."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.index = index
        self.is_last = index == count - 1
        self._waiting: deque[Arrival] = deque()
        self._computing: Decode | None = None
        self._cancelled: set[int] = set()
        self._pruned: dict[int, set[int]] = {}
        self._arrived = self._left = -1

    @property
    def idle(self) -> bool:
        return self._computing is None

    def validate(self) -> None:
        assert not self._waiting or self._computing is not None, "a run waits, but none is computed"
        assert all(run > self._left for run in (*self._cancelled, *self._pruned)), "ids must not pile up"

    def _take(self, event: Any) -> None:
        if isinstance(event, Arrival):
            self._arrive(event)
        elif isinstance(event, Computed):
            self._finished(event)
            self._next()
        elif isinstance(event, CancelRun):
            self._cancel(event)
        else:
            raise PeerError(f"a stage does not take a {type(event).__name__}")

    def _arrive(self, arrival: Arrival) -> None:
        run = arrival.decode.run
        if run <= self._arrived:
            raise PeerError(f"run {run} came after run {self._arrived}: expected ids that grow")
        self._arrived = run
        self._waiting.append(arrival)
        if self._computing is None:
            self._next()

    def _cancel(self, event: CancelRun) -> None:
        # Runs arrive in the order of their ids, so one that is not newer than the last to leave has left already.
        self._cancelled.update(run for run in event.runs if run > self._left)
        for run, rows in event.pruned:
            if run > self._left:
                self._pruned.setdefault(run, set()).update(rows)
        computing = self._computing
        if computing is not None and computing.run in event.runs:
            self._effects.append(Abort())

    def _next(self) -> None:
        """Begin the next run that is to be computed; markers before it pass."""
        while self._waiting:
            decode, payload = self._waiting.popleft()
            if decode.kv:
                self._effects.append(Apply(decode.kv))
            if decode.cancelled_at == NOT_CANCELLED and decode.run not in self._cancelled:
                came = len(decode.tokens)
                decode, keep = self._without_pruned(decode)
                self._computing = decode
                self._effects.append(Compute(decode, payload, keep, came))
                return
            self._leave(decode, 0.0, cancelled=True)

    def _without_pruned(self, decode: Decode) -> tuple[Decode, tuple[int, ...]]:
        """The run without its pruned rows, and which of those that came these are (empty: all)."""
        pruned = self._pruned.get(decode.run)
        if not pruned:
            return decode, ()
        count = len(decode.tokens)
        names = decode.kept or tuple(range(count))
        keep = tuple([at for at in range(count) if names[at] not in pruned])
        if len(keep) == count:
            return decode, ()
        first_output = count - decode.outputs
        several = len(decode.requests) > 1
        return msgspec.structs.replace(
            decode,
            tokens=tuple([decode.tokens[at] for at in keep]),
            positions=tuple([decode.positions[at] for at in keep]),
            sequences=tuple([decode.sequences[at] for at in keep]),
            requests=tuple([decode.requests[at] for at in keep]) if several else decode.requests,
            outputs=sum(at >= first_output for at in keep),
            kept=tuple([names[at] for at in keep]),
        ), keep

    def _finished(self, event: Computed) -> None:
        decode = self._computing
        if decode is None or decode.run != event.run:
            under_way = "none" if decode is None else decode.run
            raise OurError(f"run {event.run} was computed, expected {under_way}")
        self._computing = None
        # A run whose cancellation came too late to abort it is a marker from here on all the same.
        cancelled = event.aborted or decode.run in self._cancelled
        self._leave(decode, event.seconds, cancelled=cancelled, computed=event)

    def _leave(self, decode: Decode, seconds: float, *, cancelled: bool, computed: Computed | None = None) -> None:
        self._left = decode.run
        self._cancelled.discard(decode.run)
        self._pruned.pop(decode.run, None)
        spent = (*decode.compute_s, seconds)
        rows = (*decode.computed, len(decode.tokens) if computed is not None else 0)
        at = decode.cancelled_at
        if cancelled and at == NOT_CANCELLED:
            at = self.index
        if not self.is_last:
            payload = computed.payload if computed is not None and not cancelled else None
            passed = msgspec.structs.replace(decode, cancelled_at=at, compute_s=spent, computed=rows)
            self._effects.append(Forward(passed, payload))
        elif cancelled or computed is None:
            marker = Logits(decode.run, (), (), at, spent, requests=decode.requests, computed=rows)
            self._effects.append(Forward(marker))
        else:
            logits = Logits(decode.run, computed.ids, computed.margins, at, spent, computed.candidates,
                            decode.requests, decode.kept, rows)  # fmt: skip
            self._effects.append(Forward(logits, computed.payload))
