"""The loop that every machine runs in, and what a world is: who performs effects.

A simulator, a rank, the head of a cluster and a test are worlds. Each says what happens next and has a method per
effect; none decides anything.
"""

from collections.abc import Iterable
from typing import Any

from pipeinfer.core import effects, messages
from pipeinfer.core.machine import Machine

METHODS: dict[type, str] = {
    effects.Emit: "emit",
    effects.Finish: "finish",
    effects.Note: "note",
    messages.CancelRun: "to_stages",
    messages.Decode: "to_first_stage",
    messages.DraftFrom: "to_draft",
    effects.Apply: "apply",
    effects.Compute: "compute",
    effects.ComputeDraft: "compute_draft",
    effects.Abort: "abort",
    effects.Forward: "forward",
    effects.Wake: "wake",
}
"""The method of a world that performs each effect; it takes the machine and the effect."""


class World:
    """Subclass it with `now`, `events` and the methods of `METHODS` that its machines' effects need."""

    def now(self) -> float:
        """Seconds on this world's clock."""
        raise NotImplementedError

    def events(self) -> Iterable[tuple[Machine, Any]]:
        """What happens, and to which machine, until there is nothing left to do."""
        raise NotImplementedError

    def run(self) -> None:
        """The loop."""
        for machine, event in self.events():
            self.tell(machine, event)

    def tell(self, machine: Machine, event: Any) -> None:
        """Have `machine` handle an event, and perform what it wants done."""
        for effect in machine.handle(self.now(), event):
            getattr(self, METHODS[type(effect)])(machine, effect)
