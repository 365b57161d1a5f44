"""What an event costs the head: measured over a simulated generation, in real time."""

import time
from typing import Any

import numpy as np

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.messages import CancelRun, Decode, DraftFrom, Logits, Proposal
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import control
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation

STAGES, TOKENS, ACCEPTANCE = 3, 128, 0.8


class _Even:
    """Costs of a pipeline in which nothing stands out."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 10e-3

    def draft_s(self, rows: int, context: int) -> float:
        return 3e-3

    def row_bytes(self, stage: int) -> int:
        return 0


def head_event_s() -> float:
    """Mean seconds in which the head reads a message, decides what follows from it and writes that, over the events of
    a generation by `pipeinfer` at its defaults."""
    strategy = open_strategy("pipeinfer", {})
    simulation = Simulation(PipelineShape(STAGES), strategy, _Even(), independent(ACCEPTANCE))
    handle = simulation.scheduler.handle
    times: list[float] = []

    def timed(now: float, event: Any) -> Any:
        header = control.encode(event) if isinstance(event, Logits | Proposal) else None
        start = time.perf_counter()
        effects = handle(now, event if header is None else control.decode(header))
        for effect in effects:
            if isinstance(effect, Decode | CancelRun | DraftFrom):
                control.encode(effect)
        times.append(time.perf_counter() - start)
        return effects

    simulation.scheduler.handle = timed  # type: ignore[method-assign]
    simulation.generate(Request((1, 2, 3), TOKENS))
    return float(np.mean(times[1:]))  # The first event sends the prompt.
