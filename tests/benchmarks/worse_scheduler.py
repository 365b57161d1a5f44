"""A pytest plug-in that makes the scheduler worse as PIPEINFER_WORSE says, to see whether the gate notices."""

import os
from functools import partial
from typing import Any

from gate_cells import Costs

from pipeinfer.core.effects import HeadEffect, ToStages
from pipeinfer.core.head import Head
from pipeinfer.core.messages import Logits
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.runtime.sim import HEADER_BYTES, Simulation


def skipped_cancellation() -> None:
    """The first cancellation of each generation is not sent."""
    handle, forgot = Head.handle, set()

    def worse(self: Head, now: float, event: Any) -> list[HeadEffect]:
        effects = handle(self, now, event)
        cancellation = next((effect for effect in effects if isinstance(effect, ToStages)), None)
        if cancellation is not None and self not in forgot:
            forgot.add(self)
            effects.remove(cancellation)
        return effects

    Head.handle = worse  # type: ignore[method-assign]


def redundant_run() -> None:
    """Each commit sends a single-token run, whether or not a live run covers the token."""
    make = PipeInfer.__init__

    def worse(self: PipeInfer, **options: Any) -> None:
        make(self, **{**options, "redundant_runs": True})

    PipeInfer.__init__ = worse  # type: ignore[method-assign]


def extra_hop() -> None:
    """Results reach the head by way of one more rank."""
    deliver = Simulation._at_head

    def worse(self: Simulation, event: Any) -> None:
        if isinstance(event, Logits):
            self._schedule(self._down[-1].arrival(self.now, HEADER_BYTES), partial(deliver, self), event)
        else:
            deliver(self, event)

    Simulation._at_head = worse  # type: ignore[method-assign]


def slower_stage() -> None:
    """The first stage takes 2 % longer."""
    stage_s = Costs.stage_s

    def worse(self: Costs, stage: int, rows: int, context: int) -> float:
        return stage_s(self, stage, rows, context) * (1.02 if stage == 0 else 1)

    Costs.stage_s = worse  # type: ignore[method-assign]


WAYS = {make.__name__: make for make in (skipped_cancellation, redundant_run, extra_hop, slower_stage)}

if "PIPEINFER_WORSE" in os.environ:
    WAYS[os.environ["PIPEINFER_WORSE"]]()
