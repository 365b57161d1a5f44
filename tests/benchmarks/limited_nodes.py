"""How much faster than synchronous speculation anything can be on nodes of less than a core, if nothing costs anything
but the models' own arithmetic: the limit of what `reproduce peers --node-cores` can show.

    python tests/benchmarks/limited_nodes.py

The simulator's own scheduler, stages and drafter, links that take no time and messages that nobody handles. A node
computes as fast as a whole core until its share of a period is used up, as control groups have it ("bursts"), or always
at its share of a core's speed ("steady"). What stages and the draft take is measured (COSTS), which drafts are right
was recorded from the built-in pair, and all strategies have the same.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import floor
from statistics import median
from typing import Any, NamedTuple

from pipeinfer.cluster.control_groups import PERIOD_US
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.modelling.acceptance import acceptance
from pipeinfer.plugins import open_strategy
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer.runtime.shared_cores import Schedule
from pipeinfer.runtime.sim import Hosts, Simulation

PROMPT, TOKENS, TEXTS = 76, 64, 10
PERIOD_S = PERIOD_US * 1e-6
DRAFT_S = 0.5e-3
"""One forward of the built-in draft, f16, one thread: processor time, where nothing else is in its cache."""

F16 = {1: 14.0, 2: 30.8, 3: 33.6, 4: 36.3, 5: 40.1, 6: 43.5, 8: 56.2, 10: 65.8, 12: 74.7, 16: 95.0}
"""Of `builtin:target-100m`, milliseconds of a processor for so many rows after 100 tokens, all stages together, one
thread: the least of 14. Two rows take another kernel than one."""

Q4_K_M = {1: 9.2, 2: 15.5, 3: 20.2, 4: 26.7, 5: 33.0, 6: 37.9, 8: 47.7, 10: 59.3, 12: 67.0, 16: 77.8}

COSTS = {"f16": F16, "Q4_K_M": Q4_K_M}

PLACES = {"4 nodes of 0.45 core": (3, 0.45), "8 nodes of 0.2 core": (7, 0.2)}
BASELINES = ("iterative", "speculative, best K")
"""Ratios are to the faster of them: plain decoding is K = 0."""

CONTENDERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "iterative": [("iterative", {})],
    "speculative, best K": [("speculative", {"k": k}) for k in (1, 2, 3, 4, 6, 8)],
    "pipeinfer": [("pipeinfer", {})],
    "pipeinfer, best options": [
        ("pipeinfer", {"draft": draft, "cutoff": cutoff, "decay": decay})
        for draft, cutoff, decay in product((1, 2, 3, 4, 6), (0.0, 0.3), (0.0, 0.05))
    ],
    "adaptive": [("adaptive", {})],
}


class ModelCosts(NamedTuple):
    """Costs of a target whose layers are split as evenly as numbers allow, be it within a layer."""

    rows: dict[int, float]
    stages: int
    speed: float = 1.0

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        known = sorted(self.rows)
        left, right = next((pair for pair in pairwise(known) if rows <= pair[1]), (known[-2], known[-1]))
        slope = (self.rows[right] - self.rows[left]) / (right - left)
        return 1e-3 * (self.rows[left] + slope * (rows - left)) / self.stages / self.speed

    def draft_s(self, rows: int, context: int) -> float:
        return DRAFT_S * rows / self.speed

    def row_bytes(self, stage: int) -> int:
        return 0


class LimitedNode:
    """In the place of `pipeinfer.runtime.shared_cores.Cores`: one core, of which each period has a share. One piece of
    work at a time; what takes no time is no work."""

    def __init__(self, cores: float, schedule: Schedule) -> None:
        self._share_s, self._schedule = cores * PERIOD_S, schedule
        self._period, self._used = -1, 0.0
        self._began, self._seconds, self._ticket = 0.0, 0.0, 0

    def start(self, now: float, seconds: float, action: Callable[..., Any], *arguments: Any) -> int:
        if seconds == 0:
            self._schedule(now, action, *arguments)
            return -1
        self._began, self._seconds, self._ticket = now, seconds, self._ticket + 1
        self._schedule(self._walk(seconds, float("inf"), commit=False)[1], self._end, self._ticket, action, arguments)
        return self._ticket

    def stop(self, now: float, ticket: int) -> float:
        self._ticket += 1
        return self._seconds - self._walk(self._seconds, now, commit=True)[0]

    def _end(self, ticket: int, action: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        if ticket != self._ticket:
            return None
        self._walk(self._seconds, float("inf"), commit=True)
        return action(*arguments)

    def _walk(self, seconds: float, until: float, *, commit: bool) -> tuple[float, float]:
        """What is done of the work by `until`, and when that is."""
        now, done, period, used = self._began, 0.0, self._period, self._used
        while done < seconds - 1e-12 and now < until:
            here = floor(now / PERIOD_S + 1e-9)
            if here != period:
                period, used = here, 0.0
            some = min(seconds - done, self._share_s - used, until - now, (here + 1) * PERIOD_S - now)
            if some <= 1e-12:
                now = (here + 1) * PERIOD_S
                continue
            now, done, used = now + some, done + some, used + some
        if commit:
            self._period, self._used = period, used
        return done, now


def speed(strategy: str, options: dict[str, Any], costs: ModelCosts, burst: float, text: int) -> float:
    """Tokens/s of one generation on nodes that have a core for the share `burst` of each period, or always (1)."""
    stages = costs.stages
    simulation = Simulation(
        PipelineShape(stages, cells=4096, sequences=1024, rationed=burst < 1),
        open_strategy(strategy, options),
        costs,
        acceptance("builtin-greedy").oracle(seed=text, start=PROMPT, length=PROMPT + TOKENS + 512),
        hosts=Hosts([*map(str, range(stages)), "draft", "head"], (1.0,), 0.0, 0.0, [3] * (stages + 1)),
    )
    simulation._cores = [LimitedNode(burst, simulation._schedule) for _ in range(stages + 2)]  # type: ignore[misc]
    return tokens_per_second(simulation.generate(Request(tuple(range(PROMPT)), TOKENS))) or 0.0


def main() -> None:
    for (place, (stages, cores)), (model, rows) in product(PLACES.items(), COSTS.items()):
        tell(f"{place}, bursts, {model}", ModelCosts(rows, stages), cores)
        tell(f"{place}, steady, {model}", ModelCosts(rows, stages, speed=cores), 1.0)


def tell(title: str, costs: ModelCosts, burst: float) -> None:
    """Each contender at its best."""
    print(title)
    base = 0.0
    for name, ways in CONTENDERS.items():
        speeds = [median([speed(*way, costs, burst, text) for text in range(TEXTS)]) for way in ways]
        best = max(speeds)
        base = max(base, best) if name in BASELINES else base
        strategy, options = ways[speeds.index(best)]
        print(f"  {name:24} {best:5.1f} tokens/s {best / base:5.2f}x  {strategy} {options or ''}", flush=True)


if __name__ == "__main__":
    main()
