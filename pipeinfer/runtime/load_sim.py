"""Many requests over one simulated pipeline."""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop
from typing import Any, NamedTuple

from pipeinfer.core.effects import Emit, Start
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.machine import Machine
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.plugins import open_drafting
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import Oracle
from pipeinfer.runtime.sim import Costs, SimulatedLink, Simulation, _told, drafter_of, free_link


class Arriving(NamedTuple):
    """A request that comes at `at_s`, decoded by a strategy of its own, whose tokens an oracle of its own knows."""

    at_s: float
    start: Start
    strategy: Strategy
    oracle: Oracle


class LoadSimulation(Simulation):
    """`requests` in the order in which they come. Their strategies take the same draft policy."""

    def __init__(
        self,
        pipeline: PipelineShape,
        costs: Costs,
        requests: Sequence[Arriving],
        link: Callable[[int, int], SimulatedLink] = free_link,
    ) -> None:
        drafting = [one.strategy for one in requests if one.strategy.drafting] or [requests[0].strategy]
        first = drafting[0]
        super().__init__(pipeline, first, costs, requests[0].oracle, link)
        if first.drafting:
            self._drafter = drafter_of(lambda _: open_drafting(first.drafting, first.drafting_options), pipeline)
        self._requests = {one.start.number: one for one in requests}
        self.scheduler = Scheduler(pipeline, lambda start: self._requests[start.number].strategy)
        self.emit_s: dict[int, list[float]] = {number: [] for number in self._requests}
        """When each token was committed, by request: seconds of virtual time."""

    def serve(self) -> None:
        """Run until every request has ended. Raises RuntimeError if nothing is left to happen before that."""
        for one in self._requests.values():
            self._schedule(one.at_s, _told, self.scheduler, one.start)
        self.run()
        if any(self.scheduler.generations[number].reason is None for number in self._requests):
            raise RuntimeError("the simulation has come to a stop: nobody has anything to do")

    def trials(self) -> list[Trial]:
        """What is left of each request, in their order; what ranks did is for all of them."""
        return [
            self._trial(self.scheduler.generations[number], self.emit_s[number], one.at_s)
            for number, one in self._requests.items()
        ]

    def events(self) -> Iterator[tuple[Machine, Any]]:
        """What happens next, until nothing is left in the pipeline and nobody comes."""
        while self._heap and not (self._all_came and self.scheduler.idle):
            self.time, _, action, arguments = heappop(self._heap)
            told: Any = arguments if action is _told else action(*arguments)
            if told is not None:
                yield told

    @property
    def _all_came(self) -> bool:
        return len(self.scheduler.generations) == len(self._requests)

    def _oracle_of(self, request: int) -> Oracle:
        return self._requests[request].oracle

    def emit(self, machine: Machine, effect: Emit) -> None:
        self.emit_s[effect.number].extend([self.time] * len(effect.tokens))
