"""What happens in the pipe, for the page: made of the very events and effects that the log and the trace are made of.

A short object per happening, `t` in seconds on the head's clock: `sent` a run, `done` it came back, `cancelled` runs,
`pruned` rows, `drafted` tokens, `committed` tokens, `began` and `ended` a request, `note` what a strategy says.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeinfer.core.effects import Emit, Finish, Note, Start
from pipeinfer.core.messages import CancelRun, Decode, Logits, Proposal

MOST_KEPT = 4096
"""Events that wait for a listener; of a slower one the oldest are lost, and it is told how many."""

MOST_LISTENERS = 16


class Listener:
    """Who looks at the pipe. The head's thread appends, another takes."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MOST_KEPT)
        self._number = itertools.count()
        self._next = 0

    def append(self, event: dict[str, Any]) -> None:
        self._events.append((next(self._number), event))

    def take(self) -> list[dict[str, Any]]:
        """What has happened since the last time, oldest first; where some was lost, how much."""
        taken: list[dict[str, Any]] = []
        while self._events:
            number, event = self._events.popleft()
            if number != self._next:
                taken.append({"lost": number - self._next})
            self._next = number + 1
            taken.append(event)
        return taken


class PipeEvents:
    """Hands what the scheduler is told and does to whoever listens; costs nothing while nobody does."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    @property
    def full(self) -> bool:
        return len(self._listeners) >= MOST_LISTENERS

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """From one thread only."""
        listener = Listener()
        self._listeners = (*self._listeners, listener)
        try:
            yield listener
        finally:
            self._listeners = tuple([other for other in self._listeners if other is not listener])

    def record(self, now: float, event: Any, effects: Sequence[Any]) -> None:
        """On the head's thread: what the scheduler was told, and what it wants done for it."""
        listeners = self._listeners
        if not listeners:
            return
        for happened in (_told(event), *map(_done, effects)):
            if happened is not None:
                happened["t"] = now
                for listener in listeners:
                    listener.append(happened)


def _told(event: Any) -> dict[str, Any] | None:
    if isinstance(event, Logits):
        return {"done": event.run, "compute_s": event.compute_s, "cancelled_at": event.cancelled_at}
    if isinstance(event, Proposal):
        return {"drafted": len(event.nodes), "request": event.request, "forward_s": event.forward_s}
    if isinstance(event, Start):
        return {"began": event.number, "prompt": len(event.request.prompt)}
    return None


def _done(effect: Any) -> dict[str, Any] | None:
    if isinstance(effect, Decode):
        requests = tuple(dict.fromkeys(effect.requests))
        return {"sent": effect.run, "kind": effect.kind.name.lower(), "rows": len(effect.tokens), "requests": requests}
    if isinstance(effect, CancelRun):
        return {"cancelled": effect.runs, "pruned": effect.pruned}
    if isinstance(effect, Emit):
        return {"committed": len(effect.tokens), "request": effect.number}
    if isinstance(effect, Finish):
        return {"ended": effect.number, "reason": effect.reason}
    if isinstance(effect, Note):
        return {"note": effect.text, "request": effect.number}
    return None
