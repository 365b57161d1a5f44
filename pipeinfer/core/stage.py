"""One stage of a pipeline as a state machine: runs in stream order, cancellation and pruning beside it."""

from collections import deque
from typing import Any

import msgspec

from pipeinfer.core.effects import Abort, Apply, Compute, Computed, Forward
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import NOT_CANCELLED, CancelRun, Decode, Logits, Message


class Arrival(Message, frozen=True):
    """A run as it came over a link: its header, and the hidden states beside it (opaque, None for a marker)."""

    decode: Decode
    payload: Any = None


NO_RESULT = Computed(-1, 0.0)
"""Of a run that was not computed."""


class Stage(Machine):
    """Stage `index` of `count`. A cancelled run is skipped or abandoned mid-compute, and travels on as a marker; pruned
    rows of a run that goes on are dropped before it is computed."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.handlers = {Arrival: self._arrive, Computed: self._finished, CancelRun: self._cancel}
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

    def _arrive(self, arrival: Arrival) -> None:
        run = arrival.decode.run
        if run <= self._arrived:
            raise PeerError(f"run {run} came after run {self._arrived}: expected ids that grow")
        self._arrived = run
        if self._computing is None:
            self._take(arrival)
        else:
            self._waiting.append(arrival)

    def _cancel(self, event: CancelRun) -> None:
        # Runs arrive in the order of their ids, so one that is not newer than the last to leave has left already.
        self._cancelled.update(run for run in event.runs if run > self._left)
        for run, rows in event.pruned:
            if run > self._left:
                self._pruned.setdefault(run, set()).update(rows)
        computing = self._computing
        if computing is not None and computing.run in event.runs:
            self._effects.append(Abort())

    def _take(self, arrival: Arrival) -> None:
        """Begin to compute a run; a marker passes."""
        decode = arrival.decode
        if decode.kv:
            self._effects.append(Apply(decode.kv))
        if decode.cancelled_at == NOT_CANCELLED and decode.run not in self._cancelled:
            came = len(decode.tokens)
            decode, keep = self._without_pruned(decode) if self._pruned else (decode, ())
            self._computing = decode
            self._effects.append(Compute(decode, arrival.payload, keep, came))
        else:
            self._leave(decode, None)

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
        decode, self._computing = self._computing, None
        if decode is None or decode.run != event.run:
            raise OurError(f"run {event.run} was computed, expected {'none' if decode is None else decode.run}")
        self._leave(decode, event)
        while self._waiting and self._computing is None:
            self._take(self._waiting.popleft())

    def _leave(self, decode: Decode, computed: Computed | None) -> None:
        """Send it on: as a marker, which carries nothing, where it was not computed or is cancelled by now."""
        run, at = decode.run, decode.cancelled_at
        cancelled = computed is None or computed.aborted or run in self._cancelled
        self._left = run
        self._cancelled.discard(run)
        self._pruned.pop(run, None)
        if cancelled and at == NOT_CANCELLED:
            at = self.index
        seconds, count = (computed.seconds, len(decode.tokens)) if computed is not None else (0.0, 0)
        spent, rows = (*decode.compute_s, seconds), (*decode.computed, count)
        result = NO_RESULT if computed is None or cancelled else computed
        message: Decode | Logits
        if self.is_last:
            message = Logits(run, result.ids, result.margins, at, spent, result.candidates, decode.requests,
                             () if cancelled else decode.kept, rows)  # fmt: skip
        else:
            message = msgspec.structs.replace(decode, cancelled_at=at, compute_s=spent, computed=rows)
        self._effects.append(Forward(message, result.payload))
