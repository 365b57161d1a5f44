"""Several simulated generations at once in one pipeline."""

from collections.abc import Callable, Sequence

import msgspec

from pipeinfer.core.effects import Start
from pipeinfer.modelling.simulate import Prepared, Setting, completed
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.load_sim import Arriving, LoadSimulation
from pipeinfer.runtime.sim import SimulatedLink


def simulate_load(prepare: Callable[[Setting], Prepared], settings: Sequence[Setting]) -> list[Trial]:
    """Settings that differ in nothing but what is drawn, begun at the same moment. Raises WorkloadError as `prepare`
    does, also where the ranks have no room for so many texts."""
    count, together = len(settings), as_one(settings)
    ready, room = [prepare(one) for one in settings], prepare(together)
    first, shape = ready[0], ready[0].pipeline
    load = LoadSimulation(
        msgspec.structs.replace(shape, cells=count * shape.cells, sequences=count * shape.sequences),
        first.costs,
        [Arriving(0.0, Start(one.request, number), one.strategy, one.oracle) for number, one in enumerate(ready)],
        link=lambda _source, _target: SimulatedLink(first.latency_s, first.bandwidth_bps),
    )
    load.serve()
    held = first._replace(memory=room.memory)
    return [completed(trial, held, setting) for trial, setting in zip(load.trials(), settings, strict=True)]


def as_one(settings: Sequence[Setting]) -> Setting:
    """A setting whose text is as long as theirs together, which needs as much memory."""
    one, count = settings[0], len(settings)
    return msgspec.structs.replace(one, prompt=count * one.prompt, tokens=count * one.tokens)
