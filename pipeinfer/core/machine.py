"""What every state machine of the core is: events in, effects out, no clock and no I/O of its own."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeinfer.core.errors import OurError, PeerError, ProtocolError


class Machine:
    """`handle(now, event)` is deterministic: the same events at the same times give the same effects. `handlers` has
    who handles each kind of event; no other is taken.

    After a ProtocolError it refuses everything: its state is not to be trusted.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.handlers: Mapping[type, Callable[[Any], None]] = {}
        self._effects: list[Any] = []
        self._refusal: ProtocolError | None = None

    def handle(self, now: float, event: Any) -> list[Any]:
        """One event in, its effects out, in order. `now` is in seconds, on the caller's clock. Raises ProtocolError."""
        if self._refusal is not None:
            raise OurError(f"nothing is handled after an error: {self._refusal}")
        self.now = now
        effects: list[Any] = []
        self._effects = effects
        try:
            handler = self.handlers.get(type(event))
            if handler is None:
                raise PeerError(f"a {type(self).__name__} does not take a {type(event).__name__}")
            handler(event)
        except ProtocolError as refused:
            self._refusal = refused
            raise
        return effects

    def validate(self) -> None:
        """Check what always holds. For tests: it looks at everything. Raises ProtocolError or AssertionError."""
