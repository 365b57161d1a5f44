"""A pytest plug-in that makes the scheduler worse as PIPEINFER_WORSE says, to see whether the gate notices."""

import os
from functools import partial
from typing import Any

from gate_cells import VARIANTS, Costs

from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import CancelRun, Logits
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.runtime.sim import HEADER_BYTES, Simulation


def skipped_cancellation() -> None:
    """The first cancellation of each generation is not sent."""
    handle, forgot = Scheduler.handle, set()

    def worse(self: Scheduler, now: float, event: Any) -> list[Any]:
        effects = handle(self, now, event)
        cancellation = next((effect for effect in effects if isinstance(effect, CancelRun)), None)
        if cancellation is not None and self not in forgot:
            forgot.add(self)
            effects.remove(cancellation)
        return effects

    Scheduler.handle = worse  # type: ignore[method-assign]


def redundant_run() -> None:
    """Each commit sends a single-token run, whether or not a live run covers the token."""
    VARIANTS["pipeinfer"] = ("redundant", {})


def extra_hop() -> None:
    """Results reach the head by way of one more rank."""
    deliver = Simulation._deliver

    def worse(self: Simulation, when: float, rank: int, machine: Machine, event: Any) -> None:
        if isinstance(event, Logits):
            late = self._down[-1].arrival(when, HEADER_BYTES)
            self._schedule(when, partial(deliver, self), late, rank, machine, event)
        else:
            deliver(self, when, rank, machine, event)

    Simulation._deliver = worse  # type: ignore[method-assign]


def slower_stage() -> None:
    """The first stage takes 2 % longer."""
    stage_s = Costs.stage_s

    def worse(self: Costs, stage: int, rows: int, context: int) -> float:
        return stage_s(self, stage, rows, context) * (1.02 if stage == 0 else 1)

    Costs.stage_s = worse  # type: ignore[method-assign]


WAYS = {make.__name__: make for make in (skipped_cancellation, redundant_run, extra_hop, slower_stage)}

if "PIPEINFER_WORSE" in os.environ:
    WAYS[os.environ["PIPEINFER_WORSE"]]()
