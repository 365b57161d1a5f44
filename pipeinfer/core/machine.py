"""What every state machine of the core is: events in, effects out, no clock and no I/O of its own."""

from typing import Any

from pipeinfer.core.errors import OurError, ProtocolError


class Machine:
    """`handle(now, event)` is deterministic: the same events at the same times give the same effects.

    After a ProtocolError it refuses everything: its state is not to be trusted.
    """

    def __init__(self) -> None:
        self.now = 0.0
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
            self._take(event)
        except ProtocolError as refused:
            self._refusal = refused
            raise
        return effects

    def validate(self) -> None:
        """Check what always holds. For tests: it looks at everything. Raises ProtocolError or AssertionError."""

    def _take(self, event: Any) -> None:
        raise NotImplementedError
